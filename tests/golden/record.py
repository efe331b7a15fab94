"""Record the golden data anew: `python tests/golden/record.py [generation positions receipts packs fits]`.

Run it only where behaviour is meant to change, and read the difference of the JSON files before it is committed: every
line is a case. Without names, everything is recorded. A case is refused that could turn out otherwise for rounding
alone: a greedy token that leads by little, a state near the threshold of a gate, a fit that depends on the size of its
batches. Then choose another prompt, threshold or anchor.

The packs in `packs/` are what was written once. Those that are missing are made, and none is ever changed.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), *(str(ROOT / part) for part in ("", "adapters", "vectors_hub"))]

import cases_fits  # noqa: E402
import cases_generation  # noqa: E402
import cases_packs  # noqa: E402
import cases_positions  # noqa: E402
import cases_receipts  # noqa: E402
import torch  # noqa: E402
from golden_support import as_json, assert_alike, write  # noqa: E402

import steerkit as sk  # noqa: E402


def generation() -> None:
    """Refuses tokens that lead by less than `MARGIN`."""
    records = {}
    for name, case in cases_generation.CASES.items():
        records[name], lead = cases_generation.found(*case)
        if lead < cases_generation.MARGIN:
            raise SystemExit(f"{name}: a token leads by {lead:.3f} only; choose other rows")
    write("generation", records)


def positions() -> None:
    """Refuses changes that are neither nothing nor large; see `cases_positions.found`."""
    write("positions", {name: cases_positions.found(*case) for name, case in cases_positions.CASES.items()})


def receipts() -> None:
    """Refuses gates whose decisions depend on the fourth decimal of a threshold."""
    records = {}
    for name, case in cases_receipts.CASES.items():
        records[name] = as_json(cases_receipts.found(*case))
        if "gate" not in name:
            continue
        family, vectors, engine, orthogonalize = case
        for shift in (-1e-4, 1e-4):
            moved = cases_receipts.found(family, _shifted(vectors, shift), engine, orthogonalize)
            try:
                assert_alike(as_json(moved), records[name], 1e-2)
            except AssertionError as error:
                raise SystemExit(f"{name}: a state lies near a threshold, {error.args}") from None
    write("receipts", records)


def _shifted(vectors: Any, shift: float) -> Any:
    moved = copy.deepcopy(vectors)
    for interventions in moved:
        for intervention in interventions:
            gate = intervention["gate"]
            # deep copies keep shared parts shared, and each must be moved once
            for each in {id(one): one for one in gate.get("gates", [gate])}.values():
                each["threshold"] += shift
    return moved


def packs() -> None:
    """Makes the stored packs that are missing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {"whole": cases_packs.whole().to_bytes(), "bare": cases_packs.bare()}
        for stem, data in made.items():
            path = cases_packs.PACKS / f"{stem}.safetensors"
            if not path.exists():
                path.write_bytes(data)
        write("packs_written", {name: cases_packs.written(name, folder) for name in cases_packs.WRITTEN})
    write("packs_loaded", {name: cases_packs.loaded(name) for name in cases_packs.STORED})
    bundled = {}
    for name in cases_packs.BUNDLED:
        vector = sk.load_vector(name)
        digest = hashlib.sha256(vector.to_bytes()).hexdigest()
        bundled[name] = {"sha256": digest, "content": as_json(cases_packs.content(vector))}
    write("packs_bundled", bundled)


def fits() -> None:
    """Refuses what changes by more than a tenth of the tolerance where batches have another size."""
    records = {}
    for name, case in cases_fits.CASES.items():
        records[name] = as_json(cases_fits.found(cases_fits.fitted(*case)))
        places = {key: each["at"] for key, each in records[name]["directions"].items()}
        for batch_size in (3, 1):
            again = cases_fits.found(cases_fits.fitted(*case, batch_size=batch_size), places)
            try:
                assert_alike(as_json(again), records[name], 1e-5)
            except AssertionError as error:
                raise SystemExit(f"{name}: batches of {batch_size} give another fit, {error.args}") from None
    write("fits", records)


RECORDERS: dict[str, Callable[[], None]] = {
    "generation": generation,
    "positions": positions,
    "receipts": receipts,
    "packs": packs,
    "fits": fits,
}


def main(names: list[str]) -> None:
    """Record what is named, or all."""
    torch.set_num_threads(1)
    if unknown := sorted(set(names) - set(RECORDERS)):
        raise SystemExit(f"unknown: {unknown}. Expected some of {list(RECORDERS)}.")
    for name in names or RECORDERS:
        RECORDERS[name]()
        print(f"recorded {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
