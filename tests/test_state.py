"""States of an extraction: kept bit for bit, merged in any order to the same bits, refused when they lie."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ReadByHooks
from reference import picture

import steerkit as sk
from steerkit.errors import CheckpointError, OptionError
from steerkit.methods import Extraction, Moments, State, _moments
from steerkit.methods._state import Measured

HIDDEN = 6


def extraction(anchors: int, block_size: int = 2, **changed: Any) -> Extraction:
    given = {"method": "m", "config": {}, "model": {"id": "x"}, "weights": "w", "layers": (0,), **changed}
    return Extraction(anchors=anchors, block_size=block_size, **given)


def rows(anchor: int) -> torch.Tensor:
    """A row of wild magnitudes, so that sums in another order differ."""
    generator = np.random.default_rng(anchor)
    return torch.tensor(generator.normal(size=HIDDEN) * 10.0 ** generator.integers(-8, 8, HIDDEN)).float()


def of(whole: Extraction, *blocks: int, second: bool = True, keep: bool = True) -> State:
    state = State(whole)
    for block in blocks:
        span = whole.span(block)
        found = torch.stack([rows(anchor) for anchor in span])
        state.nodes = state.added((0, block), {"shift/odd name": {3: Moments.of(found, second=second, keep=keep)}})
        state.samples |= {anchor: Measured(f"{anchor:064x}", "ab"[anchor % 2], "") for anchor in span}
    return state


def parts(moments: Moments) -> list[torch.Tensor]:
    return [each for each in (moments.total, moments.rows, moments.outer, *moments.kept) if each is not None]


def assert_same_sums(one: State, other: State) -> None:
    first, second = (state.groups()["shift/odd name"][3] for state in (one, other))
    assert first.count == second.count
    assert len(parts(first)) == len(parts(second))
    for mine, others in zip(parts(first), parts(second), strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 37])
def test_whoever_measured_what_the_sums_are_the_same(count: int) -> None:
    whole = extraction(2 * count)
    one = of(whole, *range(count))
    assert len(one.nodes) == bin(count).count("1")
    for seed in range(6):
        order = random.Random(seed).sample(range(count), count)
        workers = [of(whole, *order[start::3]) for start in range(min(3, count))]
        first, *others = workers
        assert_same_sums(first.merge(*others), one)
        nested = first
        for other in others[::-1]:
            nested = other.merge(nested)
        assert_same_sums(nested, one)
    expected = torch.stack([rows(anchor) for anchor in range(2 * count)])
    found = one.groups()["shift/odd name"][3]
    assert torch.equal(torch.cat(found.kept), expected)
    assert torch.allclose(found.total, expected.double().sum(0), rtol=1e-12, atol=0)
    moment = expected.double().T @ expected.double() / len(expected)
    assert torch.allclose(found.second_moment(), moment, rtol=1e-9, atol=1e-12)


def test_sums_in_another_order_do_differ_here() -> None:
    """Or the test above would say nothing."""
    wide = [rows(anchor).double() for anchor in range(37)]
    orders = [random.Random(seed).sample(wide, len(wide)) for seed in range(5)]
    sums = {tuple(sum(order, torch.zeros(HIDDEN).double()).tolist()) for order in orders}
    assert len(sums) > 1


@pytest.mark.parametrize("large", [1, 200, 2**24])
def test_large_tensors_leave_the_memory_and_are_the_same(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extraction(40)
    monkeypatch.setattr(_moments, "LARGE", 2**40)
    in_memory = of(whole, *range(20))
    monkeypatch.setattr(_moments, "LARGE", large)
    mapped = of(whole, *range(20))
    found, expected = (state.groups()["shift/odd name"][3] for state in (mapped, in_memory))
    assert torch.equal(torch.cat(found.kept), torch.cat(expected.kept))
    assert torch.equal(found.second_moment(), expected.second_moment())
    held = [each for groups in mapped.nodes.values() for each in parts(groups["shift/odd name"][3])]
    on_disk = [each for each in held if each.untyped_storage().filename is not None]
    assert bool(on_disk) == (large < 2**24)
    assert not [path for path in {each.untyped_storage().filename for each in on_disk} if Path(path).exists()]


def test_a_full_disk_for_large_tensors_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moments, "LARGE", 1)
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(CheckpointError, match="temporary files") as caught:
        of(extraction(8), 0, 1)
    assert "TMPDIR" in str(caught.value.fix)


def test_lost_doubled_and_foreign_states_are_named() -> None:
    whole = extraction(13)
    with pytest.raises(CheckpointError, match="anchors 4-5, 12 of 13 were not measured") as caught:
        of(whole, 0, 1).merge(of(whole, 3, 4, 5)).groups()
    assert "blocks of 2 anchors: 2, 6" in str(caught.value.fix)
    with pytest.raises(CheckpointError, match="anchors 6-7 were measured in two"):
        of(whole, 0, 3).merge(of(whole, 3, 5))
    for name, value in (
        ("method", "n"),
        ("config", {"a": 1}),
        ("model", {"id": "y"}),
        ("weights", "v"),
        ("layers", (1,)),
    ):
        with pytest.raises(CheckpointError, match=f"another extraction: its {name} is"):
            of(whole, 0).merge(of(extraction(13, **{name: value}), 1))
    for other in (extraction(12), extraction(13, block_size=3)):
        with pytest.raises(CheckpointError, match="another extraction: its (anchors|block_size) is"):
            of(whole, 0).merge(of(other, 1))


# -- on the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_a_state_is_read_back_bit_for_bit(tmp_path: Path, second: bool, keep: bool) -> None:
    whole = extraction(13)
    before = of(whole, 0, 1, 2, 4, 6, second=second, keep=keep)
    before.save(tmp_path / "deep" / "state")
    after = State.load(tmp_path / "deep" / "state")
    assert (after.extraction, after.samples, after.blocks) == (whole, before.samples, {0, 1, 2, 4, 6})
    assert_same_sums(
        after.merge(of(whole, 3, 5, second=second, keep=keep)), of(whole, *range(7), second=second, keep=keep)
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state"]


def test_a_cut_state_is_refused(tmp_path: Path) -> None:
    path = of(extraction(8), 0, 1, 3).save(tmp_path / "state")
    whole = path.read_bytes()
    for size in range(0, len(whole), 64):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged") as caught:
            State.load(path)
        assert caught.value.fix


def _head(**changed: Any) -> str:
    whole = extraction(4).model_dump(mode="json")
    samples = [[number, "d", "", ""] for number in range(4)]
    node = {"level": 1, "place": 0, "groups": {}}
    return json.dumps({"extraction": whole, "samples": samples, "nodes": [node], **changed})


def test_the_head_of_the_next_test_is_sound(tmp_path: Path) -> None:
    safetensors.torch.save_file({}, tmp_path / "state", metadata={"state": _head()})
    assert State.load(tmp_path / "state").blocks == {0, 1}


@pytest.mark.parametrize(
    "head",
    [None, "{", "[]", "1", "{}"]
    + [
        _head(**changed)
        for changed in (
            {"samples": 1},
            {"samples": [[0, "d", "", ""]]},
            {"samples": [[0]]},
            {"nodes": []},
            {"nodes": [{"level": 9, "place": 0, "groups": {}}]},
            {"nodes": [{"level": 70, "place": 0, "groups": {}}]},
            {"nodes": [{"level": -1, "place": 0, "groups": {}}]},
            {"nodes": [{"level": 1, "place": 0, "groups": {"a": {"0": 1}}}]},
            {"nodes": [{"level": 1, "place": 0, "groups": {}}, {"level": 0, "place": 0, "groups": {}}]},
            {"extraction": {}},
            {"extraction": None},
        )
    ],
)
def test_a_file_with_another_head_is_refused(tmp_path: Path, head: str | None) -> None:
    metadata = None if head is None else {"state": head}
    safetensors.torch.save_file({}, tmp_path / "state", metadata=metadata)
    with pytest.raises(CheckpointError, match="damaged"):
        State.load(tmp_path / "state")


def test_a_folder_or_nothing_is_no_state(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="can't be read"):
            State.load(path)


def test_a_failing_save_leaves_the_old_state_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of(extraction(8), 0).save(tmp_path / "state")
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(CheckpointError, match="No space"):
            of(extraction(8), 1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -- measured by a method ----------------------------------------------------------------------------------------------


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


ANCHORS = [sk.Sample(f"request {number}", (picture(number),), label="ab"[number % 2]) for number in range(7)]


class Touched(list[sk.Sample]):
    """Anchors that note which of them are read."""

    read: set[int]

    def __getitem__(self, index: Any) -> Any:
        self.read.add(index)
        return super().__getitem__(index)


def test_states_on_the_disk_make_the_vector_of_one_fit(measured_llava: ReadByHooks, tmp_path: Path) -> None:
    method = sk.CMRM(aggregate="pca")
    whole = method.fit(measured_llava, ANCHORS, batch_size=2, anchor_name="seven", anchor_license="MIT")
    assert method.blocks(measured_llava, ANCHORS, batch_size=2) == range(4)
    files = []
    for number, blocks in enumerate(([3], [1, 0], [2])):
        state = method.measure(measured_llava, ANCHORS, blocks, batch_size=2)
        files.append(state.save(tmp_path / f"{number}"))
    states = [State.load(file) for file in files]
    found = method.finish(measured_llava, states, anchor_name="seven", anchor_license="MIT")
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in whole.tensors.items())
    assert found.tensors.keys() == whole.tensors.keys()
    ours, theirs = (each.metadata.model_dump(exclude={"created"}) for each in (found, whole))
    assert ours == theirs
    for refused, why in (
        (states[1:], "were not measured"),
        ([*states, states[0]], "in two of"),
        ([], "nothing is given"),
    ):
        with pytest.raises(CheckpointError, match=why):
            method.finish(measured_llava, refused)
    with pytest.raises(CheckpointError, match="another extraction: its config"):
        sk.CMRM().finish(measured_llava, states)


def test_a_worker_reads_its_own_anchors_alone(measured_llava: ReadByHooks) -> None:
    anchors = Touched(ANCHORS)
    anchors.read = set()

    class Plain(sk.CMRM):
        def plan(self, model: Any, anchors: Any) -> Any:
            return sk.methods.Plan([0, 1], shown=(True, "text"))

    Plain().measure(measured_llava, anchors, 1, batch_size=3)
    assert anchors.read == {3, 4, 5}


def test_a_worker_goes_on_from_its_checkpoint(measured_llava: ReadByHooks, tmp_path: Path) -> None:
    method, path = sk.CMRM(), tmp_path / "state"
    method.measure(measured_llava, ANCHORS, [0, 3], batch_size=2, checkpoint=path)
    told: list[tuple[int, int]] = []
    state = method.measure(
        measured_llava, ANCHORS, range(4), batch_size=2, checkpoint=path, progress=lambda *now: told.append(now)
    )
    assert told == [(5, 7), (7, 7)]
    assert state.blocks == set(range(4))


def test_a_block_that_there_is_not(measured_llava: ReadByHooks) -> None:
    for block in (4, -1, [0, 9]):
        with pytest.raises(OptionError, match="there is no block"):
            sk.CMRM().measure(measured_llava, ANCHORS, block, batch_size=2)
