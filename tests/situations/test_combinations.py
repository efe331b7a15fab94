"""What no other test combines: site, tokens, numbers, rows, gates or measured strengths, decoding, by chance.

Each combination is what plain hooks make of it, alone and while two others run in threads on the same model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from reference import TEXTS, module_at, picture
from torch import Tensor

import steerkit as sk
from steerkit.errors import NothingSteeredError
from steerkit.interventions import Add, Gate, LinearStrength, Measure, StoredDirection
from steerkit.vectors import Key, MethodRecord, PackMetadata

FAMILIES = {"llava": "llava", "qwen2_vl": "qwen2_vl", "vipllava": "vipllava", "qwen3": "decoder"}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several answers": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}
NUMBERS = ([0], [1, 2], [[0, 3]], [[2, None]], [[1, 4], 6])
FROM_THE_END = ([-1], [[-3, -1]], [[-2, None]], [0, -1])


class Case(NamedTuple):
    """A combination: what is done, and where."""

    fields: dict[str, Any]
    measure: dict[str, Any] | None
    line: tuple[float, float] | None
    above: bool
    layers: list[int]
    directions: dict[int, Tensor]
    seen: Tensor


def drawn(chance: random.Random, rows: int, layers: int, width: int) -> Case:
    """One of them."""
    tokens = chance.choice(["all", "last", "generated"])
    phase = chance.choice(["both", "both", "generation", "both" if tokens == "generated" else "prompt"])
    fields: dict[str, Any] = {"tokens": tokens, "phase": phase, "strength": chance.choice([1.0, -0.8, 1.5])}
    fields["site"] = chance.choice(["resid_post", "mlp_out", "attn_out"])
    if chance.random() < 0.5:
        ends = tokens == "generated" or phase == "generation"
        fields["positions"] = chance.choice(NUMBERS if ends else NUMBERS + FROM_THE_END)
    if chance.random() < 0.3:
        fields["rows"] = [1.0, *(chance.choice([0.0, 1.0, -1.0]) for _ in range(rows - 1))]
    measure, line = None, None
    if chance.random() < 0.6:
        measure = {"kind": chance.choice(["projection", "cosine"])}
        line = (chance.choice([0.5, -1.0]), 0.3) if chance.random() < 0.5 else None
        if chance.random() < 0.5:
            fields["site"] = "resid_post"
            measure |= {"layer": 0, "pool": chance.choice(["last", "mean"])}
    first = 1 if measure and "layer" in measure else 0
    chosen = sorted(chance.sample(range(first, layers), min(2, layers - first)))
    states = {layer: torch.randn(width) * 0.6 for layer in chosen}
    return Case(fields, measure, line, chance.random() < 0.5, chosen, states, torch.randn(width))


def packed(vlm: sk.VLM, case: Case) -> sk.SteeringVector:
    """The vector of a combination."""
    site, more = case.fields["site"], {}
    tensors = {Key(layer, site): direction for layer, direction in case.directions.items()}
    if case.measure is not None:
        measure = Measure(direction=StoredDirection(name="seen"), **case.measure)
        tensors |= {Key(layer, site, "seen"): case.seen for layer in ([0] if "layer" in case.measure else case.layers)}
        if case.line is None:
            more = {"gate": Gate(measure=measure, threshold=0.05, above=case.above)}
        else:
            slope, start = case.line
            more = {
                "strength": LinearStrength(measure=measure, slope=slope, intercept=start, minimum=-1.0, maximum=1.5)
            }
    part = sk.Intervention(operation=Add(), **{**case.fields, **more})
    record = PackMetadata(method=MethodRecord(name="test"), model=vlm.record, interventions=(part,))
    return sk.SteeringVector(tensors, record)


class Plain:
    """The same by hooks: positions are counted, and tokens told, by what has passed."""

    def __init__(self, case: Case, mask: Tensor) -> None:
        self.case, self.mask, self.width = case, mask.bool(), mask.shape[1]
        self.passed: dict[int, int] = {}
        self.fixed: Tensor | None = None
        self.changed = 0

    def seen(self, h: Tensor) -> Tensor:
        assert self.case.measure is not None
        if self.case.measure["kind"] == "projection":
            return h @ (self.case.seen / self.case.seen.norm())
        return torch.cosine_similarity(h, self.case.seen.expand_as(h), dim=-1)

    def read(self, module: Any, args: Any, output: Any) -> None:
        assert self.case.measure is not None
        h = output[0] if isinstance(output, tuple) else output
        begun = self.passed.get(-1, 0)
        self.passed[-1] = begun + h.shape[1]
        if begun:
            return
        real = self.mask.repeat_interleave(len(h) // len(self.mask), 0)[..., None]
        mean = (h * real).sum(1) / real.sum(1)
        self.fixed = self.seen(h[:, -1] if self.case.measure["pool"] == "last" else mean)

    def change(self, layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            fields, (rows, count) = self.case.fields, h.shape[:2]
            begun = self.passed.get(layer, 0)
            self.passed[layer] = begun + count
            at = torch.arange(begun, begun + count)[None].expand(rows, -1)
            each = rows // len(self.mask)
            mask = self.mask.repeat_interleave(each, 0)
            pad, asked = (~mask).sum(1, keepdim=True), at < self.width
            chosen = torch.where(asked, mask.gather(1, at.clamp(max=self.width - 1)), True)
            number, end = at - pad, self.width - pad
            if fields["tokens"] == "last":
                chosen, number, end = chosen & (at >= self.width - 1), at - self.width + 1, torch.ones_like(pad)
            if fields["tokens"] == "generated" or fields["phase"] == "generation":
                chosen, number = chosen & ~asked, at - self.width
            if fields["phase"] == "prompt":
                chosen = chosen & asked
            if "positions" in fields:
                named = torch.zeros_like(chosen)
                for given in fields["positions"]:
                    start, stop = (given, given + 1) if isinstance(given, int) else given
                    low = end + start if start < 0 else start
                    high = 10**6 if stop is None else end + stop if start < 0 or stop < 0 else stop
                    named |= (number >= low) & (number < high)
                chosen = chosen & named
            dose = torch.full(chosen.shape, fields["strength"])
            if self.case.measure is not None:
                value = self.seen(h) if self.fixed is None else self.fixed[:, None].expand(chosen.shape)
                if self.case.line is not None:
                    dose = (self.case.line[0] * value + self.case.line[1]).clamp(-1.0, 1.5)
                else:
                    chosen = chosen & ((value > 0.05) == self.case.above)
            dose = dose * torch.tensor(fields.get("rows") or [1.0] * len(self.mask)).repeat_interleave(each)[:, None]
            self.changed += int((chosen & (dose != 0)).sum())
            new = torch.where(chosen[..., None], h + dose[..., None] * self.case.directions[layer], h)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    @contextmanager
    def hooked(self, model: Any, family: str) -> Iterator[None]:
        """While the model is changed so."""
        handles = []
        if self.case.measure is not None and "layer" in self.case.measure:
            handles.append(module_at(model, family, 0).register_forward_hook(self.read))
        for layer in self.case.layers:
            module = module_at(model, family, layer, self.case.fields["site"])
            handles.append(module.register_forward_hook(self.change(layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_combination_is_what_plain_hooks_make_of_it(name: str, seed: int, vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm, chance = vlm_of(name), random.Random(f"{name} {seed}")
    model: Any = vlm.model
    torch.manual_seed(seed)
    made = []
    for _ in range(3):
        rows, images = chance.randint(1, 3), 0 if name == "qwen3" else chance.randint(0, 2)
        samples = [
            sk.Sample(TEXTS[row], tuple(picture(row + 7 * number) for number in range(images))) for row in range(rows)
        ]
        inputs = vlm.inputs(samples)
        options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        options |= WAYS[chance.choice(list(WAYS))]
        case = drawn(chance, rows, vlm.architecture.layer_count, vlm.architecture.hidden_size)
        plain = Plain(case, inputs["attention_mask"])
        with torch.no_grad(), plain.hooked(model, FAMILIES[name]):
            expected = model.generate(**inputs, **options)
        made.append((packed(vlm, case), inputs, options, expected, plain.changed))

    def agrees(index: int) -> bool:
        vector, inputs, options, expected, changed = made[index]
        try:
            with torch.no_grad(), sk.steer(vlm, vector, policy="off") as receipt:
                found = model.generate(**inputs, **options)
        except NothingSteeredError:
            return changed == 0
        counted = sum(site.prompt_tokens + site.generated_tokens for site in receipt.sites.values())
        return torch.equal(found, expected) and counted == changed

    assert [agrees(index) for index in range(3)] == [True] * 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(agrees, range(3))) == [True] * 3
