"""The pack file: what is written is read bit for bit, and whatever else is in a file is refused in words."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from forging import joined, rewritten, split, with_values
from hypothesis import HealthCheck, given, settings, strategies as st

from steerkit.errors import NonFiniteError, PackFormatError, SteerKitError
from steerkit.interventions import Add, Gate, Intervention, Measure, StoredDirection
from steerkit.vectors import (
    AnchorRecord,
    Key,
    MethodRecord,
    Metric,
    ModelRecord,
    PackMetadata,
    SteeringVector,
    StrengthRecord,
)
from steerkit.vectors.formats import container, parse_pack, parse_tensor_name, tensor_name

HIDDEN = 24
NAMES = ("directions.0.resid_post", "directions.1.resid_post", "directions.2.resid_post.gate")


def a_vector(dtype: torch.dtype = torch.float32) -> SteeringVector:
    """Three directions, one of them `[2, hidden]` and named, with every field of the metadata in use."""
    generator = torch.Generator().manual_seed(0)
    directions = {
        Key(0): torch.randn(HIDDEN, generator=generator).to(dtype),
        Key(1): torch.randn(HIDDEN, generator=generator).to(dtype),
        Key(2, "resid_post", "gate"): torch.randn(2, HIDDEN, generator=generator).to(dtype),
    }
    gate = Gate(measure=Measure(kind="cosine", direction=StoredDirection(layer=0)), threshold=0.25)
    metadata = PackMetadata(
        method=MethodRecord(name="cmrm", config={"alpha": 1.0, "layers": [0, 1]}, paper="arXiv 2410.09047"),
        interventions=(Intervention(operation=Add(), layers=(0, 1), gate=gate, strength={0: 0.5, 1: 2.0}),),
        model=ModelRecord(architecture="A", model_type="a", hidden_size=HIDDEN, layer_count=4, config_sha256="0" * 64),
        anchors=AnchorRecord(name="Ängste 🎉", sha256="1" * 64, size=7, labels={"harmful": 3}),
        versions={"torch": "2"},
        strength=StrengthRecord(recommended=1.5, minimum=0.0, maximum=3.0),
        metrics=(Metric(name="refusal", value=0.75, judge="exact", dataset="demo"),),
        history=("scale by 2",),
        license="CC-BY-4.0",
        authors=("Åsa",),
        description='A "description"\nof two lines',
        created="2026-01-01T00:00:00+00:00",
    )
    return SteeringVector(directions, metadata)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a saved pack."""
    return a_vector().save(tmp_path_factory.mktemp("whole") / "v.safetensors").read_bytes()


def refusal(tmp_path: Path, data: bytes, kind: type[SteerKitError] = PackFormatError) -> SteerKitError:
    """The error with which a file of these bytes is refused; it must be complete."""
    path = tmp_path / "forged.safetensors"
    path.write_bytes(data)
    with pytest.raises(SteerKitError) as caught:
        SteeringVector.load(path)
    error = caught.value
    assert type(error) is kind, error
    assert "forged.safetensors" in error.problem
    assert error.expected
    assert error.fix
    return error


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


