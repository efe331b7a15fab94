"""Writing foreign formats: exactly what the vector does, or an error that says what would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign
import pytest
import torch

import steerkit as sk
from steerkit.errors import OptionError
from steerkit.interventions import Add, Gate, Measure, MeasuredContrast, StoredDirection
from steerkit.vectors import PackMetadata
from steerkit_vectors_hub import interop
from steerkit_vectors_hub.interop import ModelFacts
from steerkit_vectors_hub.interop.convert import directions_to_add

FACTS = ModelFacts("Any", "any", 6)
MEASURE = Measure(kind="cosine")


def vector(*interventions: dict[str, Any], site: Any = "resid_post", rows: int = 0) -> sk.SteeringVector:
    tensors = {}
    for layer, direction in foreign.directions(1, 1, 2, 4, width=8).items():
        tensors[sk.Key(layer, site)] = direction.repeat(rows, 1) if rows else direction
    model = {"architecture": "Any", "model_type": "any", "hidden_size": 8, "layer_count": 6}
    document = {"method": {"name": "by hand"}, "interventions": interventions, "model": model}
    return sk.SteeringVector(tensors, PackMetadata.model_validate(document))


def test_doses_are_multiplied_in_and_interventions_summed() -> None:
    plain = vector({"tokens": "all"}).directions
    given = vector(
        {"tokens": "all", "strength": {1: 2.0, 4: 0.0}, "layers": [1, 2, 4]},
        {"tokens": "all", "strength": -0.5, "layers": [1]},
        {"tokens": "all", "layers": [2], "operation": {"kind": "add", "direction": {"source": "stored", "layer": 4}}},
    )
    directions, lost = directions_to_add(given, lossy=False)
    assert lost == ()
    assert list(directions) == [1, 2]
    torch.testing.assert_close(directions[1], 1.5 * plain[1])
    torch.testing.assert_close(directions[2], plain[4])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"tokens": "last"}, "'last'"), ({"phase": "prompt"}, "'prompt'"), ({"norm_preserving": True}, "norms")],
)
def test_what_would_be_lost_is_an_error_unless_allowed(tmp_path: Path, change: Any, said: str) -> None:
    given = vector({"tokens": "all"} | change)
    with pytest.raises(OptionError, match=said):
        interop.write(given, tmp_path / "w.gguf", "llamacpp")
    assert not list(tmp_path.iterdir())
    (lost,) = interop.write(given, tmp_path / "w.gguf", "llamacpp", lossy=True)
    assert said in lost
    back = interop.read(tmp_path / "w.gguf", model=FACTS)
    assert all(torch.equal(back.directions[layer], each) for layer, each in given.directions.items())


@pytest.mark.parametrize(
    "change",
    [
        {"operation": {"kind": "ablate"}},
        {"operation": Add(relative=True)},
        {"operation": Add(direction=MeasuredContrast())},
        {"gate": Gate(measure=MEASURE, threshold=0.0)},
        {"strength": {"measure": MEASURE, "slope": 1.0, "minimum": 0.0, "maximum": 1.0}},
        {"tower": "vision"},
        {"strength": 0.0},
    ],
)
def test_what_can_not_be_said_is_an_error_even_then(tmp_path: Path, change: Any) -> None:
    with pytest.raises(OptionError):
        interop.write(vector({"tokens": "all"} | change), tmp_path / "w.gguf", "repeng", lossy=True)


def test_other_sites_and_several_rows_are_errors(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="mlp_out"):
        interop.write(vector({"tokens": "all", "site": "mlp_out"}, site="mlp_out"), tmp_path / "w.gguf", "llamacpp")
    with pytest.raises(OptionError, match="2 rows"):
        interop.write(vector({"tokens": "all"}, rows=2), tmp_path / "w.gguf", "llamacpp")


def test_formats_that_are_only_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="can only be read") as caught:
        interop.write(vector({"tokens": "all"}), tmp_path / "w.svec", "activation-steering")
    assert caught.value.expected == "one of llamacpp, repeng"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    path.write_text("old")
    operation = Add(direction=StoredDirection(layer=4))
    bad = vector({"tokens": "all", "layers": [0], "operation": operation})
    with pytest.raises(sk.SteerKitError, match="layer 0"):
        interop.write(bad, path, "llamacpp")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["w.gguf"]
