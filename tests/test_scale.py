"""Extraction on a real Ray: the bits of one process, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import picture

import steerkit as sk
from steerkit import evaluation, scale
from steerkit.errors import CheckpointError, EngineError, LabelError, OptionError
from steerkit.testing import tiny

ray: Any = pytest.importorskip("ray")

ANCHORS = [
    sk.Sample(f"request {number} of several", (picture(number),), label=("harmful", "harmless")[number % 2])
    for number in range(22)
]
LABELS = {"positive": "harmful", "negative": "harmless"}
METHODS = {
    "mean": sk.CMRM(),
    "pca": sk.CMRM(aggregate="pca"),
    "sample level": sk.CMRM(level="sample"),
    "caa": sk.methods.CAA(**LABELS),
    "rows": sk.methods.ITI(**LABELS, heads=4),
    "pairs": sk.methods.RepE(**LABELS),
    "condition": sk.methods.CAST(),
    "unit": sk.methods.RefusalDirection(),
    "contrast": sk.methods.ShiftDC(),
    "gate": sk.methods.AdaSteer(),
    "pair": sk.methods.ActAdd(**LABELS),
    "patches": sk.methods.ASTRA(grid=2, masks=4, alpha=1.0),
    "subspace": sk.methods.VLMGuard(),
    "masked": sk.methods.VTI(**LABELS, grid=2, masks=2),
}
OF_ANCHORS = {"sample level": [], "pair": ANCHORS[:2], "patches": ANCHORS[:6], "masked": ANCHORS[:6]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    for part in tiny.build("llava"):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # sockets lie in the folder, and their names must be short
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pair(cluster: None, model: str) -> Iterator[scale.Cluster]:
    """Two workers for all tests in which nothing happens to them: each takes seconds to start."""
    with scale.cluster(model, workers=2) as made:
        yield made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What Ray gives a worker with one CPU: sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(
    method: sk.SteeringMethod,
    model: str,
    anchors: list[sk.Sample],
    workers: int | None = None,
    loading: dict[str, Any] | None = None,
    **options: Any,
) -> sk.SteeringVector:
    with scale.cluster(model, workers=workers, loading=loading) as cluster:
        return cluster.fit(method, anchors, **options)


def process_of_a_worker(cluster: scale.Cluster) -> int:
    return ray.get(cluster._actors[-1].__ray_call__.remote(lambda worker: os.getpid()))


def assert_equal(found: sk.SteeringVector, expected: sk.SteeringVector) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[key], tensor), key
    ours, theirs = (
        each.metadata.model_dump(mode="json", exclude={"created", "tensors_sha256"}) for each in (found, expected)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", METHODS)
def test_two_workers_make_the_bits_of_one_process(name: str, model: str, pair: scale.Cluster, tmp_path: Path) -> None:
    method = METHODS[name]
    anchors = OF_ANCHORS.get(name, ANCHORS)
    names = {"anchor_name": "requests", "anchor_license": "MIT"}
    told: list[tuple[int, int]] = []
    options: dict[str, Any] = {"batch_size": 3, "engine": "hooks", **names}
    found = pair.fit(
        method, anchors, folder=tmp_path, blocks_per_task=2, progress=lambda *at: told.append(at), **options
    )
    assert_equal(found, method.fit(sk.load(model), anchors, **options))
    assert told[-1:] == [(len(anchors),) * 2] * bool(told)
    if name in ("mean", "rows"):
        assert len(told) == len(list(tmp_path.iterdir())) == 4


def test_every_method_is_in_the_table() -> None:
    assert {each.name for each in METHODS.values()} == set(sk.methods.method_names())


def test_what_an_earlier_run_left_is_not_measured_again(model: str, pair: scale.Cluster, tmp_path: Path) -> None:
    method, told = sk.CMRM(), []
    options: dict[str, Any] = {"batch_size": 2, "engine": "hooks"}
    whole = fit(method, model, ANCHORS, folder=tmp_path, workers=1, blocks_per_task=3, **options)
    states = sorted(tmp_path.iterdir())
    states[1].unlink()
    (tmp_path / "join-0.safetensors").write_bytes(b"left by a run that was killed while it joined states")
    options |= {"blocks_per_task": 3}
    again = pair.fit(method, ANCHORS, folder=tmp_path, progress=lambda *at: told.append(at), **options)
    assert told == [(22, 22)]
    assert_equal(again, whole)
    assert sorted(tmp_path.iterdir()) == states
    twice = tmp_path / "blocks-x.safetensors"
    twice.write_bytes(states[0].read_bytes())
    with pytest.raises(CheckpointError, match="anchors 0-5 were measured in two"):
        pair.fit(method, ANCHORS, folder=tmp_path, **options)
    twice.unlink()
    with pytest.raises(CheckpointError, match="another extraction: its config"):
        pair.fit(sk.CMRM(alpha=2.0), ANCHORS, folder=tmp_path, **options)
    states[0].write_bytes(states[0].read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        pair.fit(method, ANCHORS, folder=tmp_path, **options)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced(model: str, tmp_path: Path) -> None:
    killed: list[int] = []
    options: dict[str, Any] = {"batch_size": 2, "engine": "hooks"}
    with scale.cluster(model, workers=2) as cluster:
        worker = process_of_a_worker(cluster)

        def kill_one(done: int, total: int) -> None:
            if not killed:
                killed.append(worker)
                os.kill(worker, signal.SIGKILL)

        found = cluster.fit(sk.CMRM(), ANCHORS, folder=tmp_path, blocks_per_task=1, progress=kill_one, **options)
        assert process_of_a_worker(cluster) != worker
    assert killed
    assert_equal(found, sk.CMRM().fit(sk.load(model), ANCHORS, **options))


@pytest.mark.usefixtures("cluster")
def test_a_slow_worker_is_waited_for_and_given_less(model: str, tmp_path: Path) -> None:
    stopped: list[int] = []
    options: dict[str, Any] = {"batch_size": 1, "engine": "hooks"}
    with scale.cluster(model, workers=2) as cluster:
        worker = process_of_a_worker(cluster)

        def stop_one(done: int, total: int) -> None:
            if not stopped:
                stopped.append(worker)
                os.kill(worker, signal.SIGSTOP)
                threading.Timer(3.0, os.kill, (worker, signal.SIGCONT)).start()

        found = cluster.fit(METHODS["pca"], ANCHORS, folder=tmp_path, blocks_per_task=1, progress=stop_one, **options)
    assert stopped
    assert_equal(found, METHODS["pca"].fit(sk.load(model), ANCHORS, **options))


@pytest.mark.usefixtures("cluster")
def test_a_full_disk_is_told_and_nothing_on_it_is_lost(model: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)]
    if subprocess.run(small, capture_output=True, check=False).returncode:
        pytest.skip("only the administrator of a machine can make a small disk")
    options: dict[str, Any] = {"batch_size": 2, "engine": "hooks", "blocks_per_task": 1, "workers": 1}
    try:
        with pytest.raises(CheckpointError, match="No space left"):
            fit(METHODS["pca"], model, ANCHORS, folder=disk, **options)
        there = {path.name for path in disk.glob("blocks-*")}
        assert 0 < len(there) < 11
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        told: list[int] = []
        found = fit(METHODS["pca"], model, ANCHORS, folder=disk, progress=lambda n, _: told.append(n), **options)
        assert len(told) == 11 - len(there)
        assert_equal(found, METHODS["pca"].fit(sk.load(model), ANCHORS, batch_size=2, engine="hooks"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


_DRIVER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import test_scale, ray
from steerkit import evaluation, scale
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
def report(done, total):
    print(done, flush=True)
    time.sleep(300)
test_scale.fit(test_scale.METHODS["pca"], sys.argv[2], test_scale.ANCHORS, folder=sys.argv[3], batch_size=2,
    blocks_per_task=2, engine="hooks", progress=report)
"""