# -- what is written is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_round_trip_is_bit_equal(tmp_path: Path, dtype: str) -> None:
    vector = a_vector(getattr(torch, dtype))
    loaded = SteeringVector.load(vector.save(tmp_path / "deep" / "er" / "v.safetensors"))
    assert list(loaded.tensors) == list(vector.tensors)
    for key, tensor in vector.tensors.items():
        assert loaded.tensors[key].dtype == tensor.dtype == getattr(torch, dtype)
        assert loaded.tensors[key].shape == tensor.shape
        assert bits(loaded.tensors[key]) == bits(tensor)
    before, after = vector.metadata.model_dump(mode="json"), loaded.metadata.model_dump(mode="json")
    assert len(after.pop("tensors_sha256")) == 64
    assert before.pop("tensors_sha256") is None
    assert before == after
    assert after["dtype"] == dtype
    assert after["description"] == 'A "description"\nof two lines'
    assert loaded.interventions == vector.interventions
    assert loaded.digest() == vector.digest()


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first = a_vector().save(tmp_path / "a.safetensors")
    second = SteeringVector.load(first).save(tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_saving_in_a_type_rounds_to_it(tmp_path: Path) -> None:
    vector = a_vector()
    loaded = SteeringVector.load(vector.save(tmp_path / "v.safetensors", dtype="bfloat16"))
    assert loaded.metadata.dtype == "bfloat16"
    for key, tensor in vector.tensors.items():
        assert torch.equal(loaded.tensors[key], tensor.bfloat16())


def test_the_file_is_plain_safetensors_with_the_documented_names(whole: bytes) -> None:
    read = safetensors.numpy.load(whole)
    assert set(read) == set(NAMES)
    assert np.array_equal(read["directions.0.resid_post"], a_vector().tensors[Key(0)].numpy())
    header, _ = split(whole)
    assert json.loads(header["__metadata__"]["steerkit"])["format_version"] == 1


def test_a_vector_without_tensors_is_a_pack_too(tmp_path: Path) -> None:
    from steerkit.interventions import MeasuredContrast

    measured = Intervention(operation=Add(direction=MeasuredContrast()))
    metadata = a_vector().metadata.model_copy(update={"interventions": (measured,)})
    vector = SteeringVector({}, metadata)
    assert SteeringVector.load(vector.save(tmp_path / "v.safetensors")).interventions == (measured,)


def test_arrays_are_read_without_torch_and_equal_its_values(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        vector = a_vector(dtype)
        raw = parse_pack(vector.save(tmp_path / "v.safetensors").read_bytes())
        for key, tensor in vector.tensors.items():
            assert np.array_equal(raw.array(tensor_name(*key)), tensor.float().numpy())


@pytest.mark.parametrize(
    "parts",
    [
        (0, "resid_post", "", "language"),
        (31, "mlp_out", "gate_2", "language"),
        (4095, "attn_out", "x" * 64, "language"),
        (3, "head_out", "", "language"),
        (0, "mlp_out", "", "vision"),
        (23, "resid_post", "vision", "vision"),
    ],
)
def test_names_of_tensors_are_read_back(parts: tuple[int, str, str, str]) -> None:
    assert parse_tensor_name(tensor_name(*parts)) == parts


# -- files that are no pack ------------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, whole: bytes) -> None:
    for size in (*range(0, len(whole), 64), len(whole) - 1):
        refusal(tmp_path, whole[:size])


def test_appended_bytes_are_refused(tmp_path: Path, whole: bytes) -> None:
    assert "appended" in str(refusal(tmp_path, whole + b"\0"))
    refusal(tmp_path, whole + whole)


def test_a_flipped_byte_of_a_tensor_is_refused(tmp_path: Path, whole: bytes) -> None:
    _, body = split(whole)
    for position in range(len(whole) - len(body), len(whole), 3):
        forged = bytearray(whole)
        forged[position] ^= 0x10
        with pytest.raises((PackFormatError, NonFiniteError)):
            parse_pack(bytes(forged))


def test_a_flipped_byte_of_the_header_is_refused_or_leaves_the_tensors_whole(whole: bytes, tmp_path: Path) -> None:
    """One digest covers the tensors and one the document; what is left is JSON's own freedom."""
    _, body = split(whole)
    expected = a_vector()
    path = tmp_path / "v.safetensors"
    refused = accepted = 0
    for position in range(0, len(whole) - len(body), 5):
        forged = bytearray(whole)
        forged[position] ^= 0x01
        path.write_bytes(forged)
        try:
            loaded = SteeringVector.load(path)
        except (PackFormatError, NonFiniteError) as error:
            refused += bool(error.expected and error.fix)
        else:
            accepted += 1
            assert {k: bits(t) for k, t in loaded.tensors.items()} == {k: bits(t) for k, t in expected.tensors.items()}
            assert loaded.metadata.model_copy(update={"tensors_sha256": None}) == expected.metadata
    assert refused + accepted == len(range(0, len(whole) - len(body), 5)), "an error without expectation or fix"
    assert refused > accepted


FOREIGN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\0",
    "text": lambda: b"This is a text, and not a short one at that.",
    "short text": lambda: b"Hi",
    "pickle": lambda: pickle.dumps({"directions": [1.0] * 100}),
    "zeros": lambda: bytes(1000),
    "json": lambda: json.dumps({"steerkit": {}}).encode(),
    "other safetensors": lambda: safetensors.torch.save({"weight": torch.ones(3)}),
    "other metadata": lambda: safetensors.torch.save({"weight": torch.ones(3)}, metadata={"format": "pt"}),
    "no document": lambda: safetensors.torch.save({}, metadata={"steerkit": "[]"}),
    "empty document": lambda: safetensors.torch.save({}, metadata={"steerkit": "{}"}),
    "no json": lambda: safetensors.torch.save({}, metadata={"steerkit": "{"}),
    "more metadata": lambda: safetensors.torch.save({}, metadata={"steerkit": "{}", "more": ""}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    refusal(tmp_path, FOREIGN[kind]())


def test_a_torch_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"x": torch.ones(2), "trap": Trap()}, tmp_path / "t.pt")
    assert "pickle" in str(refusal(tmp_path, (tmp_path / "t.pt").read_bytes()))
    refusal(tmp_path, pickle.dumps(Trap()))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("where", ["missing.safetensors", "no\0where", ".", "file/below"])
def test_a_path_without_a_file_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PackFormatError) as caught:
        SteeringVector.load(tmp_path / where)
    assert caught.value.expected
    assert caught.value.fix


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PackFormatError):
        SteeringVector.load(tmp_path / "pipe")


