"""Make the bundled packs: CMRM for each demo model, measured on it, and their index.

    python -m demo_training.write_packs [--output FOLDER] [--prompts N] [MODEL ...]

Takes some minutes on a laptop. The same models give the same packs, to the byte on the same machine and libraries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from steerkit.demo import ANCHORS, MODELS, SUITES, model_path
from steerkit.errors import OptionError
from steerkit.vectors import Metric, SteeringVector
from steerkit_vectors_hub.bundled import FOLDER, INDEX
from steerkit_vectors_hub.index import entry_of, make_index, write_index
from steerkit_vectors_hub.resolve import resolve

SOURCE = "training split of the toy world of the demo models"
JUDGE = "exact match with the toy world's instructions"
DATASET = "test split of the toy world of the demo models"
LICENSE = "Apache-2.0"

_TITLES = {"llava": "LLaVA", "qwen2_5_vl": "Qwen2.5-VL", "instructblip": "InstructBLIP"}


def pack_name(model: str) -> str:
    """The name that the pack of a demo model is bundled under, such as `cmrm-llava-demo`."""
    return f"cmrm-{model.replace('_', '-')}-demo"


def build(model: str, *, prompts: int) -> SteeringVector:
    """Fit CMRM on a demo model and measure it.

    Args:
        model: Name of the demo model.
        prompts: Test prompts behind each figure.
    """
    import steerkit as sk
    from steerkit.demo.report import measure

    vlm = sk.load(model_path(model), dtype="float32")
    vector = sk.CMRM().fit(vlm, sk.read_samples(ANCHORS), anchor_name=SOURCE, anchor_license=LICENSE)
    suite = sk.evaluation.load_suite(SUITES["test"]).first(prompts)
    metrics = []
    for condition, steering in ((f"unsteered, {prompts} prompts", None), (f"steered, {prompts} prompts", vector)):
        figures = measure(vlm, suite, steering)
        metrics += [
            Metric(name=name, value=getattr(figures, name), condition=condition, judge=JUDGE, dataset=DATASET)
            for name in ("unsafe_rate", "over_refusal", "utility")
        ]
    return vector.with_metadata(
        model={**vector.metadata.model.model_dump(), "id": f"steerkit/demo/{model}", "revision": None},
        metrics=tuple(metrics),
        license=LICENSE,
        authors=("The steerkit authors",),
        description=f"CMRM for the bundled demo model of the {_TITLES[model]} family: a toy, to try steerkit with.",
        created=None,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the packs and the index."""
    parser = argparse.ArgumentParser(prog="python -m demo_training.write_packs", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="demo models; default: all")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the packs")
    parser.add_argument("--prompts", type=int, default=100, help="test prompts behind each figure")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.models) - set(MODELS)):
        raise OptionError(f"no demo model {unknown[0]!r}", expected="one of " + ", ".join(MODELS))
    for model in given.models or MODELS:
        path = given.output / f"{pack_name(model)}.safetensors"
        vector = build(model, prompts=given.prompts)
        vector.save(path)
        print(f"{path}: {vector!r}")
    write_bundled_index(given.output)


def write_bundled_index(folder: Path) -> None:
    """Describe every pack of a folder by its bundled name."""
    entries = [entry_of(resolve(str(path))) for path in sorted(folder.glob("*.safetensors"))]
    named = [entry.model_copy(update={"ref": f"{entry.name}#sha256={entry.sha256}"}) for entry in entries]
    write_index(make_index(named, title="Packs that come with steerkit", dated=False), folder / INDEX)


if __name__ == "__main__":
    main()
