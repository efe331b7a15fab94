"""The one reading of JSON, and the one wording of pydantic's faults."""

from __future__ import annotations

import json
import sys
import time

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from steerkit._internal.faults import faults
from steerkit._internal.json import MAX_DEPTH, json_object, json_value
from steerkit.errors import SampleError, SteerKitError

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
documents = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


@given(documents, st.booleans())
def test_what_is_sound_is_read_as_the_standard_library_reads_it(document, ascii_only):
    text = json.dumps(document, ensure_ascii=ascii_only)
    assert json_value(text, "x") == json_value(text.encode(), "x") == json.loads(text) == document


HOSTILE = {
    "a repeated key": b'{"a": 1, "a": 2}',
    "a repeated key far inside": b'[[{"b": {"a": 1, "a": 1}}]]',
    "NaN": b"[NaN]",
    "-Infinity": b'{"a": -Infinity}',
    "a float that overflows": b"[1e999]",
    "an integer that overflows": b"1" + b"0" * 400,
    "an integer whose digits Python refuses": b"-" + b"9" * 5000,
    "an integer that others round": b"[18446744073709551616]",
    "half a surrogate pair": rb'"\ud800"',
    "a low surrogate alone": rb'{"\udc00": 1}',
    "not UTF-8": b'"\xff"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "lists that open only": b"[" * 60_000,
    "objects that open only": b'{"a":' * 60_000,
    "lists too deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "objects too deep": b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    "deep in the middle of what is flat": b"[1, " + b"[" * 40 + b"]" * 40 + b", 2]",
    "too many values": b"[" + b"0," * 70_000 + b"0]",
    "too many empty lists": b"[" + b"[]," * 70_000 + b"[]]",
    "nothing": b"",
    "two documents": b"{} {}",
    "a comment": b"{} // yes",
    "a trailing comma": b"[1,]",
    "closed twice": b"[]]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_two_readers_could_read_differently_is_refused(text):
    start = time.perf_counter()
    with pytest.raises(SampleError, match="the file ") as caught:
        json_value(text, "the file", error=SampleError, fix="mend it")
    assert (caught.value.fix, time.perf_counter() - start < 2) == ("mend it", True)
    assert len(str(caught.value)) < 500


def test_brackets_and_commas_inside_strings_count_for_nothing():
    document = {"a": "[" * 100 + "," * 100_000 + '"\\', "b": ["\\", "{{{"]}
    assert json_value(json.dumps(document), "x") == document


def test_the_depth_is_that_of_the_document():
    document = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert json_value(document, "x") == json.loads(document)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "true"])
def test_an_object_is_no_other_value(text):
    with pytest.raises(SteerKitError, match=r"^x is .*a JSON object"):
        json_object(text, "x")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = 0
    names: list[str] = []

    @field_validator("names")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if "bad" in names:
            raise ValueError("there is no bad one")
        return names


class _Whole(BaseModel):
    part: _Part


def _faults(document: object) -> str:
    with pytest.raises(ValidationError) as caught:
        _Whole.model_validate(document)
    return faults(caught.value)


def test_a_fault_tells_the_place_the_value_and_the_reason():
    told = _faults({"part": {"count": "x"}})
    assert (told.startswith("part.count: Input should be a valid integer"), told.endswith("(got 'x')")) == (True, True)
    assert _faults({"part": {"names": ["bad"]}}) == "part.names: there is no bad one"
    assert _faults({}) == "part: Field required"


def test_the_words_of_a_document_in_a_fault_are_bounded_and_steer_no_terminal():
    told = _faults({"part": {"\x1b[2J\nerror: forged" + "x" * 10_000: 1}})
    assert (told.isprintable(), len(told) < 500, "forged" in told) == (True, True, True)
    told = _faults({"part": {"names": [0] * 7}})
    assert told.endswith("; and 2 more")
    assert _faults({"part": {"names": [0] * 1001}}) == "1001 faults"


def test_a_value_whose_repr_fails_is_told_by_its_type():
    digits = sys.get_int_max_str_digits()
    assert "<int>" in _faults({"part": {"names": [10 ** (digits + 1)]}})