def test_a_killed_driver_goes_on(model: str, pair: scale.Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DRIVER, str(Path(__file__).parent), model, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir())
    told: list[int] = []
    options: dict[str, Any] = {"batch_size": 2, "engine": "hooks"}
    found = pair.fit(
        METHODS["pca"], ANCHORS, folder=tmp_path, blocks_per_task=2, progress=lambda n, _: told.append(n), **options
    )
    assert told[0] >= 8  # its worker may have finished a task more
    assert_equal(found, METHODS["pca"].fit(sk.load(model), ANCHORS, **options))


def test_errors_of_a_worker_are_ours(model: str, pair: scale.Cluster, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no anchor is labelled 'target'"):
        pair.fit(sk.methods.CAA(positive="target", negative="harmless"), ANCHORS, folder=tmp_path)
    with pytest.raises(OptionError, match="at most 4"):
        fit(sk.CMRM(), model, ANCHORS, folder=tmp_path, workers=5)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        pair.fit(sk.CMRM(), ANCHORS, folder=tmp_path / "file" / "folder")
    with pytest.raises(EngineError, match="lost"):
        fit(sk.CMRM(), model, ANCHORS, folder=tmp_path, workers=1, loading={"nonsense": object})


# -- answers ----------------------------------------------------------------------------------------------------------


def suite_of(count: int, first: int = 0) -> evaluation.Suite:
    """Prompts of several lengths, with pictures and without, so that batches are cut in more than one way."""
    cases = [
        evaluation.Case(
            sk.Sample(f"request {number} " + "of several " * (number % 3), (picture(number),) * bool(number % 4))
        )
        for number in range(first, first + count)
    ]
    return evaluation.Suite("several", tuple(cases[::2]), tuple(cases[1::2]), (), evaluation.PhraseJudge(), 6)


def conditions_of(vlm: sk.VLM) -> list[evaluation.Condition]:
    cmrm = sk.CMRM().fit(vlm, ANCHORS[:6])
    return [
        evaluation.Condition("text", images="text"),
        evaluation.Condition("image"),
        evaluation.Condition("cmrm", cmrm, strength=2.0),
        evaluation.Condition("cmrm", cmrm, strength=-1.0),
        evaluation.Condition("sample level", sk.CMRM(level="sample").fit(vlm, [])),
    ]


def test_workers_answer_as_one_process_does(model: str, pair: scale.Cluster, tmp_path: Path) -> None:
    vlm, suite = sk.load(model), suite_of(11)
    conditions = conditions_of(vlm)
    expected = evaluation.generate(vlm, suite, conditions, batch_size=3)
    assert len({answer.answer for answer in expected}) > 11  # steering changes some, else a wrong vector would pass
    told: list[int] = []
    found = evaluation.generate(
        vlm,
        suite,
        conditions,
        path=tmp_path / "answers.jsonl",
        batch_size=3,
        progress=lambda done, total: told.append(done),
        cluster=pair,
    )
    assert found == expected
    assert told[-1] == 55
    assert told == sorted(told)
    assert len(evaluation.read_records(tmp_path / "answers.jsonl", evaluation.Answer)) == 55
    again = evaluation.generate(vlm, suite, conditions, path=tmp_path / "answers.jsonl", batch_size=3)
    assert again == expected  # nothing is asked again


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_while_it_answers(model: str, tmp_path: Path) -> None:
    vlm, suite = sk.load(model), suite_of(8)
    conditions, killed = conditions_of(vlm)[:3], []
    with scale.cluster(model, workers=2) as cluster:
        worker = process_of_a_worker(cluster)

        def kill_one(done: int, total: int) -> None:
            if not killed:
                killed.append(worker)
                os.kill(worker, signal.SIGKILL)

        found = evaluation.generate(
            vlm, suite, conditions, batch_size=2, path=tmp_path / "a.jsonl", progress=kill_one, cluster=cluster
        )
        assert process_of_a_worker(cluster) != worker
    assert killed
    assert found == evaluation.generate(vlm, suite, conditions, batch_size=2)


def test_another_model_is_not_asked_of_the_workers(model: str, pair: scale.Cluster) -> None:
    other, suite = sk.load(model), suite_of(4)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1.5)
    conditions = [evaluation.Condition("image")]
    found = evaluation.generate(other, suite, conditions, cluster=pair)
    assert found == evaluation.generate(other, suite, conditions)
    assert found != evaluation.generate(sk.load(model), suite, conditions)


