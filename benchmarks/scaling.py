"""What more workers are worth to an extraction, and where its time, traffic and memory go.

    python benchmarks/scaling.py [--tables workers cluster memory] [--rounds 3] [--anchors 100000] [--seconds 0.1]

`workers` measures: the same extraction on one Ray worker and on two, in turns, and what the second is worth; the time
begins with the first task that is done, so starting and loading are not in it. By the clock, that is true of a machine
with nothing else to do; by processor time, the one worker's beside that of the busier of two, also of a busy one, but
that it leaves out what workers wait for. `cluster` computes: an extraction from
a model of 7 billion parameters on 8, 64 and 1,000 workers, from `--seconds`, the time that one anchor takes on one of
them, and from the time that joining states of that size takes, which is measured here on one of 32 layers.
`memory` counts what each method keeps of a tiny model, and computes it for the large one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import ray
import torch
from overhead import build
from rich.console import Console
from rich.table import Table

import steerkit as sk
from steerkit import scale
from steerkit.demo import METHODS, anchors, model_path
from steerkit.evaluation import read_methods
from steerkit.methods import State
from steerkit.methods._moments import LARGE, Moments
from steerkit.scale._cluster import JOINED

LAYERS, HIDDEN, BATCH = 32, 4096, 8


def workers(rounds: int) -> Table:
    """The rate of two workers beside that of one."""
    columns = ("anchors a second with one worker", "with two", "ratio", "processor s of one", "of the busier of two")
    table = Table(*columns, "ratio", "s of the process that asks", title="extraction, measured")
    requests = anchors(48, ["harmful"])
    with tempfile.TemporaryDirectory() as place:
        vlm = build("50m", "cpu")
        vlm.model.save_pretrained(f"{place}/model")
        vlm.processor.save_pretrained(f"{place}/model")
        ratios: list[tuple[float, float]] = []
        for number in range(rounds):
            rates: dict[int, float] = {}
            work: dict[int, float] = {}
            asking = 0.0
            for count in ((1, 2), (2, 1))[number % 2]:
                told: list[tuple[float, int, dict[int, float]]] = []
                with scale.cluster(f"{place}/model", workers=count) as cluster:
                    cluster.fit(
                        sk.CMRM(),
                        requests,
                        folder=f"{place}/{number}-{count}",
                        batch_size=2,
                        blocks_per_task=1,
                        progress=lambda done, _, told=told: told.append((time.perf_counter(), done, used())),
                    )
                (began, first, before), (ended, last, after) = told[0], told[-1]
                rates[count] = (last - first) / (ended - began)
                seconds = {process: after[process] - before[process] for process in after}
                asking = seconds.pop(0)
                work[count] = max(seconds.values())
            ratios.append((rates[2] / rates[1], work[1] / work[2]))
            cells = (rates[1], rates[2], ratios[-1][0], work[1], work[2], ratios[-1][1], asking)
            table.add_row(*(f"{each:.2f}" for each in cells))
        table.caption = "medians {:.2f} and {:.2f}".format(*map(statistics.median, zip(*ratios, strict=True)))
    return table


def used() -> dict[int, float]:
    """Seconds of processor time of each worker, and of this process as 0."""
    found = {0: time.process_time()}
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::Worker" in part for part in process.info["cmdline"] or ()):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found


def a_state(template: State, level: int, place: int, layers: int, second: bool, blocks: int) -> State:
    """One subtree of the blocks of a large model, or of some of its layers."""
    rows = min(BATCH << level, HIDDEN) if second else 1  # from `HIDDEN` on a state holds a sum of squares, of one size
    sizes = {"layers": tuple(range(layers)), "anchors": blocks * BATCH, "block_size": BATCH}
    extraction = template.extraction.model_copy(update=sizes)
    some = next(iter(template.samples.values()))
    mine = range(place << level, min((place + 1) << level, blocks))
    samples = {number: some for block in mine for number in extraction.span(block)}
    groups = {"shift": {layer: Moments.of(torch.randn(rows, HIDDEN), second=second) for layer in range(layers)}}
    return State(extraction, samples, {(level, place): groups})


def joining(template: State, level: int, second: bool, blocks: int, place: Path) -> tuple[float, float]:
    """Seconds for joining the states of eight neighbours, and the MiB of each."""
    layers = 1 if second else LAYERS  # large states are measured by the layer, small ones whole
    states = [a_state(template, level, number, layers, second, blocks) for number in range(JOINED)]
    paths = [state.save(place / f"{number}.safetensors") for number, state in enumerate(states)]
    size = paths[0].stat().st_size / 2**20
    began = time.perf_counter()
    first, *others = map(State.load, paths)
    first.merge(*others).save(place / "joined.safetensors")
    return (time.perf_counter() - began) * LAYERS / layers, size * LAYERS / layers


def cluster(total: int, seconds: float) -> Table:
    """Time and traffic at three sizes of a cluster."""
    template = sk.CMRM().measure(sk.load(model_path("llava")), anchors(8, ["harmful"]), [0])
    blocks = 2 ** math.ceil(math.log2(total / BATCH))
    table = Table(
        *("kept", "workers", "tasks", "state MiB", "measuring s", "joining s", "written MiB/s", "useful"),
        title=f"{total:,} anchors of {HIDDEN} x {LAYERS}, {seconds:g} s each: computed, from joins measured on a layer",
    )
    for name, second in (("means", False), ("rows, then squares", True)):
        for count in (8, 64, 1000):
            first = level = min(6, max(1, total // BATCH // (4 * count)).bit_length() - 1)
            tasks = left = -(-total // (BATCH << level))
            joined = traffic = own = 0.0
            while left > 1:
                with tempfile.TemporaryDirectory() as place:
                    took, size = joining(template, min(level, blocks.bit_length() - 4), second, blocks, Path(place))
                own = own or size
                traffic += left * size
                left = -(-left // JOINED)
                joined += -(-left // count) * took
                level += JOINED.bit_length() - 1
            measuring = -(-tasks // count) * (BATCH << first) * seconds
            numbers = (own, measuring, joined, traffic / (measuring + joined))
            useful = f"{total * seconds / count / (measuring + joined):.0%}"
            table.add_row(name, str(count), str(tasks), *(f"{number:,.0f}" for number in numbers), useful)
    return table


def memory(total: int) -> Table:
    """What a state of all anchors keeps, by method."""
    table = Table(
        *("method", "16 anchors", "64 anchors", f"{total:,} of {HIDDEN} x {LAYERS}: memory", "disk"),
        title="kept by a worker, measured on a tiny model and computed for a large one",
    )
    vlm = sk.load(model_path("llava"))
    depth = math.ceil(math.log2(-(-total // BATCH))) + 1
    # a subtree of fewer rows than `HIDDEN` holds them, and all of these together hold no more than one sum of squares
    squares = max(0, depth - math.ceil(math.log2(HIDDEN / BATCH))) + 1
    for name, settings in read_methods(METHODS).items():
        held: list[State] = []
        for count in (16, 64):
            keep = 1 if settings.per_label == 1 else None  # a pair is all that the method takes
            method, chosen = settings.model_copy(update={"per_label": keep}).entry(anchors(count // 2))
            numbers = method.blocks(vlm, chosen, batch_size=BATCH)
            held += [method.measure(vlm, chosen, numbers, batch_size=BATCH)] if numbers else []
        if not held:
            table.add_row(name, "nothing", "nothing", "nothing", "nothing")
            continue
        sizes = [_bytes(state) for state in held]
        ram = disk = 0
        groups = held[-1].groups()
        for each in groups.values():
            for moments in list(each.values())[:1]:
                share = moments.count / 64
                sums = 8 * HIDDEN
                second = (moments.rows is not None or moments.outer is not None) * 8 * HIDDEN**2
                rows = bool(moments.kept) * 4 * HIDDEN * int(total * share)
                ram += LAYERS * (depth * sums + (rows if rows < LARGE else 0))
                disk += LAYERS * (squares * second + (rows if rows >= LARGE else 0))
        table.add_row(name, *(f"{size / 1024:,.0f} KiB" for size in sizes), _shown(ram), _shown(disk))
    return table


def _bytes(state: State) -> int:
    found = 0
    for groups in state.nodes.values():
        for layers in groups.values():
            for moments in layers.values():
                parts = (moments.total, moments.rows, moments.outer, *moments.kept)
                found += sum(each.nbytes for each in parts if each is not None)
    return found


def _shown(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=["workers", "cluster", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--anchors", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=0.1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    if "workers" in given.tables:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
        console.print(workers(given.rounds))
        ray.shutdown()
    if "cluster" in given.tables:
        console.print(cluster(given.anchors, given.seconds))
    if "memory" in given.tables:
        console.print(memory(given.anchors))


if __name__ == "__main__":
    main()
