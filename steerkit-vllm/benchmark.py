"""What steering costs in vLLM, as ratios of one run: `python benchmark.py MODEL NAME=REF [NAME=REF ...]`.

Two engines answer the same prompts in turns, so that what else the machine does strikes all alike: one without
steerkit (off), and one with it, whose requests ask for nothing (idle), all for one pack (steered), or each for another
(distinct). Everything is given as the ratio to `off` of the same turn: the median, with the lowest and the highest.
vLLM's processes spin while they wait for each other, so that processor time says something with `--one-process` alone.
`--limit` makes a ratio of the time per token above it an error, for machines that can resolve it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil


class Turn(NamedTuple):
    """One measurement; seconds, but for `work`: seconds of processor time, in all processes together."""

    first: float
    whole: float
    work: float


KINDS = ("off", "idle", "steered", "distinct")
COLUMNS = ("throughput", "first token", "time per token", "processor time")
UNDISTURBED = "processor time, undisturbed"
"""Of the fastest quarters of the turns: whatever else a machine does only ever adds to a time."""


def busy() -> float:
    """Seconds of processor time that this process and its children have used."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(each.cpu_times()[:2]) for each in children)


def measured(llm: Any, count: int, name: Callable[[int], str | None], tokens: int, length: int) -> Turn:
    """Answer `count` requests twice: with one token, and with all of them."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [1, *(20 + (at * 7 + k) % 200 for k in range(length - 1))]} for at in range(count)]

    def seconds(limit: int) -> float:
        sampling = [
            SamplingParams(
                temperature=0,
                max_tokens=limit,
                ignore_eos=True,
                detokenize=False,
                extra_args=None if name(at) is None else {"steerkit_pack": name(at), "steerkit_strength": 1e-3},
            )
            for at in range(count)
        ]
        start = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start

    first = seconds(1)
    before = busy()
    whole = seconds(tokens)
    return Turn(first, whole, busy() - before)


def ratios(turn: Turn, off: Turn, tokens: int) -> tuple[float, ...]:
    """A turn relative to the same turn without steerkit, in the order of `COLUMNS`."""
    each, other = ((t.whole - t.first) / (tokens - 1) for t in (turn, off))
    return off.whole / turn.whole, turn.first / off.first, each / other, turn.work / off.work


def run(
    model: str, packs: dict[str, str], *, batches: list[int], turns: int, tokens: int, length: int, options: Any
) -> dict[str, dict[int, dict[str, list[float]]]]:
    """All ratios: `{kind: {batch: {column: one for each turn}}}`."""
    from vllm import LLM

    plain = LLM(model, enable_prefix_caching=False, **options)
    settings = {"steerkit": {"packs": packs, "policy": "off"}}
    steering = LLM(model, enable_prefix_caching=False, additional_config=settings, **options)
    names = list(packs)
    asked: dict[str, Callable[[int], str | None]] = {
        "off": lambda at: None,
        "idle": lambda at: None,
        "steered": lambda at: names[0],
        "distinct": lambda at: names[at % len(names)],
    }
    found: dict[str, dict[int, dict[str, list[float]]]] = {kind: {} for kind in KINDS[1:]}
    for count in batches:
        work: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(turns + 1):  # the first warms up
            order = KINDS if turn % 2 else KINDS[::-1]
            done = {
                kind: measured(plain if kind == "off" else steering, count, asked[kind], tokens, length)
                for kind in order
            }
            for kind in KINDS if turn else ():
                work[kind].append(done[kind].work)
            for kind in KINDS[1:] if turn else ():
                columns = found[kind].setdefault(count, {column: [] for column in COLUMNS})
                for column, value in zip(COLUMNS, ratios(done[kind], done["off"], tokens), strict=True):
                    columns[column].append(value)
        least = {kind: statistics.fmean(sorted(each)[: max(len(each) // 4, 1)]) for kind, each in work.items()}
        for kind in KINDS[1:]:
            found[kind][count][UNDISTURBED] = [least[kind] / least["off"]]
    return found


def table(found: dict[str, dict[int, dict[str, list[float]]]]) -> str:
    """The ratios as a table of Markdown."""
    lines = ["| batch | requests | " + " | ".join((*COLUMNS, UNDISTURBED)) + " |", "| --- " * (3 + len(COLUMNS)) + "|"]
    for count in next(iter(found.values())):
        for kind, batches in found.items():
            cells = [f"{statistics.median(v):.3f} ({min(v):.2f}-{max(v):.2f})" for v in batches[count].values()]
            lines.append(f"| {count} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("packs", nargs="+", metavar="NAME=REF")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--length", type=int, default=33, help="tokens of each prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--limit", type=float, help="largest ratio of the time per token, medians")
    parser.add_argument("--options", type=json.loads, default={}, help="further arguments of vllm.LLM, as JSON")
    parser.add_argument("--one-process", action="store_true", help="run the engines in this process")
    given = parser.parse_args()
    if given.one_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    packs = dict(each.split("=", 1) for each in given.packs)
    found = run(
        given.model,
        packs,
        batches=given.batches,
        turns=given.turns,
        tokens=given.tokens,
        length=given.length,
        options=given.options,
    )
    print(table(found))
    medians = [statistics.median(each["time per token"]) for kind in found.values() for each in kind.values()]
    if given.limit is not None and max(medians) > given.limit:
        sys.exit(f"the time per token is {max(medians):.3f} times that without steerkit, and {given.limit} is allowed")


if __name__ == "__main__":
    main()
