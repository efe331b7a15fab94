"""The state of an extraction on disk: read back bit for bit, refused when it is another's or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ReadByHooks
from reference import picture

import steerkit as sk
from steerkit.errors import CheckpointError
from steerkit.methods import Moments, Progressed, load_checkpoint, save_checkpoint

HIDDEN = 6


def state() -> Progressed:
    """Means alone, rows, and outer products."""
    generator = torch.Generator().manual_seed(0)

    def moments(count: int, second: bool) -> Moments:
        return Moments.of(torch.randn(count, HIDDEN, generator=generator), second=second)

    groups = {"shift/odd name": {0: moments(3, True), 11: moments(9, True)}, "harmful": {0: moments(4, False)}}
    return Progressed("identity", ["a" * 64, "b" * 64], groups)


def test_a_state_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    before = state()
    save_checkpoint(tmp_path / "deep" / "c.ckpt", before)
    after = load_checkpoint(tmp_path / "deep" / "c.ckpt", "identity")
    assert (after.identity, after.digests) == (before.identity, before.digests)
    assert {n: set(layers) for n, layers in after.groups.items()} == {n: set(g) for n, g in before.groups.items()}
    for name, layers in before.groups.items():
        for layer, moments in layers.items():
            read = after.groups[name][layer]
            assert read.count == moments.count
            for part in ("total", "rows", "outer"):
                expected, found = getattr(moments, part), getattr(read, part)
                assert (expected is None) == (found is None)
                assert expected is None or torch.equal(expected, found)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.ckpt"]


def test_no_file_is_an_empty_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c.ckpt", "identity") == Progressed("identity")


def test_the_checkpoint_of_another_extraction_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.ckpt", state())
    with pytest.raises(CheckpointError, match="another extraction") as caught:
        load_checkpoint(tmp_path / "c.ckpt", "other")
    assert caught.value.fix


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    save_checkpoint(path, state())
    whole = path.read_bytes()
    for size in range(0, len(whole), 64):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged") as caught:
            load_checkpoint(path, "identity")
        assert caught.value.fix


@pytest.mark.parametrize(
    "head",
    [None, "{", "[]", "1", "{}", '{"identity": "identity", "digests": 1, "counts": {}}']
    + [
        json.dumps({"identity": "identity", "digests": [], "counts": counts})
        for counts in ({"a/0": 1}, {"a/x": 1}, [1])
    ],
)
def test_a_file_with_another_head_is_refused(tmp_path: Path, head: str | None) -> None:
    metadata = None if head is None else {"extraction": head}
    safetensors.torch.save_file({"a/x/total": torch.ones(2)}, tmp_path / "c.ckpt", metadata=metadata)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "c.ckpt", "identity")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path, "identity")


def test_a_failing_save_leaves_the_old_state_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.ckpt"
    save_checkpoint(path, state())
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(CheckpointError, match="No space"):
            save_checkpoint(path, Progressed("other"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/c.ckpt", "x" * 300, "null\0byte", "folder"])
def test_a_place_where_nothing_can_be_written_is_found_before_the_model_runs(
    llava: sk.VLM, measured_llava: ReadByHooks, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    passes: list[object] = []
    layer = llava.model.get_submodule("model.language_model.layers.0")
    seen = layer.register_forward_pre_hook(lambda *given: passes.append(given))
    try:
        with pytest.raises(CheckpointError):
            sk.CMRM().fit(measured_llava, [sk.Sample("a", (picture(0),))], checkpoint=f"{tmp_path}/{name}")
        assert not passes
        sk.CMRM().fit(measured_llava, [sk.Sample("a", (picture(0),))], checkpoint=tmp_path / "deep" / "c.ckpt")
        assert passes
    finally:
        seen.remove()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.ckpt"]
