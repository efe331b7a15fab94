"""The form that operations are compiled to, against formulas written here. No engine."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

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
from steerkit_vllm.arithmetic import GATE, NUMBERS, Rows, advance
from steerkit_vllm.asking import KEYS, Asked, asked, meant
from steerkit_vllm.banks import _with_gates
from steerkit_vllm.changes import served
from steerkit_vllm.plans import Planner, measured_at, receipt, salt, with_changes
from steerkit_vllm.settings import Room, settings_of

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


def run(pack: changes.Served, x: torch.Tensor, strength: float = 1.0, layer: int = 3) -> torch.Tensor:
    """What the workers' arithmetic makes of states, with every change of a pack at work on every token."""
    room = pack.room
    now = start = x
    for change in pack.changes:
        for at in range(change.depth):
            numbers = change.tensors["numbers"][layer, at : at + 1]
            numbers = _with_gates(numbers, len(NUMBERS) + room.gates * len(GATE))
            spread = lambda name, at=at, change=change: (  # noqa: E731
                change.tensors[name][layer, at].expand_as(x) if name in change.tensors else torch.zeros_like(x)
            )
            rows = Rows(
                numbers.expand(len(x), -1),
                torch.full((len(x),), strength),
                spread("u"),
                (spread("rule"), spread("rule_from")) if room.rule else None,
                tuple((spread(f"gate{k}"), spread(f"gate{k}_from")) for k in range(room.gates)),
            )
            now, start = advance(now, start, rows, squashed=room.squashed)
    return now


def states(seed: int = 0, count: int = 33) -> torch.Tensor:
    return 3.0 * torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


D = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
B = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(2))
U = (D.double() / D.double().norm()).float()


def span(x: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(B.double().T).Q
    return (x.double() @ basis @ basis.T).float()


@pytest.mark.parametrize(
    ("operation", "directions", "expected"),
    [
        (Add(), {"": D}, lambda x, s: x + s * D),
        (Add(relative=True), {"": D}, lambda x, s: x + s * x.norm(dim=1, keepdim=True) * U),
        (Ablate(), {"": D}, lambda x, s: x - s * (x @ U)[:, None] * U),
        (Ablate(), {"": B}, lambda x, s: x - s * span(x)),
        (Scale(factor=-2.5), {"": D}, lambda x, s: x + s * -3.5 * (x @ U)[:, None] * U),
        (Clamp(minimum=-1.0, maximum=0.5), {"": D}, lambda x, s: x + s * ((x @ U).clamp(-1, 0.5) - x @ U)[:, None] * U),
        (Clamp(minimum=0.3), {"": D}, lambda x, s: x + s * ((x @ U).clamp(min=0.3) - x @ U)[:, None] * U),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_operations_are_their_formulas(base, architecture, operation, directions, expected, kept, strength):
    vector = made(base, directions, Intervention(operation=operation, norm_preserving=kept))
    pack = served("p", vector, architecture, torch.float32)
    x = states()
    want = expected(x, strength)
    if kept:
        want = want * x.norm(dim=1, keepdim=True) / want.norm(dim=1, keepdim=True)
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
