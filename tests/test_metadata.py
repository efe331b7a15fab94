"""The document of a pack: what it holds, and that it is read without torch."""

from __future__ import annotations

from typing import Any

import pytest

from steerkit.errors import PackFormatError
from steerkit.vectors import PackMetadata, parse_metadata

SHORTEST: dict[str, Any] = {
    "method": {"name": "cmrm"},
    "interventions": [{}],
    "model": {"architecture": "A", "model_type": "a", "hidden_size": 8, "layer_count": 2},
}


def test_the_shortest_document_has_every_default() -> None:
    read = parse_metadata(SHORTEST, name="x")
    assert read.format_version == 1
    assert read.layer_convention == "0-based decoder blocks, output of the block"
    assert read.dtype == "float32"
    assert (read.anchors, read.license, read.tensors_sha256) == (None, None, None)
    assert read.strength.recommended == 1.0
    assert read.interventions[0].operation.kind == "add"


def test_a_document_survives_its_json() -> None:
    full = parse_metadata(
        {
            **SHORTEST,
            "anchors": {"name": "Ü", "sha256": "a" * 64, "size": 3, "labels": {"x": 1}, "license": "MIT"},
            "metrics": [{"name": "m", "value": 0.5, "judge": "j", "dataset": "d", "condition": "c"}],
            "strength": {"recommended": 0.5, "minimum": -1, "maximum": 2},
            "history": ["a", "b"],
            "authors": ["x"],
        },
        name="x",
    )
    assert PackMetadata.model_validate_json(full.model_dump_json()) == full
    assert full.metrics[0].value == 0.5
    assert full.history == ("a", "b")


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("surprise", 1, "surprise"),
        ("method", {"name": "x", "surprise": 1}, "method.surprise"),
        ("method", {"name": "a" * 201}, "method.name"),
        ("interventions", [], "interventions"),
        ("interventions", [{"layers": []}], "interventions.0.layers"),
        ("model", {**SHORTEST["model"], "hidden_size": 0}, "model.hidden_size"),
        ("model", {**SHORTEST["model"], "layer_count": -1}, "model.layer_count"),
        ("model", {**SHORTEST["model"], "config_sha256": "A" * 64}, "model.config_sha256"),
        ("anchors", {"sha256": "a" * 64, "size": 0}, "anchors.size"),
        ("anchors", {"sha256": "a" * 63, "size": 1}, "anchors.sha256"),
        ("metrics", [{"name": "m", "value": float("nan")}], "metrics.0.value"),
        ("strength", {"recommended": float("inf")}, "strength.recommended"),
        ("dtype", "float64", "dtype"),
        ("format_version", 2, "format_version"),
        ("layer_convention", "1-based", "layer_convention"),
        ("history", "one text", "history"),
        ("tensors_sha256", "x", "tensors_sha256"),
        # nothing is converted
        ("interventions", [{"strength": "2.5"}], "interventions.0.strength"),
        ("interventions", [{"strength": True}], "interventions.0.strength"),
        ("interventions", [{"strength": {"0": "1"}}], "interventions.0.strength"),
        ("interventions", [{"layers": [True]}], "interventions.0.layers"),
        ("interventions", [{"layers": ["0"]}], "interventions.0.layers"),
        ("interventions", [{"layers": [0.0]}], "interventions.0.layers"),
        ("interventions", [{"norm_preserving": "on"}], "interventions.0.norm_preserving"),
        ("model", {**SHORTEST["model"], "hidden_size": "96"}, "model.hidden_size"),
        ("strength", {"recommended": " 1e3 "}, "strength.recommended"),
        ("format_version", True, "format_version"),
        ("format_version", 1.0, "format_version"),
        ("created", "yesterday", "created"),
        ("created", "", "created"),
    ],
)
def test_an_invalid_field_is_refused_by_its_place(field: str, value: object, where: str) -> None:
    with pytest.raises(PackFormatError, match=f"pack.x.*{where.replace('.', '[.]')}") as caught:
        parse_metadata({**SHORTEST, field: value}, name="pack.x")
    assert caught.value.expected
    assert caught.value.fix


def test_integers_are_numbers_and_keys_of_layers_are_strings() -> None:
    changed = {**SHORTEST, "interventions": [{"strength": {"0": 1, "1": 2.5}, "layers": [0, 1]}, {"strength": 2}]}
    first, second = parse_metadata({**changed, "created": "2026-01-31T12:00:00Z"}, name="x").interventions
    assert (first.strength, first.layers, second.strength) == ({0: 1.0, 1: 2.5}, (0, 1), 2.0)


@pytest.mark.parametrize("field", SHORTEST)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(PackFormatError, match=f"{field}: Field required"):
        parse_metadata({key: value for key, value in SHORTEST.items() if key != field}, name="x")


def test_only_the_first_five_faults_are_told() -> None:
    with pytest.raises(PackFormatError) as caught:
        parse_metadata({**SHORTEST, **{f"field{index}": 1 for index in range(1000)}}, name="x")
    assert str(caught.value).count("Extra inputs") == 5