def test_a_comparison_by_workers_is_that_of_one_process(
    model: str, pair: scale.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, suite = sk.load(model), suite_of(6)
    given = ({"cmrm": sk.CMRM(), "sample level": sk.CMRM(level="sample")}, suite, ANCHORS[8:])
    with monkeypatch.context() as patch:
        patch.delattr(sk.SteeringMethod, "fit")  # in this process, where nothing is to be fitted
        sk.compare(vlm, *given, sweep=[0.5], folder=tmp_path / "ray", cluster=pair)
    sk.compare(vlm, *given, sweep=[0.5], folder=tmp_path / "one")
    assert {each.name for each in (tmp_path / "ray").iterdir()} == {each.name for each in (tmp_path / "one").iterdir()}
    for name in ("answers.jsonl", "verdicts.jsonl"):
        lines = [sorted((tmp_path / each / name).read_text().splitlines()) for each in ("ray", "one")]
        assert lines[0] == lines[1]
        assert len(lines[0]) >= 30


def test_a_study_by_workers_is_that_of_one_process(
    model: str, pair: scale.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites, dev = [replace(suite_of(10, 100), name="test")], [replace(suite_of(6, 200), name="dev")]
    options: dict[str, Any] = {"alphas": (1.0,), "layers": {}, "batch_size": 3}
    vlm = sk.load(model)
    with monkeypatch.context() as patch:
        patch.delattr(sk.SteeringMethod, "fit")
        evaluation.study(vlm, suites, [ANCHORS], dev, folder=tmp_path / "ray", cluster=pair, **options)
    evaluation.study(vlm, suites, [ANCHORS], dev, folder=tmp_path / "one", **options)
    for name in ("cells.csv", "comparisons.csv", "distances.csv", "powers.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    lines = [sorted((tmp_path / each / "answers.jsonl").read_text().splitlines()) for each in ("ray", "one")]
    assert lines[0] == lines[1]
    vectors = [
        {each.name: sk.SteeringVector.load(each) for each in (tmp_path / run / "vectors").iterdir()}
        for run in ("ray", "one")
    ]
    assert vectors[0].keys() == vectors[1].keys()
    for name, vector in vectors[1].items():
        assert_equal(vectors[0][name], vector)


# -- shards: workers that know nothing of each other -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_shards_are_neighbours_and_all_of_it(count: int) -> None:
    blocks = range(11)
    shards = [list(scale.shard(blocks, index, count)) for index in range(count)]
    assert [block for each in shards for block in each] == list(blocks)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0), (1, 0)])
def test_there_is_no_such_shard(index: int, count: int) -> None:
    with pytest.raises(OptionError, match="there is no shard"):
        scale.shard(range(4), index, count)
