"""The form that operations are compiled to, against formulas written here. No engine."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

import steerkit as sk
from steerkit import demo
from steerkit.errors import EngineError, SteerKitError
from steerkit.interventions import (
    OPERATIONS,
    Ablate,
    Add,
    Clamp,
    Gate,
    Gates,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    StoredDirection,
)
from steerkit.vectors import Key, SteeringVector
from steerkit_vllm import changes, register
from steerkit_vllm.asking import KEYS, Asked, asked, meant
from steerkit_vllm.changes import served
from steerkit_vllm.plans import Planner, measured_at, receipt, salt, with_changes
from steerkit_vllm.settings import Room, settings_of
from steerkit_vllm.worker import Steering

HIDDEN, LAYERS = 96, 8


@pytest.fixture(scope="module")
def base() -> SteeringVector:
    return sk.load_vector("cmrm-llava-demo")


@pytest.fixture(scope="module")
def architecture():
    from steerkit.models import Architecture

    return Architecture(
        layers="layers",
        layer_count=LAYERS,
        hidden_size=HIDDEN,
        marks="ids",
        image_token_ids=frozenset({3}),
        mlp=("mlp",) * LAYERS,
        attention=("self_attn",) * LAYERS,
    )


def made(base: SteeringVector, directions: dict[str, torch.Tensor], *interventions: Intervention) -> SteeringVector:
    tensors = {Key(3, each.site, name): tensor for each in interventions[:1] for name, tensor in directions.items()}
    return SteeringVector(
        tensors, base.metadata.model_copy(update={"interventions": interventions, "fingerprint": None})
    )


class Same(torch.nn.Module):
    """A block that changes nothing, and returns its states as vLLM's do: alone, or in two parts."""

    def forward(self, *parts: torch.Tensor) -> Any:
        return parts if len(parts) > 1 else parts[0]


def worker(room: Room, eager: bool) -> tuple[Steering, torch.nn.ModuleList]:
    """A worker with nothing of vLLM in it, and its blocks."""
    blocks = torch.nn.ModuleList(Same() for _ in range(LAYERS))
    config = SimpleNamespace(
        additional_config={"steerkit": {"allocated": room.model_dump()}},
        model_config=SimpleNamespace(get_hidden_size=lambda: HIDDEN, enforce_eager=eager),
        scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=512),
    )
    model = SimpleNamespace(model=SimpleNamespace(layers=blocks))
    return Steering(SimpleNamespace(get_model=lambda: model, device=torch.device("cpu")), config), blocks


def written(steering: Steering, packs: list[changes.Served]) -> list[list[tuple[int, int]]]:
    """Give a worker packs; by pack the site and row of each of its changes' rows."""
    row, found = 1, []
    for pack in packs:
        found.append([])
        for change in pack.changes:
            steering.add(change.site, row, save({name: each.contiguous() for name, each in change.tensors.items()}))
            found[-1] += [(change.site, row + at) for at in range(change.depth)]
            row += change.depth
    return found


def plan(rows: list[tuple[int, int]], runs: list[list[Any]]) -> dict[str, Any]:
    changes = [[site, depth, row, -1, runs] for depth, (site, row) in enumerate(rows)]
    return {"prompt": 512, "changes": changes, "vectors": []}


