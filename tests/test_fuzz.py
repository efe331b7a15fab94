"""Any mutation of a pack is refused in words, or read as a pack that can be saved and read again; and costs little.

The defects that `benchmarks/fuzz_loader.py` and these tests found have a test of their own below.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from steerkit.errors import NonFiniteError, PackFormatError
from steerkit.vectors import Key, PackMetadata, SteeringVector, parse_metadata
from steerkit.vectors.formats import parse_pack, read_pack
from steerkit_vectors_hub.errors import IndexFormatError, ReferenceFormatError
from steerkit_vectors_hub.index import parse_index
from steerkit_vectors_hub.refs import parse_ref

WIDTH = 8
CONTRAST = {"operation": {"kind": "add", "direction": {"source": "contrast"}}}
MODEL = {"architecture": "A", "model_type": "a", "hidden_size": WIDTH, "layer_count": 4}
DOCUMENT: dict[str, Any] = {
    "format_version": 1,
    "method": {"name": "m", "config": {"a": 1.0}},
    "interventions": [CONTRAST],
    "model": MODEL,
    "tensors_sha256": hashlib.sha256().hexdigest(),
}


def joined(header: Any, document: Any, body: bytes = b"") -> bytes:
    text = document if isinstance(document, str) else json.dumps(document)
    encoded = json.dumps({**header, "__metadata__": {"steerkit": text}}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header.pop("__metadata__")["steerkit"]), data[8 + length :]


def sealed(header: dict[str, Any], document: dict[str, Any], body: bytes) -> None:
    """Make the digest agree, by the specification and not by our code."""
    state = hashlib.sha256()
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        line = json.dumps([name, header[name]["dtype"], header[name]["shape"]], separators=(",", ":"))
        state.update(line.encode() + b"\n" + body[begin:end])
    document["tensors_sha256"] = state.hexdigest()
    document.pop("document_sha256", None)  # optional, and wrong by now


def a_pack(dtype: torch.dtype, rows: int, intervention: dict[str, Any]) -> bytes:
    generator = torch.Generator().manual_seed(0)
    metadata = PackMetadata.model_validate({**DOCUMENT, "interventions": [intervention], "tensors_sha256": None})
    shape = (rows, WIDTH) if rows > 1 else (WIDTH,)
    return SteeringVector(
        {Key(layer): torch.randn(shape, generator=generator).to(dtype) for layer in range(4)}, metadata
    ).to_bytes()


PACKS = [
    a_pack(torch.float32, 1, {}),
    a_pack(torch.float16, 1, {"strength": {"0": 1.0, "3": 2.0}, "tokens": "all"}),
    a_pack(torch.bfloat16, 2, {"operation": {"kind": "ablate"}, "layers": [1, 2]}),
    joined({}, DOCUMENT),
]


def judged(data: bytes) -> bool:
    """Whether the bytes are read; if not, the error is one that `load` documents, and whole."""
    try:
        vector = SteeringVector.from_bytes(data)
    except (PackFormatError, NonFiniteError) as error:
        refusal = error
    else:
        again = SteeringVector.from_bytes(vector.to_bytes())
        assert again.digest() == vector.digest()
        assert again.interventions == vector.interventions
        return True
    assert refusal.expected
    assert refusal.fix
    assert len(str(refusal)) < 20_000
    str(refusal).encode()
    return False


NUMBERS = st.sampled_from([0, 1, -1, 4, 7, 32, 4095, 4096, 2**31, 2**63, 10**400, 0.5, -1e308, 1e-320])
TEXTS = st.sampled_from(["", "F32", "BF16", "F64", "all", "1", "01", "stored", "../x", "\ud800", "a" * 600])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
PARTS = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(TEXTS, LEAVES, max_size=3)
VALUES = PARTS | st.lists(PARTS, max_size=3) | st.dictionaries(TEXTS, PARTS, max_size=3)
NAMES = st.sampled_from(
    [
        *("directions.0.resid_post", "directions.3.mlp_out.gate", "directions.00.resid_post", "directions.0.nowhere"),
        *("directions.4096.resid_post", "directions.9.resid_post", "x", "", "\ud800"),
        "directions.1.resid_post." + "n" * 65,
    ]
)


def plant(root: Any, draw: Any) -> None:
    """Change, drop, double or add a value at a random place."""
    place = root
    while keys := list(place if isinstance(place, dict) else range(len(place))):
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw(st.booleans()):
            place = inner
            continue
        act = draw(st.sampled_from(["drop", "replace", "double", "add"]))
        if act == "drop":
            del place[key]
        elif act == "replace":
            place[key] = draw(VALUES)
        elif isinstance(place, dict):
            place[draw(TEXTS)] = copy.deepcopy(inner) if act == "double" else draw(VALUES)
        else:
            place.append(copy.deepcopy(inner) if act == "double" else draw(VALUES))
        return


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data())
def test_structured_mutations(data: st.DataObject) -> None:
    header, document, body = split(data.draw(st.sampled_from(PACKS)))
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from(["header", "document", "name", "copy", "values", "length"]))
        names = list(header)
        if part == "header" and names:
            plant(header, data.draw)
        elif part == "name" and names:
            header[data.draw(NAMES)] = header.pop(data.draw(st.sampled_from(names)))
        elif part == "copy" and names:
            header[data.draw(NAMES)] = copy.deepcopy(header[names[0]])
        elif part == "values" and body:
            at = 4 * data.draw(st.integers(0, len(body) // 4 - 1))
            body = body[:at] + data.draw(st.sampled_from([b"\0\0\x80\x7f", b"\1\0\x80\x7f", bytes(4)])) + body[at + 4 :]
        elif part == "length":
            body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body + bytes(4)
        else:
            plant(document, data.draw)
    if data.draw(st.booleans()):
        try:
            sealed(header, document, body)
        except (KeyError, TypeError, ValueError):
            pass  # the header is no table any more
    judged(joined(header, document, body))


@settings(max_examples=120, derandomize=True, deadline=None)
@given(data=st.data())
def test_raw_mutations(data: st.DataObject) -> None:
    forged = bytearray(data.draw(st.sampled_from(PACKS)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(forged)))
        forged[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    judged(bytes(forged))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert not judged(data)
    assert not judged(struct.pack("<Q", len(data)) + data)


# -- what was found --------------------------------------------------------------------------------------------------

WIDE = {**MODEL, "layer_count": 4096}
COSTLY = {
    "a model of ten million layers": {**DOCUMENT, "model": {**MODEL, "layer_count": 10**7}},
    "a million wrong metrics": {**DOCUMENT, "metrics": [1] * 10**6},
    "as many wrong metrics as are read": {**DOCUMENT, "metrics": [1] * 65_000},
    "unknown fields": {**DOCUMENT, **{f"k{index}": 0 for index in range(60_000)}},
    "many interventions": {**DOCUMENT, "model": WIDE, "interventions": [CONTRAST] * 2000},
    "as many interventions as are read": {**DOCUMENT, "model": WIDE, "interventions": [CONTRAST] * 1024},
    "a million objects": {**DOCUMENT, "method": {"name": "m", "config": {"a": [{}] * 10**6}}},
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_document_costs_no_more_than_its_size(kind: str) -> None:
    data = joined({}, COSTLY[kind])
    tracemalloc.start()
    began = time.monotonic()
    try:
        if kind == "as many interventions as are read":
            SteeringVector.from_bytes(data)
        else:
            assert not judged(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22 + 40 * len(data)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("text", ["\ud800", "\udfff\ud800"])
def test_half_a_surrogate_pair_is_refused_where_any_value_may_stand(text: str) -> None:
    """It was read, and could not be saved."""
    assert not judged(joined({}, {**DOCUMENT, "method": {"name": "m", "config": {"a": text}}}))
    assert judged(joined({}, {**DOCUMENT, "method": {"name": "m", "config": {"a": "\U0001f389"}}}))


@pytest.mark.parametrize("key", ["01", "1_0", " 1", "+1", "1.0", "-1"])
def test_a_layer_of_a_strength_has_one_spelling(key: str) -> None:
    """`01` and `1` were the same layer, and the last of them won."""
    assert not judged(joined({}, {**DOCUMENT, "interventions": [{**CONTRAST, "strength": {"1": 1.0, key: 2.0}}]}))
    assert judged(joined({}, {**DOCUMENT, "interventions": [{**CONTRAST, "strength": {"1": 1.0, "2": 2.0}}]}))


@pytest.mark.parametrize("version", [["x" * 10**6], "x" * 10**6, 10**400])
def test_messages_are_short(version: object) -> None:
    with pytest.raises(PackFormatError) as caught:
        parse_pack(joined({}, {**DOCUMENT, "format_version": version}))
    assert len(str(caught.value)) < 1000
    with pytest.raises(PackFormatError) as caught:
        parse_metadata({**DOCUMENT, "x" * 10**6: 1, "interventions": [{"operation": {"kind": "y" * 10**6}}]}, name="x")
    assert len(str(caught.value)) < 2000


def test_an_index_with_very_many_faults_is_refused_in_few_words() -> None:
    with pytest.raises(IndexFormatError, match="faults") as caught:
        parse_index({f"key {index}": 0 for index in range(50_000)}, name="x")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "ref", ["https://[", "https://[z:1]/x", "file://[::1/x", "file://", "file://elsewhere/x", "file:///a%00b"]
)
def test_a_malformed_address_is_refused(ref: str) -> None:
    """These were errors of urllib, or led to the folder one is in."""
    with pytest.raises(ReferenceFormatError) as caught:
        parse_ref(ref)
    assert caught.value.expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_read_in_blocks(tmp_path: Path, dtype: torch.dtype) -> None:
    """Longer than a block in both directions, and against plain arithmetic; without a copy of the tensor."""
    width = 300_000
    model = {**MODEL, "hidden_size": width}
    metadata = PackMetadata.model_validate({**DOCUMENT, "interventions": [{}], "model": model, "tensors_sha256": None})
    tensor = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    vector = SteeringVector({Key(0): tensor}, metadata)
    raw = read_pack(vector.save(tmp_path / "v.safetensors"))
    tracemalloc.start()
    try:
        found = raw.norms("directions.0.resid_post")
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()
    assert found == pytest.approx(tensor.double().norm(dim=-1).numpy(), rel=1e-12)
