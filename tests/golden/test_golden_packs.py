"""Packs are written byte for byte as before, and old ones are read as before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cases_packs import BUNDLED, PACKS, STORED, WRITTEN, bare, content, loaded, whole, written
from golden_support import as_json, assert_alike, recorded

import steerkit as sk


@pytest.mark.parametrize("name", WRITTEN)
def test_written_bytes(name: str, tmp_path: Path) -> None:
    assert written(name, tmp_path) == recorded("packs_written")[name]


@pytest.mark.parametrize("name", STORED)
def test_stored_packs_are_read_as_before(name: str) -> None:
    assert_alike(as_json(loaded(name)), recorded("packs_loaded")[name], 1e-12)


def test_the_stored_packs_are_those_that_are_made_here(tmp_path: Path) -> None:
    assert (PACKS / "whole.safetensors").read_bytes() == whole().save(tmp_path / "v.safetensors").read_bytes()
    assert (PACKS / "bare.safetensors").read_bytes() == bare()


@pytest.mark.parametrize("name", ["without-prompts", "whole"])
def test_a_stored_pack_that_is_saved_is_read_again(name: str, tmp_path: Path) -> None:
    vector = sk.SteeringVector.load(PACKS / f"{name}.safetensors")
    again = sk.SteeringVector.load(vector.save(tmp_path / "v.safetensors"))
    assert content(again) == content(vector)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_pack_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    vector = sk.load_vector(name)
    data = vector.save(tmp_path / "v.safetensors").read_bytes()
    assert data == sk.SteeringVector.load(tmp_path / "v.safetensors").to_bytes()
    assert hashlib.sha256(data).hexdigest() == recorded("packs_bundled")[name]["sha256"]
    assert str(vector.source).endswith(f"#sha256={hashlib.sha256(data).hexdigest()}"), "the bytes of the bundled file"
    assert_alike(as_json(content(vector)), recorded("packs_bundled")[name]["content"], 1e-12)
