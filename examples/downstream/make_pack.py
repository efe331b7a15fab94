"""Extract CMRM on the demo LLaVA: `packs/cmrm.safetensors`, and a reference to exactly this file, `packs/cmrm.ref`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import steerkit as sk
from steerkit.demo import anchors, model_path


def make_pack(folder: Path) -> str:
    """Write the pack and its reference to a folder, and return the reference."""
    vector = sk.CMRM().fit(sk.load(model_path("llava")), anchors(40), batch_size=20, anchor_name="toy world")
    path = vector.with_metadata(license="Apache-2.0").save(folder / "cmrm.safetensors")
    ref = f"{path}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
    (folder / "cmrm.ref").write_text(ref + "\n")
    return ref


if __name__ == "__main__":
    print(make_pack(Path(__file__).parent / "packs"))