def test_a_document_that_was_edited_by_hand_is_refused(tmp_path: Path, whole: bytes) -> None:
    """The digest stands at the end of the text, over the text without it."""
    header, body = split(whole)
    text = header["__metadata__"]["steerkit"]
    plain, _, end = text.rpartition(',"document_sha256":"')
    assert end == hashlib.sha256((plain + "}").encode()).hexdigest() + '"}'
    stronger = text.replace('"recommended":1.5', '"recommended":9.5')
    assert stronger != text
    moved = f'{{"document_sha256":"{end[:-1]},{plain[1:]}}}'
    for forged in (stronger, moved, text + " ", text.replace(end, "0" * 64 + '"}'), plain + ',"document_sha256":1}'):
        header["__metadata__"]["steerkit"] = forged
        assert "the document has sha256" in refusal(tmp_path, joined(header, body)).problem
    header["__metadata__"]["steerkit"] = plain + "}"
    (tmp_path / "bare.safetensors").write_bytes(joined(header, body))
    assert SteeringVector.load(tmp_path / "bare.safetensors").digest() == a_vector().digest()


# -- forged headers --------------------------------------------------------------------------------------------------


def _entry(**fields: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda header, document: header[NAMES[0]].update(fields)


def _document(**fields: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda header, document: document.update(fields)


def _renamed(name: str) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda header, document: header.update({name: header.pop(NAMES[0])})


def _layers(value: object) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda header, document: document["interventions"][0].update(layers=value)


FORGED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "unknown dtype": (_entry(dtype="F64"), "type 'F64'"),
    "unhashable dtype": (_entry(dtype=[]), r"type \[\]"),
    "no dtype": (_entry(dtype=None), "type None"),
    "integer dtype": (_entry(dtype="I32"), "type 'I32'"),
    "huge shape": (_entry(shape=[2**31, 2**31]), "spans"),
    "beyond any shape": (_entry(shape=[2**62]), "shape"),
    "negative shape": (_entry(shape=[-HIDDEN]), "shape"),
    "zero shape": (_entry(shape=[0], data_offsets=[0, 0]), "shape"),
    "scalar": (_entry(shape=[], data_offsets=[0, 4]), "shape"),
    "cube": (_entry(shape=[1, 1, HIDDEN]), "shape"),
    "true in shape": (_entry(shape=[True, HIDDEN]), "shape"),
    "text shape": (_entry(shape="24"), "shape"),
    "float offset": (_entry(data_offsets=[0.0, 96.0]), "offsets"),
    "one offset": (_entry(data_offsets=[96]), "offsets"),
    "backward offsets": (_entry(data_offsets=[96, 0]), "spans"),
    "overlap": (_entry(data_offsets=[96, 192]), "begins at byte"),
    "hole": (_entry(data_offsets=[4, 100]), "begins at byte"),
    "surplus key": (_entry(extra=1), "malformed"),
    "entry of another kind": (lambda header, document: header.update({NAMES[0]: [1]}), "malformed"),
    "foreign name": (_renamed("weight"), "'weight'"),
    "negative layer": (_renamed("directions.-1.resid_post"), "named"),
    "padded layer": (_renamed("directions.00.resid_post"), "named"),
    "unknown site": (_renamed("directions.0.nowhere"), "named"),
    "unknown tower": (_renamed("directions.audio.0.resid_post"), "named"),
    "tower twice": (_renamed("directions.vision.vision.0.mlp_out"), "named"),
    "tower alone": (_renamed("directions.vision.mlp_out"), "named"),
    "padded layer in the tower": (_renamed("directions.vision.00.mlp_out"), "named"),
    "heads in the tower": (_renamed("directions.vision.0.head_out"), "named"),
    "sizes of the tower unknown": (_renamed("directions.vision.0.mlp_out"), "."),
    "path in name": (_renamed("directions.0.resid_post.../../x"), "named"),
    "line break in name": (_renamed("directions.0.resid_post\n"), "named"),
    "surrogate in name": (_renamed("directions.0.\ud800"), "surrogates"),
    "layer beyond the model": (_renamed("directions.9.resid_post"), "sha256"),
    "tensor left out": (lambda header, document: header.pop(NAMES[0]), "begins at byte"),
    "unknown metadata": (lambda header, document: header["__metadata__"].update(more="x"), "more"),
    "format of another kind": (lambda header, document: header["__metadata__"].update(format=5), "format is 5"),
    "no format": (lambda header, document: header["__metadata__"].update(format=None), "format is None"),
    "version 2": (_document(format_version=2), "format_version is 2"),
    "version 1.0": (_document(format_version=1.5), "format_version"),
    "version true": (_document(format_version=True), "format_version is True"),
    "version list": (_document(format_version=[1]), "format_version"),
    "unknown field": (_document(surprise=1), "surprise"),
    "no interventions": (_document(interventions=[]), "interventions"),
    "no model": (_document(model=None), "model"),
    "other digest": (_document(tensors_sha256="0" * 64), "sha256"),
    "no digest": (_document(tensors_sha256=None), "sha256"),
    "digest of another kind": (_document(tensors_sha256=["x"]), "sha256"),
    "other dtype": (_document(dtype="float16"), "float32"),
    "other convention": (_document(layer_convention="1-based"), "layer_convention"),
    "layers beyond the model": (_layers([7]), "layer 7"),
    "layers without a direction": (_layers([0, 3]), r"\[3\]"),
    "negative layers": (_layers([-1]), "layers"),
    "endless revision": (lambda header, document: document["model"].update(revision="a" * 2000), "revision"),
    "endless licence": (_document(license="a" * 2000), "license"),
    "endless authors": (_document(authors=["a"] * 2000), "authors"),
    "endless versions": (_document(versions={str(i): "1" for i in range(2000)}), "versions"),
    "a fingerprint of another kind": (_document(fingerprint={"layers": [0]}), "fingerprint"),
    "endless description": (_document(description="a" * 30_000), "description"),
    "surrogate in document": (_document(description="\ud800"), "steerkit document"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_header_or_document_is_refused(tmp_path: Path, whole: bytes, kind: str) -> None:
    change, problem = FORGED[kind]

    error = refusal(tmp_path, rewritten(whole, change))
    assert re.search(problem, str(error)), error


def test_a_model_of_another_width_or_depth_is_refused(tmp_path: Path, whole: bytes) -> None:
    for field, value in (("hidden_size", HIDDEN + 1), ("layer_count", 2), ("hidden_size", 0)):
        refusal(tmp_path, rewritten(whole, lambda header, document, f=field, v=value: document["model"].update({f: v})))


def test_a_surrogate_in_the_metadata_is_refused(tmp_path: Path, whole: bytes) -> None:
    header, body = split(whole)
    header["__metadata__"]["steerkit"] = header["__metadata__"]["steerkit"].replace("sa", "\ud800", 1)
    refusal(tmp_path, joined(header, body))


def test_repeated_keys_are_refused(tmp_path: Path, whole: bytes) -> None:
    header, body = split(whole)
    text = json.dumps(header)
    assert "repeats" in str(
        refusal(tmp_path, joined(text[:-1] + f', "{NAMES[0]}": {json.dumps(header[NAMES[0]])}}}', body))
    )
    document = header["__metadata__"]["steerkit"]
    header["__metadata__"]["steerkit"] = document[:-1] + ',"format_version":1}'
    assert "repeats" in str(refusal(tmp_path, joined(header, body)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_in_the_document(tmp_path: Path, whole: bytes, number: str) -> None:
    header, body = split(whole)
    header["__metadata__"]["steerkit"] = header["__metadata__"]["steerkit"].replace('"alpha":1.0', f'"alpha":{number}')
    assert number in str(refusal(tmp_path, joined(header, body)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_directions_that_are_not_finite_are_refused(tmp_path: Path, whole: bytes, value: float) -> None:
    values = np.ones(HIDDEN)
    values[5] = value
    refusal(tmp_path, with_values(whole, NAMES[1], values), NonFiniteError)


def test_zero_and_outlier_directions_are_refused(tmp_path: Path, whole: bytes) -> None:
    assert "zero" in str(refusal(tmp_path, with_values(whole, NAMES[1], np.zeros(HIDDEN))))
    half = np.concatenate([np.ones(HIDDEN), np.zeros(HIDDEN)])
    assert "zero" in str(refusal(tmp_path, with_values(whole, NAMES[2], half)))
    assert "norm" in str(refusal(tmp_path, with_values(whole, NAMES[1], np.full(HIDDEN, 1e6))))
    assert "norm" in str(refusal(tmp_path, with_values(whole, NAMES[1], np.full(HIDDEN, 1e38))))
    (tmp_path / "good.safetensors").write_bytes(with_values(whole, NAMES[1], np.full(HIDDEN, 100.0)))
    assert SteeringVector.load(tmp_path / "good.safetensors").tensors[Key(1)].eq(100.0).all()


def test_one_of_two_directions_may_not_be_an_outlier_either(tmp_path: Path) -> None:
    vector = a_vector()
    metadata = vector.metadata.model_copy(update={"interventions": (Intervention(operation=Add()),)})
    pair = SteeringVector({Key(0): vector.tensors[Key(0)], Key(1): 1e6 * vector.tensors[Key(1)]}, metadata)
    with pytest.raises(PackFormatError, match="norm"):
        pair.save(tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []


# -- bombs -----------------------------------------------------------------------------------------------------------

_MANY = "{" + ",".join(f'"{index:x}":1' for index in range(150_000)) + "}"
_DEEP = "[" * 200_000 + "]" * 200_000
BOMBS: dict[str, Callable[[], bytes]] = {
    "announced exabytes": lambda: struct.pack("<Q", 2**63) + b"{}",
    "announced megabytes": lambda: struct.pack("<Q", container.MAX_HEADER) + b"{}",
    "just above the limit": lambda: joined(b" " * (container.MAX_HEADER + 1)),
    "many keys": lambda: joined(_MANY),
    "a million keys": lambda: joined("{" + ",".join(f'"{index}":1' for index in range(1_000_000)) + "}"),
    "many tensors": lambda: joined('{"__metadata__":{"steerkit":"{}"},' + _MANY[1:]),
    "many keys in the document": lambda: joined({"__metadata__": {"steerkit": _MANY}}),
    "deep": lambda: joined('{"a":' + _DEEP + "}"),
    "deep objects": lambda: joined('{"a":' * 200_000 + "1" + "}" * 200_000),
    "deep behind brackets in a string": lambda: joined('{"b":"' + "]" * 300_000 + '","a":' + _DEEP + "}"),
    "deep behind an escaped quote": lambda: joined('{"b":"\\"' + "]" * 300_000 + '\\\\","a":' + _DEEP + "}"),
    "deep document": lambda: joined({"__metadata__": {"steerkit": '{"a":' + _DEEP + "}"}}),
    "empty lists": lambda: joined('{"a":[' + "[]," * 2_000_000 + "[]]}"),
    "empty lists in the document": lambda: joined(
        {"__metadata__": {"steerkit": '{"a":[' + "[]," * 2_000_000 + "[]]}"}}
    ),
    "deep in a list": lambda: joined(_DEEP),
    "quotes": lambda: joined('{"' + '\\"' * 2_000_000),
    "digits": lambda: joined('{"a":' + "9" * 4_000_000 + "}"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_at_once_and_in_little_memory(tmp_path: Path, kind: str) -> None:
    data = BOMBS[kind]()
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(PackFormatError) as caught:
            SteeringVector.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - began < 10
    assert peak < 2**20 + 40 * len(data)
    if "announced" in kind or "above" in kind:
        assert peak < 2**20 + 2 * len(data)


def test_a_shape_beyond_the_file_allocates_nothing(whole: bytes) -> None:
    huge = rewritten(whole, _entry(shape=[2**30], data_offsets=[0, 2**32]))
    claimed = rewritten(whole, _entry(shape=[2**28], data_offsets=[0, 2**30]))
    for data in (huge, claimed):
        tracemalloc.start()
        try:
            with pytest.raises(PackFormatError):
                parse_pack(data)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


def test_reading_needs_a_small_multiple_of_the_file(tmp_path: Path) -> None:
    metadata = a_vector().metadata
    wide = metadata.model.model_copy(update={"hidden_size": 50_000})
    plain = metadata.model_copy(update={"model": wide, "interventions": (Intervention(operation=Add()),)})
    vector = SteeringVector({Key(layer): torch.rand(50_000) + 0.1 for layer in range(4)}, plain)
    path = vector.save(tmp_path / "v.safetensors")
    tracemalloc.start()
    try:
        SteeringVector.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 4 * path.stat().st_size


# -- mutated files ---------------------------------------------------------------------------------------------------


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_file_is_refused_or_loads_the_same_tensors(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    forged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(forged)))
        length = data.draw(st.integers(0, 40))
        forged[start : start + length] = data.draw(st.one_of(st.binary(max_size=40), st.just(b"\0" * length)))
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(forged)
    try:
        loaded = SteeringVector.load(path)
    except (PackFormatError, NonFiniteError) as error:
        complete = bool(error.expected and error.fix)
    else:
        complete = True
        assert {k: bits(t) for k, t in loaded.tensors.items()} == {k: bits(t) for k, t in a_vector().tensors.items()}
    assert complete


_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_document_with_any_value_anywhere_is_refused_or_valid(
    tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    """Walk to a random place of the header or the document, and put a random JSON value there."""

    def plant(header: dict[str, Any], document: dict[str, Any]) -> None:
        place: Any = data.draw(st.sampled_from([header, document]))
        while True:
            keys = [k for k in (place if isinstance(place, dict) else range(len(place))) if k != "__metadata__"]
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
                place[key] = data.draw(_JSON)
                return
            place = inner

    path = tmp_path / "planted.safetensors"
    path.write_bytes(rewritten(whole, plant))
    try:
        loaded = SteeringVector.load(path)
    except (PackFormatError, NonFiniteError) as error:
        complete = bool(error.expected and error.fix)
    else:
        complete = True
        loaded.save(path)
        assert SteeringVector.load(path).metadata.model_copy(update={"tensors_sha256": None}) == (
            loaded.metadata.model_copy(update={"tensors_sha256": None})
        )
    assert complete


# -- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_save_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = a_vector().save(tmp_path / "v.safetensors")
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
        with pytest.raises(type(error)):
            (a_vector() * 2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_saving_to_one_path_leave_a_whole_file(tmp_path: Path) -> None:
    source = a_vector().save(tmp_path / "source" / "v.safetensors")
    target = tmp_path / "target" / "v.safetensors"
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from steerkit.vectors._vector import SteeringVector\n"
        "vector = SteeringVector.load(sys.argv[1]) * float(sys.argv[3])\n"
        "for _ in range(60): vector.save(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", script, str(source), str(target)]
    running = [subprocess.Popen([*command, factor]) for factor in ("2", "3")]
    seen = set()
    base = a_vector()
    expected = {(base * factor).digest() for factor in (2.0, 3.0)}
    while any(process.poll() is None for process in running):
        if target.exists():
            seen.add(SteeringVector.load(target).digest())
        time.sleep(0.02)
    assert [process.wait() for process in running] == [0, 0]
    seen.add(SteeringVector.load(target).digest())
    assert seen <= expected
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data + data[:1])[:-1]])
def test_bytes_of_any_kind_are_a_pack_and_may_change_afterwards(kind: Any) -> None:
    data = a_vector().to_bytes()
    given = kind(bytearray(data)) if kind is memoryview else kind(data)
    loaded = SteeringVector.from_bytes(given)
    if not isinstance(given, bytes) and not memoryview(given).readonly:
        memoryview(given)[:] = b"\0" * len(data)
    assert loaded.to_bytes() == data
