"""Check types in parallel, and write their rows or compare them: `python -m breadth.report [--check]`, in tests/."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any


def _quiet() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()


def _row(name: str) -> tuple[str, Any, float]:
    from breadth import levels

    began = time.process_time()
    return name, levels.checked(name), time.process_time() - began


def _comparison(name: str) -> tuple[str, Any, float]:
    from breadth import levels

    began = time.process_time()
    try:
        found = levels.compared(name)
    except Exception as error:  # of one type, which is no reason to say nothing of the others
        found = f"{name}: {type(error).__name__}: {error!s:.300}"
    return name, found, time.process_time() - began


def _each(
    work: Callable[[str], tuple[str, Any, float]], names: Sequence[str], workers: int, keep: Callable[[str, Any], None]
) -> None:
    with multiprocessing.get_context("spawn").Pool(workers, _quiet) as pool:
        for name, result, seconds in pool.imap_unordered(work, names, chunksize=1):
            keep(name, result)
            print(f"{name:24} {seconds:5.1f} s  {result}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--text", action="store_true", help="the language models")
    parser.add_argument("types", nargs="*")
    options = parser.parse_args(arguments)
    from breadth import levels, pairs, text_models

    every = list(text_models.NAMES if options.text else pairs.NAMES)
    names = options.types or every
    if options.check:
        wrong: list[str] = []
        _each(_comparison, names, options.workers, lambda _, text: wrong.extend([text] if text else []))
        if not options.types:
            gone = sorted(levels.rows_of(every[0]).keys() - set(every))
            wrong += [f"{name}: has a row, and transformers has no such type" for name in gone]
            if levels.DOCUMENT.read_text() != levels.page(levels.recorded()):
                wrong.append("docs/models.md is not what tested.json says")
        print("\n".join(wrong) or "every type is as the table says")
        return int(bool(wrong))
    _each(_row, names, options.workers, lambda name, row: levels.write({name: row}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