def run(pack: changes.Served, x: torch.Tensor, strength: float = 1.0, layer: int = 3) -> torch.Tensor:
    """What a worker makes of the states of a layer, with every change of a pack at work on every token."""
    found = []
    for room in (pack.room, pack.room.joined(Room(depth=4, general=True, gates=3, rule=True, squashed=True))):
        both = []
        for eager in (True, False):
            steering, blocks = worker(room, eager)
            (rows,) = written(steering, [pack])
            steering.begin([("a", plan(rows, [[0, len(x), strength]]), 0, 0, len(x))])
            both.append(blocks[layer](x))
        torch.testing.assert_close(*both, rtol=1e-6, atol=1e-6)  # what an eager engine leaves out changes nothing
        found.append(both[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    return found[0]


def states(seed: int = 0, count: int = 33) -> torch.Tensor:
    return 3.0 * torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


D = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
B = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(2))
U = (D.double() / D.double().norm()).float()


def span(x: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(B.double().T).Q
    return (x.double() @ basis @ basis.T).float()


FORMULAS = [
    (Add(), {"": D}, lambda x, s: x + s * D),
    (Add(relative=True), {"": D}, lambda x, s: x + s * x.norm(dim=1, keepdim=True) * U),
    (Ablate(), {"": D}, lambda x, s: x - s * (x @ U)[:, None] * U),
    (Ablate(), {"": B}, lambda x, s: x - s * span(x)),
    (Scale(factor=-2.5), {"": D}, lambda x, s: x + s * -3.5 * (x @ U)[:, None] * U),
    (Clamp(minimum=-1.0, maximum=0.5), {"": D}, lambda x, s: x + s * ((x @ U).clamp(-1, 0.5) - x @ U)[:, None] * U),
    (Clamp(minimum=0.3), {"": D}, lambda x, s: x + s * ((x @ U).clamp(min=0.3) - x @ U)[:, None] * U),
]
"""An operation, its directions, and what it makes of states at a strength."""


def as_long(x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return x * before.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("operation", "directions", "expected"), FORMULAS)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_operations_are_their_formulas(base, architecture, operation, directions, expected, kept, strength):
    vector = made(base, directions, Intervention(operation=operation, norm_preserving=kept))
    pack = served("p", vector, architecture, torch.float32)
    x = states()
    want = expected(x, strength)
    if kept:
        want = as_long(want, x)
    found = run(pack, x, strength)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert (found - x).abs().max() > 1e-2
    torch.testing.assert_close(run(pack, x, layer=2), x, rtol=0, atol=0)  # a layer that it does not steer


def test_gates_and_measured_strengths_read_the_state_that_the_intervention_found(base, architecture):
    cosine = Gate(measure=Measure(kind="cosine", direction=StoredDirection(name="w")), threshold=0.0)
    squashed = Gate(
        measure=Measure(kind="tanh_cosine", direction=StoredDirection(name="w")), threshold=0.1, above=False
    )
    rule = LinearStrength(
        measure=Measure(kind="projection", direction=StoredDirection(name="w"), reference=StoredDirection(name="r")),
        slope=0.5,
        intercept=0.2,
        minimum=-1.0,
        maximum=1.5,
    )
    w, r = states(7, 1)[0], states(8, 1)[0]
    line = w / w.norm()
    x = states(9, 200)
    p = (x @ line)[:, None] * line
    tanh = torch.nn.functional.cosine_similarity(x, p.tanh())
    for gates, opened in (
        (cosine, x @ line > 0),
        (squashed, ~(tanh > 0.1)),
        (Gates(combine="any", gates=(cosine, squashed)), (x @ line > 0) | ~(tanh > 0.1)),
        (Gates(combine="all", gates=(cosine, squashed)), (x @ line > 0) & ~(tanh > 0.1)),
    ):
        vector = made(base, {"": B, "w": w, "r": r}, Intervention(operation=Ablate(), gate=gates, strength=rule))
        found = run(served("p", vector, architecture, torch.float32), x, 2.0)
        dose = 2.0 * (0.5 * ((x - r) @ line) + 0.2).clamp(-1.0, 1.5)
        want = torch.where(opened[:, None], x - dose[:, None] * span(x), x)
        assert opened.any()
        assert not opened.all()
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_tokens_of_one_step_undergo_what_their_requests_ask_for(base, architecture):
    """Packs of all kinds in steps of all sizes, and the steps after them, in which other rows are at work."""
    w, r = states(7, 1)[0], states(8, 1)[0]
    line, stored = w / w.norm(), StoredDirection(name="w")
    opened = lambda x: torch.nn.functional.cosine_similarity(x, line.expand_as(x)) > 0.02  # noqa: E731
    along = lambda x: (0.5 * ((x - r) @ line) + 0.2).clamp(-1.0, 1.5)[:, None]  # noqa: E731
    gate = Gate(measure=Measure(kind="cosine", direction=stored), threshold=0.02)
    below = gate.model_copy(update={"above": False})
    rule = LinearStrength(
        measure=Measure(kind="projection", direction=stored, reference=StoredDirection(name="r")),
        **{"slope": 0.5, "intercept": 0.2, "minimum": -1.0, "maximum": 1.5},
    )
    kinds = []
    for operation, directions, formula in FORMULAS:
        made_of = directions | {"w": w, "r": r}
        gated = lambda x, s, f=formula: torch.where(opened(x)[:, None], f(x, s), x)  # noqa: E731
        closed = lambda x, s, f=formula: torch.where(opened(x)[:, None], x, as_long(f(x, s), x))  # noqa: E731
        ruled = lambda x, s, f=formula: x + along(x) * (f(x, s) - x)  # noqa: E731
        for options, expected in (
            ({}, formula),
            ({"norm_preserving": True}, lambda x, s, f=formula: as_long(f(x, s), x)),
            ({"gate": gate}, gated),
            ({"gate": below, "norm_preserving": True}, closed),
            ({"strength": rule}, ruled),
        ):
            kinds.append((made(base, made_of, Intervention(operation=operation, **options)), expected))
    packs = [served(f"p{at}", vector, architecture, torch.float32) for at, (vector, _) in enumerate(kinds)]
    room = functools.reduce(Room.joined, (pack.room for pack in packs)).joined(Room(rows=100, depth=6))
    draw = random.Random(0)
    workers = [worker(room, eager) for eager in (True, False)]
    rows, same = (written(steering, packs) for steering, _ in workers)
    assert rows == same
    seen = set()
    for step in range(60):
        count = draw.choice((1, 2, 8, 30))
        asked = [draw.sample(range(len(packs)), draw.choice((0, 1, 1, 2))) for _ in range(count)]
        if step % 3 == 0:
            asked = [asked[0]] * count
        plans = [plan([row for pack in mine for row in rows[pack]], [[0, 2**31, 0.7]]) for mine in asked]
        batch = [(f"{step} {at}", each, 7, at, 1) for at, each in enumerate(plans)]
        x, residual = states(step, count), states(100 + step, count)
        found = []
        for steering, blocks in workers:
            steering.begin(batch)
            assert torch.equal(sum(blocks[2](x, residual)), x + residual), "a layer that no pack steers"
            found.append(blocks[3](x, residual))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
        for at, mine in enumerate(asked):
            if not mine:
                assert torch.equal(found[0][0][at], x[at])
                assert torch.equal(found[0][1][at], residual[at])
                continue
            want = (x + residual)[at : at + 1]
            for pack in mine:
                want = kinds[pack][1](want, 0.7)
            torch.testing.assert_close(sum(found[0])[at : at + 1], want, rtol=1e-3, atol=1e-3)
            seen |= set(mine)
    assert len(seen) == len(packs)


def test_every_operation_is_compiled_or_refused_by_name(base, architecture, monkeypatch):
    assert set(OPERATIONS) == set(changes.COMPILED), "a new operation needs its rows, or stays refused"
    vector = made(base, {"": D}, Intervention(operation=Scale(factor=2.0)))
    monkeypatch.delitem(changes.COMPILED, "scale")
    with pytest.raises(EngineError, match="operation 'scale' has not been compiled"):
        served("p", vector, architecture, torch.float32)


CONTRAST = MeasuredContrast(form="literal")


@pytest.mark.parametrize(
    ("intervention", "named"),
    [
        (Intervention(rows=(1.0, 2.0)), "rows"),
        (Intervention(gate=Gate(measure=Measure(kind="cosine", layer=3, pool="mean"), threshold=0.0)), "mean"),
        (Intervention(gate=Gate(measure=Measure(kind="cosine", state=CONTRAST), threshold=0.0)), "another view"),
        (Intervention(operation=Add(direction=MeasuredContrast(negative="caption"))), "caption"),
        (
            Intervention(
                gate=Gates(
                    gates=(
                        Gate(measure=Measure(kind="cosine", layer=3), threshold=0.0),
                        Gate(measure=Measure(kind="cosine"), threshold=0.0),
                    )
                )
            ),
            "gates on the prompt and on the token",
        ),
        (Intervention(site="mlp_out", gate=Gate(measure=Measure(kind="cosine", layer=3), threshold=0.0)), "mlp_out"),
    ],
)
def test_what_is_not_served_is_refused_by_name(base, architecture, intervention, named):
    vector = made(base, {"": D}, intervention)
    with pytest.raises(EngineError, match=named):
        served("p", vector, architecture, torch.float32)


# -- plans -------------------------------------------------------------------------------------------------------------


def plan_of(base, architecture, ids, horizon, intervention, strength=1.0):
    vector = made(base, {"": D}, intervention)
    pack = served("p", vector, architecture, torch.float32)
    rows = {change: 1 + at for at, change in enumerate(pack.changes)}
    planner = Planner(architecture, lambda ids, real: torch.zeros(1, dtype=torch.long), Room(depth=4), rows)
    wish = asked({"steerkit_pack": "p", "steerkit_strength": strength}, {"p": pack})
    assert wish is not None
    parts = planner.parts(wish, ids, horizon)
    return planner.plan(parts, len(ids), {})


def positions(plan, count):
    """Positions and coefficients of the first change, written out."""
    found = {}
    for change in plan["changes"]:
        for start, stop, coefficient in change[-1]:
            found.update({at: coefficient for at in range(start, min(stop, count))})
    return found


IDS = [1, 9, 3, 3, 3, 8, 7, 6]  # two of text, three of an image, three of text


@pytest.mark.parametrize(
    ("intervention", "expected"),
    [
        (Intervention(tokens="last"), {7: 2, 8: 2, 9: 2, 10: 2, 11: 2}),
        (Intervention(tokens="last", phase="prompt"), {7: 2}),
        (Intervention(tokens="image"), {2: 2, 3: 2, 4: 2}),
        (Intervention(tokens="text"), {0: 2, 1: 2, 5: 2, 6: 2, 7: 2}),
        (Intervention(tokens="after_image"), {5: 2, 6: 2, 7: 2}),
        (Intervention(tokens="generated"), {8: 2, 9: 2, 10: 2, 11: 2}),
        (Intervention(tokens="all", positions=(1, (-2, None))), {1: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 2, 11: 2}),
        (Intervention(tokens="generated", steps=(1.0, 0.0, 0.5)), {8: 2, 10: 1, 11: 1}),
        (Intervention(tokens="last", rows=(0.5,)), {7: 1, 8: 1, 9: 1, 10: 1, 11: 1}),
        (Intervention(tokens="all", prompts="without_image"), {}),
    ],
)
def test_a_plan_names_the_positions(base, architecture, intervention, expected):
    plan, _ = plan_of(base, architecture, IDS, 4, intervention, 2.0)
    assert positions(plan, 12) == pytest.approx(expected)


def test_the_salt_is_the_content(base, architecture):
    def salted(intervention, strength, theirs=None):
        return salt(plan_of(base, architecture, IDS, 4, intervention, strength)[1], theirs)

    one = salted(Intervention(tokens="last"), 1.0)
    assert one == salted(Intervention(tokens="last"), 1.0)
    others = {
        salted(Intervention(tokens="last"), 1.5),
        salted(Intervention(tokens="all"), 1.0),
        salted(Intervention(tokens="last", norm_preserving=True), 1.0),
        salted(Intervention(tokens="last"), 1.0, "tenant"),
        one,
    }
    assert len(others) == 5


# -- requests ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_malformed_requests_are_refused_with_a_text(base, architecture):
    pack = served("p", made(base, {"": D}, Intervention()), architecture, torch.float32)
    packs = {"p": pack, "q": pack}
    noise = torch.Generator().manual_seed(3)
    values = [
        *(
            "",
            "nope",
            "P",
            "p ",
            None,
            True,
            [],
            ["p", "p"],
            ["p", 3],
            [["p"]],
            {"p": 1},
            1,
            1.5,
            b"p",
            "\0",
            "p" * 9999,
        ),
        *(float("nan"), float("inf"), -float("inf"), 1e300, "1", "1e3", "abc", [1.0, 2.0, 3.0], ["1"], [None], 10**30),
    ]
    names = [
        *KEYS,
        "steerkit_stength",
        "steerkit",
        "steer_pack",
        "Steerkit_pack",
        "steerkit_pack ",
        "STEERKIT_STRENGTH",
    ]

    def pick(among: list) -> object:
        return among[int(torch.randint(len(among), (1,), generator=noise))]

    refused = 0
    while refused < 10_000:
        given = {str(pick(names)): pick(values) for _ in range(1 + int(torch.randint(4, (1,), generator=noise)))}
        if pick([0, 1, 2]):
            given["steerkit_pack"] = pick(["p", ["p", "q"]])
        try:
            found = asked(given, packs)
        except SteerKitError as error:
            refused += bool(str(error))
            continue
        # what is taken is well formed: known keys alone, a known pack, finite strengths
        assert found is not None
        assert set(given) <= set(KEYS)
        assert given["steerkit_pack"] in ("p", ["p", "q"])
        assert all(abs(strength) <= 1e6 for _, strength in found.packs)
        assert not isinstance(given.get("steerkit_strength"), str | bool | dict)
    assert asked({"other": 1}, packs) is None
    assert meant(["seed", "ste", "kit_pack", "pack"]) == []
    assert meant(["sterkit_pack", "streekit_strength", "Stearkit_Receipt"]) != []


def test_settings_are_checked():
    assert settings_of({}) is None
    assert settings_of({"steerkit": {"packs": {"a": "b"}}}).packs == {"a": "b"}
    for wrong in ({"pakcs": {}}, {"packs": ["a"]}, {"policy": "lax"}, {"room": {"depth": -1}}, 3):
        with pytest.raises(SteerKitError, match="malformed settings"):
            settings_of({"steerkit": wrong})


def test_a_receipt_says_where_and_by_how_much():
    plan = {"prompt": 9, "changes": [[0, 0, 3, -1, [[2, 4, 1.0]]], [1, 0, 4, -1, [[8, 2**31, 1.0]]]], "vectors": []}
    assert measured_at(plan) == 8
    assert measured_at({**plan, "changes": [[0, 0, 3, -1, [[9, 2**31, 1.0]]]]}) == 9
    assert measured_at({**plan, "changes": []}) is None
    asked = Asked((), True)
    found = receipt([], {**plan, "measure": ["t", 8]}, asked, 3)
    first, second = found["sites"]
    first["layers"] = second["layers"] = [0, 2]
    with_changes(found, [(0, 0, 0.25), (0, 2, 0.5), (1, 0, 0.75), (1, 2, 1.0)])
    assert found["measured_at"] == 8
    assert first["relative_change"] is None  # the token is not steered at that site
    assert second["relative_change"] == {"0": 0.75, "2": 1.0}
    assert (first["prompt_tokens"], second["prompt_tokens"], second["generated_tokens"]) == (2, 1, 2)
    again = receipt([], {**plan, "measure": ["t", 8]}, asked, 3)
    again["sites"][1]["layers"] = [0, 2]
    with_changes(again, [])  # it came from the prefix cache
    assert [site["relative_change"] for site in again["sites"]] == [None, None]


@pytest.mark.parametrize("found", ["0.31.2", "0.33.0", "0.320.0", "1.32.0", "0.3"])
def test_another_version_of_vllm_is_refused(monkeypatch, found):
    monkeypatch.setattr("vllm.__version__", found)
    with pytest.raises(RuntimeError, match=rf"knows the internals of vLLM 0\.32, and {found} is installed"):
        register()


def test_a_part_of_another_name_is_not_taken_for_it(base, architecture):
    other = dataclasses.replace(architecture, mlp=("feed_forward",) * LAYERS)
    pack = made(base, {"": torch.ones(HIDDEN)}, Intervention(site="mlp_out", tokens="all"))
    served("pack", pack, architecture, torch.float32)
    with pytest.raises(EngineError, match="'feed_forward' in block 3"):
        served("pack", pack, other, torch.float32)


def test_vectors_are_made_where_there_is_no_nnsight():
    assert importlib.util.find_spec("nnsight") is None, "the environment beside vLLM goes without"
    vlm, anchors = sk.load(demo.model_path("llava")), demo.anchors(4, ["harmful"])
    vector = sk.CMRM().fit(vlm, anchors, engine="hooks")
    assert vector.metadata.versions.keys() == {"steerkit-vlm", "torch", "transformers"}
    with pytest.raises(EngineError, match="pass engine='hooks'"):
        sk.CMRM().fit(vlm, anchors)
