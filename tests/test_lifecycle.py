"""Every registered method through its whole life on a demo model: fitted, saved, loaded, applied, and of effect.

A new method joins with a case in `CASES`: how it is configured, and on which anchors, so that the demo's LLaVA refuses
harmful requests that it would otherwise comply with because of their image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import steerkit as sk
from demo_training import world
from demo_training.world import anchors, samples
from steerkit.methods import SteeringMethod
from steerkit.models import Sample
from steerkit.vlm import VLM

COUNT = 16
"""Harmful requests, none of them among the anchors."""

Anchors = Sequence[Sample]


def without_images(chosen: Anchors, label: str) -> list[Sample]:
    return [replace(sample, images=(), label=label) for sample in chosen]


def neighbours(harmful: Anchors, harmless: Anchors) -> list[Sample]:
    return [sample for pair in zip(harmful, harmless, strict=True) for sample in pair]


@dataclass(frozen=True)
class Case:
    """One method, and what it is fitted on.

    Attributes:
        method: Configured for the toy world.
        anchors: Made of 20 harmful and 20 harmless requests, both with images.
        effect: On the refusals of harmful requests: `more`; `fewer`, at twice the strength; or `none`.
        spares: Whether harmless requests are left alone, bit for bit.
    """

    method: SteeringMethod
    anchors: Callable[[Anchors, Anchors], Anchors] = lambda harmful, harmless: [*harmful, *harmless]
    effect: Literal["more", "fewer", "none"] = "more"
    spares: bool = False


HARMFUL = {"positive": "harmful", "negative": "harmless"}
CASES: dict[str, list[Case]] = {
    "cmrm": [Case(sk.CMRM()), Case(sk.CMRM(level="sample"), lambda harmful, harmless: ())],
    "caa": [Case(sk.methods.CAA(**HARMFUL, layers=(5,), phase="prompt"))],
    "refusal_direction": [Case(sk.methods.RefusalDirection(images=True, tokens="last", coefficient=0.7))],
    "shiftdc": [Case(sk.methods.ShiftDC()), Case(sk.methods.ShiftDC(form="literal"))],
    # v is what the image changes, r where harmful requests lie without one
    "astra": [
        Case(
            sk.methods.ASTRA(source="pairs", layer=4, alpha=1.0),
            lambda harmful, _: [
                *harmful,
                *without_images(harmful, "masked"),
                *without_images(harmful, "harmless"),
            ],
        ),
        # no image here has a pattern to be found: what it finds to steer away from is what the model refuses by
        Case(
            sk.methods.ASTRA(grid=4, masks=16, layer=4, alpha=1.0),
            lambda harmful, harmless: [*harmful[:6], *harmless[:6]],
            effect="fewer",
        ),
    ],
    "repe": [Case(sk.methods.RepE(**HARMFUL)), Case(sk.methods.RepE(**HARMFUL, norm_preserving=True))],
    "adasteer": [
        Case(sk.methods.AdaSteer()),
        Case(sk.methods.AdaSteer(layers=(3, 4, 5), harmfulness_along="rejection")),
    ],
    "actadd": [
        Case(
            sk.methods.ActAdd(positive="harmful", negative="harmless", images=True),
            lambda harmful, harmless: [harmful[0], harmless[0]],
        )
    ],
    "iti": [Case(sk.methods.ITI(**HARMFUL, heads=8, alpha=1.0))],
    "cast": [Case(sk.methods.CAST(layers=(5,), pool="last"), spares=True)],
    "vlm_guard": [Case(sk.methods.VLMGuard())],
    "vti": [
        Case(sk.methods.VTI(**HARMFUL, alpha_text=2.0, masks=2, grid=4, mask_ratio=0.5), neighbours),
        # steadier pictures do not make the toy world's model refuse
        Case(
            sk.methods.VTI(**HARMFUL, parts="vision", alpha_image=2.0, masks=2, grid=4, mask_ratio=0.5),
            neighbours,
            effect="none",
        ),
    ],
}


def cases() -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{index}")
        for name in sk.methods.method_names()
        for index, case in enumerate(CASES.get(name, []))
    ]


def test_every_registered_method_has_a_case() -> None:
    assert set(sk.methods.method_names()) == set(CASES), "give the new method a case above"


@pytest.fixture(scope="module")
def requests() -> list[world.Prompt]:
    return world.prompts("harmful", "test", COUNT)


@pytest.fixture(scope="module")
def refused(demo: VLM, requests: list[world.Prompt]) -> Callable[..., float]:
    """`refused(vector, strength)`: the share of the requests that the model refuses; unsteered without a vector."""

    def share() -> float:
        answers = demo.generate(samples(requests), batch_size=COUNT, max_new_tokens=24, do_sample=False)
        return sum(world.judge(row, text) == "refused" for row, text in zip(requests, answers, strict=True)) / COUNT

    @cache
    def unsteered() -> float:
        return share()

    def measured(vector: sk.SteeringVector | None = None, strength: float = 1.0) -> float:
        if vector is None:
            return unsteered()
        with sk.steer(demo, vector, strength=strength, policy="off"):
            return share()

    return measured


def generated(vlm: VLM, prompts: Sequence[Sample]) -> torch.Tensor:
    """`[steps, batch, vocabulary]` logits, through whichever engine is in use."""
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    vlm.reset()
    with torch.no_grad():
        output: Any = vlm._generate(vlm.inputs(prompts), options)
    return torch.stack(output.logits)


def steered_layers(vector: sk.SteeringVector, tower: str) -> list[int]:
    steered = [change for change in vector.interventions if change.tower == tower]
    return sorted({layer for change in steered for layer in vector.layers_of(change)})


@pytest.mark.parametrize(("name", "case"), cases())
def test_a_method_lives(
    tmp_path: Path,
    demo: VLM,
    requests: list[world.Prompt],
    refused: Callable[..., float],
    name: str,
    case: Case,
) -> None:
    groups = anchors(20, ("harmful",)), anchors(20, ("harmless",))
    fitted = case.method.fit(demo, case.anchors(*groups), batch_size=20)
    vector = sk.SteeringVector.load(fitted.save(tmp_path / "pack.safetensors"))
    assert vector.digest() == fitted.digest()
    assert vector.interventions == fitted.interventions
    assert vector.metadata.method.name == name == case.method.name
    assert vector.metadata.method.config == case.method.model_dump(mode="json")

    prompts = samples(requests[:3])
    before = generated(demo, prompts)
    with sk.steer(demo, vector, policy="off") as by_hooks:  # some doses are large, and suit the toy world
        steered = generated(demo, prompts)
    with sk.steer(demo, vector, engine="nnsight", policy="off") as by_nnsight:
        again = generated(demo, prompts)
    assert torch.equal(steered, again), "both engines give the same numbers"
    assert (steered[0] - before[0]).abs().max() > 0.5
    assert by_hooks.sites.keys() == by_nnsight.sites.keys()
    assert by_hooks.layers == steered_layers(vector, "language")
    assert by_hooks.vision_layers == steered_layers(vector, "vision")
    assert by_hooks.prompt_tokens >= (len(prompts) if by_hooks.layers else 0)
    assert by_hooks.prompt_tokens == by_nnsight.prompt_tokens
    assert by_hooks.vision_tokens == by_nnsight.vision_tokens
    assert bool(by_hooks.vision_tokens) == bool(steered_layers(vector, "vision"))
    assert by_hooks.generated_tokens == by_nnsight.generated_tokens
    changes = [count.relative_change for count in by_hooks.sites.values()]
    # every place, in either tower; the least that a method does here is 0.005, at one layer of ShiftDC
    assert min(changes) > 0.003
    assert max(changes) > 0.01
    if case.spares:
        harmless = samples(world.prompts("harmless", "test", 3))
        alone = generated(demo, harmless)
        with sk.steer(demo, vector, policy="off"):
            assert torch.equal(generated(demo, harmless), alone)

    with sk.steer(demo, vector, strength=0.0, policy="off"):
        assert torch.equal(generated(demo, prompts), before), "a dose of nothing is nothing, to the last bit"
    assert torch.equal(generated(demo, prompts), before), "and nothing is left behind"

    assert refused() <= 0.5
    if case.effect == "none":
        assert abs(refused(vector) - refused()) <= 0.2
        return
    if case.effect == "fewer":
        assert refused(vector, 2.0) <= refused() - 0.1
        assert refused(vector, -2.0) >= refused() + 0.4, "the sign matters"
        return
    assert refused(vector) >= refused() + 0.4
    assert refused(vector, -1.0) <= refused() + 0.1, "the sign matters"
