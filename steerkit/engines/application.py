"""Interventions, compiled for one model: what every engine calls with the tensors that it finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from steerkit.engines import vision
from steerkit.engines.calls import CallTracker, Pass, Prompt, Selection
from steerkit.engines.receipt import Receipt
from steerkit.engines.steps import (
    Decoding,
    Group,
    Place,
    Step,
    Sum,
    answers_only,
    check_finite,
    check_single,
    decoding,
    grouped,
    steered_layers,
)
from steerkit.errors import EngineError, LayerRangeError, OptionError
from steerkit.interventions import (
    Gates,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Prompts,
    Selector,
    Site,
    StoredDirection,
    is_finite,
    site_label,
)
from steerkit.interventions import _arithmetic as ops
from steerkit.models import Architecture
from steerkit.vectors import SteeringVector

Contrasts = Mapping[int, Tensor]
"""`{layer: [batch, hidden]}`."""

Observed: TypeAlias = Pass | vision.VisionPass
"""The pass that a hidden state belongs to."""

_LAST, _WHOLE = Selector("last", "prompt"), Selector("all", "prompt")

MeasureContrast = Callable[[Prompt, MeasuredContrast, Sequence[int], Site], Contrasts]


@dataclass(frozen=True, eq=False)
class _Done:
    """A group that has been applied: to which tokens, and, where it was measured, how large each step's change was.

    `opened` is for each step which of the tokens its gates let through, None for all. `sizes` is None where nothing was
    measured, and where the step is alone at its place: its change is the place's.
    """

    group: Group
    selection: Selection
    opened: tuple[Tensor | None, ...]
    sizes: tuple[Tensor, ...] | None
    measured: bool

    @cached_property
    def by_step(self) -> tuple[Selection, ...]:
        """The tokens that each step changed."""
        return tuple(self.selection if each is None else self.selection.among(each) for each in self.opened)

    @cached_property
    def changed(self) -> Selection:
        """The tokens that any step changed."""
        if len(self.opened) == 1:
            return self.by_step[0]
        masks = [each for each in self.opened if each is not None]
        if len(masks) < len(self.opened):
            return self.selection
        return self.selection.among(torch.stack(masks).any(0))

    def size_of(self, at: int, change: Tensor | None) -> Tensor | None:
        """How large one step's change of the tokens that it changed was."""
        if self.sizes is None:
            return change
        opened = self.opened[at]
        return self.sizes[at] if opened is None else self.sizes[at][opened]


class Application:
    """One or several vectors, ready to be applied to the hidden states of one model.

    Args:
        vectors: The vectors, in the order in which they are applied.
        strengths: One factor each.
        architecture: The model's.
        receipt: Where the applications are counted.
        measure: How a contrast is measured on a prompt; called once per prompt.
        dtype: The type of the hidden states.

    Raises:
        EngineError: An intervention can't be run on this model.
        LayerRangeError: An intervention names a layer that the model does not have.
        NonFiniteError: What is to be added is not finite, or not in the type of the hidden states.
        OptionError: A strength is not finite.
    """

    def __init__(
        self,
        vectors: Sequence[SteeringVector],
        strengths: Sequence[float],
        architecture: Architecture,
        receipt: Receipt,
        measure: MeasureContrast,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.receipt = receipt
        self._dtype = dtype
        self._measure = measure
        self._tensors: dict[Any, Tensor] = {}  # made outside inference mode, to serve passes with gradients too
        self._steps: dict[Place, list[Step]] = defaultdict(list)
        self._reads: dict[Place, list[tuple[SteeringVector, Intervention, Measure]]] = defaultdict(list)
        self._together: dict[tuple[MeasuredContrast, Site, tuple[int, ...]], tuple[int, ...]] = {}
        self.closed = False
        self._keeps = not any(tensor.requires_grad for vector in vectors for tensor in vector.tensors.values())
        for index, (vector, strength) in enumerate(zip(vectors, strengths, strict=True)):
            if not is_finite(strength):
                raise OptionError(f"the strength is {strength!r}", expected="a finite number")
            for intervention in vector.interventions:
                self._compile(index, vector, intervention, float(strength), architecture)
        # the vision tower runs for prompts with an image alone
        self._prompts: list[list[Prompts]] = [
            ["with_image" if each.tower == "vision" else each.prompts for each in vector.interventions]
            for vector in vectors
        ]
        self._asks = any(each.prompts != "all" for vector in vectors for each in vector.interventions)
        self._groups = {place: grouped(steps) for place, steps in self._steps.items()}
        self._decoding = {
            place: quick
            for place, groups in self._groups.items()
            if place not in self._reads and (quick := decoding(groups)) is not None
        }
        receipt.name([vector.metadata.method.name for vector in vectors])

    @property
    def places(self) -> list[Place]:
        """Every layer and site that must be visited, in the order of the forward pass."""
        order = {"head_out": 0, "attn_out": 1, "mlp_out": 2, "resid_post": 3}
        places = {*self._steps, *self._reads}
        return sorted(places, key=lambda place: (place.tower == "language", place.layer, order[place.site]))

    def _compile(
        self,
        index: int,
        vector: SteeringVector,
        intervention: Intervention,
        strength: float,
        architecture: Architecture,
    ) -> None:
        site, tower = intervention.site, intervention.tower
        architecture.check_site(site, tower)
        if tower == "vision":
            vision.check(intervention)
        elif architecture.encoder_decoder and intervention.tokens in ("image", "text", "system", "after_image"):
            raise EngineError(
                f"tokens={intervention.tokens!r} in an encoder-decoder model", expected="last, all or generated"
            )
        if intervention.prompts == "with_image" and not architecture.image_token_ids:
            raise EngineError(
                "an intervention steers prompts with an image, and this model takes no images",
                expected="a vision-language model, or prompts='all' in the intervention",
            )
        layers = steered_layers(vector, intervention, architecture)
        check_single(vector, intervention, layers)
        for measure in intervention.measures:
            if measure.state is not None:
                self._measure_on_prompts(measure.state, layers if measure.layer is None else (measure.layer,), site)
            if measure.layer is None:
                continue
            if measure.layer >= architecture.layer_count:
                raise LayerRangeError(
                    f"a measure reads layer {measure.layer}", expected=f"below {architecture.layer_count}"
                )
            if measure.state is not None:
                continue
            if intervention.phase != "generation" and measure.layer > min(layers):
                raise EngineError(
                    f"a measure reads layer {measure.layer} but decides on layer {min(layers)}, which comes before",
                    expected="a reading layer at or below the first steered layer",
                )
            self._reads[Place(measure.layer, site)].append((vector, intervention, measure))
        for layer in layers:
            dose = strength * intervention.strength_at(layer)
            step = Step(vector, intervention, layer, dose, layers, index)
            check_finite(step, self._dtype)
            self._steps[Place(layer, site, tower)].append(step)
        if intervention.contrast is not None:
            self._measure_on_prompts(intervention.contrast, layers, site)

    def _measure_on_prompts(self, contrast: MeasuredContrast, layers: tuple[int, ...], site: Site) -> None:
        group = _group(contrast, layers, site)
        self._together[group] = tuple(sorted({*self._together.get(group, ()), *layers}))

    @property
    def contrasts(self) -> list[tuple[MeasuredContrast, tuple[int, ...], Site]]:
        """What is measured on each prompt: each in a pass of its own, at so many layers at once."""
        return [(contrast, layers, site) for (contrast, site, _), layers in self._together.items()]

    def begin(self, prompt: Prompt, tracker: CallTracker) -> None:
        """Measure, without steering, what has to be measured on this prompt."""
        left_alone = self._note_left_alone(prompt, tracker)
        if prompt.continues or left_alone:
            return
        for contrast, layers, site in self.contrasts:
            key = (contrast, layers, site)
            if key not in prompt.memo:
                prompt.memo[key] = self._measure(prompt, contrast, layers, site)

    def apply(self, place: Place, h: Tensor, now: Observed) -> Tensor:
        """The hidden state `[rows, tokens, hidden]` (`[tokens, hidden]` of packed images) after all interventions."""
        if now.decodes and (quick := self._decoding.get(place)) is not None:
            if quick.change is None:
                return h
            chosen = quick.prompts == "all" or cast("Pass", now).chosen(quick.prompts)
            if chosen is False:
                return h
            if chosen is True and (not quick.answers_only or now.start > now.prompt_length):
                return self._decode(place, quick, quick.change, h, now)
        if h.dim() == 2:
            return self.apply(place, h[None], now)[0]
        for vector, intervention, measure in self._reads.get(place, ()):
            self._read(vector, intervention, measure, place, h, now)
        before, done = h, []
        groups = self._groups.get(place, ())
        alone = len(groups) == 1 and len(groups[0].steps) == 1
        for group in groups:
            selection = now.select(group.selector, h.device)
            if selection is not None:
                measured = _is_measured(group, now)
                h, opened, sizes = self._apply(group, place, h, selection, now, measures=measured and not alone)
                done.append(_Done(group, selection, opened, sizes, measured))
        if done:
            self._count(place, before, h, done, now)
        return h

    def _note_left_alone(self, prompt: Prompt, tracker: CallTracker) -> bool:
        """Count the prompts that nothing is for; whether there are no others.

        Raises:
            EngineError: The call does not say whether its prompts hold an image, and that decides.
        """
        ids = prompt.input_ids
        if all("all" in each for each in self._prompts) or (ids is None and not self._asks):
            return False
        held = tracker.pictured(prompt)
        count = 1 if ids is None else ids.shape[0]
        pictured = torch.full((count,), held) if isinstance(held, bool) else held
        alone = [_left_alone(each, pictured) for each in self._prompts]
        nobody = torch.stack(alone).all(0)
        of_vectors = [0 if prompt.continues else int(each.sum()) for each in alone]
        if bool(torch.stack(alone).any()):
            self.receipt.leave_alone(0 if prompt.continues else int(nobody.sum()), of_vectors)
        return bool(nobody.all())

    def _decode(self, place: Place, quick: Decoding, change: Sum, h: Tensor, now: Observed) -> Tensor:
        """The same for tokens of answers, one in each row."""
        total = change.scaled.get((h.device, h.dtype))
        if total is None:  # asked for here as well, because the mode that making one needs costs more than all the rest
            total = self._summed(change, place.site, h)
        if quick.counts is None:
            quick.counts = self.receipt.counts_of(
                place.layer, site_label(place.site, place.tower), {step.index for step in change.steps}
            )
        self.receipt.add_generated(quick.counts, now.rows * (1 - now.redone))
        return h + total

    def _apply(
        self, group: Group, place: Place, h: Tensor, selection: Selection, now: Observed, *, measures: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...], tuple[Tensor, ...] | None]:
        """The steered state; which tokens each step's gates let through; and, where wanted, each step's changes."""
        before = after = selection.read(h)
        opened: list[Tensor | None] = []
        sizes: list[Tensor] = []
        for change in group.changes:
            previous = after
            if isinstance(change, Sum):
                after = previous + self._summed(change, place[1], previous)
                opened += [None] * len(change.steps)
            else:
                after, through = self._changed(change, place, previous, selection, now)
                opened.append(through)
            if measures:
                sizes += self._sizes(change, place[1], before, previous, after)
        return selection.write(h, after), tuple(opened), tuple(sizes) if measures else None

    def _changed(
        self, step: Step, place: Place, h: Tensor, selection: Selection, now: Observed
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens after one step, and which of them its gates let through; None for all."""
        intervention = step.intervention
        dose: float | Tensor = step.dose
        if isinstance(intervention.strength, LinearStrength):
            rule = intervention.strength
            value = self._value(step, rule.measure, place, h, selection, now)
            dose = step.dose * (rule.slope * value + rule.intercept).clamp(rule.minimum, rule.maximum)
        dose = self._factored(step, dose, h, selection, now)
        changed = self._operate(step, place, h, dose, selection, now)
        if intervention.norm_preserving:
            changed = ops.preserve_norm(changed, h)
        if intervention.gate is None:
            return changed, None
        opened = self._opened(step, place, h, selection, now)
        return torch.where(opened[:, None], changed, h), opened

    def _factored(
        self, step: Step, dose: float | Tensor, h: Tensor, selection: Selection, now: Observed
    ) -> float | Tensor:
        """The dose times the factors of each token's row and step."""
        intervention = step.intervention
        if intervention.rows is not None:
            rows = cast("Pass", now).each_row(torch.tensor(intervention.rows, device=h.device))
            dose = dose * selection.per_row(rows)
        if intervention.steps is not None:
            after = now.start - now.prompt_length
            if selection.columns is None:
                step_at = after + cast("int", selection.column)
                return dose * (1.0 if step_at < 0 else intervention.steps[min(step_at, len(intervention.steps) - 1)])
            steps = torch.tensor((*intervention.steps, 1.0), device=h.device)  # -1 is the prompt
            dose = dose * steps[(selection.columns + after).clamp(-1, len(intervention.steps) - 1)]
        return dose

    def _opened(self, step: Step, place: Place, h: Tensor, selection: Selection, now: Observed) -> Tensor:
        """`[n]`: which of the selected tokens the gates let through."""
        opened: list[Tensor] = []
        for gate in step.intervention.gates:
            passes = self._value(step, gate.measure, place, h, selection, now) > gate.threshold
            opened.append(passes if gate.above else ~passes)
        combined, gate = torch.stack(opened), step.intervention.gate
        return combined.all(0) if isinstance(gate, Gates) and gate.combine == "all" else combined.any(0)

    def _operate(
        self, step: Step, place: Place, h: Tensor, dose: float | Tensor, selection: Selection, now: Observed
    ) -> Tensor:
        operation, site = step.intervention.operation, place.site
        prepared = contrast = None
        if operation.stored is not None:
            prepared = self._prepared(step, operation.stored, site, h.device)
        if operation.measured is not None:
            contrast = self._contrast(step, operation.measured, h, selection, now)
        function, arguments = operation.bind(prepared, contrast)
        return function(h, *arguments, dose)

    def portable(self, place: Place) -> list[tuple[Any, ...]]:
        """The steps of a place as functions and tensors alone: `(operation, norm, tokens, phase, prompts, arguments)`.

        `operation(h, *arguments)` is the changed `[n, hidden]`, then `norm(changed, h)` where norm is not None.

        Raises:
            EngineError: A step needs more than the hidden state and the padding.
        """
        return [self._portable(step, place[1]) for step in self._steps.get(place, ())]

    def _portable(self, step: Step, site: Site) -> tuple[Any, ...]:
        intervention, dose, device = step.intervention, step.dose, torch.device("cpu")
        operation = intervention.operation
        needs = []
        if intervention.contrast is not None:
            needs.append("a contrast that is measured on the prompt")
        if intervention.measures:
            needs.append("a measure")
        if intervention.tower == "vision" or site == "head_out":
            needs.append(f"{site_label(site, intervention.tower)}")
        if intervention.tokens not in ("last", "all", "generated"):
            needs.append(f"tokens={intervention.tokens!r}")
        if intervention.rows is not None or intervention.steps is not None:
            needs.append("a strength that depends on the row or the token")
        if intervention.positions is not None:
            needs.append("positions by number")
        if needs or operation.stored is None:
            raise EngineError(
                f"an intervention with {' and '.join(needs)} runs in a remote trace",
                expected="stored directions of fixed strength at the tokens last, all or generated, at outputs of the "
                "decoder's modules",
                fix="run the trace locally",
            )
        function, arguments = operation.bind(self._prepared(step, operation.stored, site, device), None)
        arguments = (*arguments, dose)
        norm = ops.preserve_norm if intervention.norm_preserving else None
        return function, norm, intervention.tokens, intervention.phase, intervention.prompts, arguments

    # -- what operations read ----------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def _stored(self, step: Step, stored: StoredDirection, site: Site, device: torch.device) -> Tensor:
        tower = step.intervention.tower
        key = (id(step.vector), stored, step.layer, site, tower, device)
        if key not in self._tensors:
            found = step.vector.direction(stored, step.layer, site, tower)
            if found is None:  # compile has checked this
                raise LayerRangeError(f"no direction {stored.name!r} at layer {step.layer}")
            stored_there = found.to(device=device, dtype=torch.float32)
            if not self._keeps:  # the graph of one pass is no other's, nor is what was made without gradients
                return stored_there
            self._tensors[key] = stored_there
        return self._tensors[key]

    @torch.inference_mode(False)
    def _summed(self, change: Sum, site: Site, h: Tensor) -> Tensor:
        total = change.scaled.get((h.device, h.dtype))
        if total is None:
            parts = [self._dosed(step, site) for step in change.steps]
            # in double precision, so that the order of the vectors makes no difference
            exact = parts[0] if len(parts) == 1 else torch.stack(parts).double().sum(dim=0)
            total = exact.to(torch.float32).to(device=h.device, dtype=h.dtype)
            if self._keeps:
                change.scaled[h.device, h.dtype] = total
        return total

    def _dosed(self, step: Step, site: Site) -> Tensor:
        """What a plain addition adds, float32 on the CPU."""
        direction = step.intervention.operation.stored
        assert direction is not None
        return step.dose * self._stored(step, direction, site, torch.device("cpu"))

    @torch.inference_mode(False)
    def _prepared(self, step: Step, stored: StoredDirection, site: Site, device: torch.device) -> Tensor:
        """What the operation of a step uses of its stored direction."""
        operation, tower = step.intervention.operation, step.intervention.tower
        key = ("prepared", id(step.vector), operation, step.layer, site, tower, device)
        if key not in self._tensors:
            cpu = self._stored(step, stored, site, torch.device("cpu"))
            prepared = operation.prepare(cpu).to(device)
            if not self._keeps:
                return prepared
            self._tensors[key] = prepared
        return self._tensors[key]

    def _contrast(
        self, step: Step, contrast: MeasuredContrast, h: Tensor, selection: Selection, now: Observed
    ) -> Tensor:
        return selection.per_row(self._measured(contrast, step.layers, step.layer, step.intervention.site, h, now))

    def _measured(
        self,
        contrast: MeasuredContrast,
        layers: tuple[int, ...],
        layer: int,
        site: Site,
        h: Tensor,
        now: Observed,
    ) -> Tensor:
        """`[rows, hidden]`: what was measured on the prompts of a pass, at one of the layers measured together."""
        together = self._together[_group(contrast, layers, site)]
        measured: Contrasts | None = now.prompt.memo.get((contrast, together, site))
        if measured is None:
            raise EngineError(
                "a contrast is needed in a forward pass that continues from a KV cache, without its prompt",
                expected="generate(), or a forward pass over the whole prompt",
            )
        value = measured[layer].to(h.device)
        if value.shape[0] != now.rows:  # beams and several answers per prompt repeat each row
            value = value.repeat_interleave(now.rows // value.shape[0], dim=0)
        return value

    def _read(
        self,
        vector: SteeringVector,
        intervention: Intervention,
        measure: Measure,
        place: Place,
        h: Tensor,
        now: Observed,
    ) -> None:
        assert isinstance(now, Pass)  # a measure with a layer of its own is refused in the vision tower
        if measure.pool == "mean":
            self._read_mean(vector, intervention, measure, place, h, now)
            return
        last = now.select(_LAST, h.device)
        if last is None:
            return
        value = self._evaluate(Step(vector, intervention, place[0], 1.0), measure, place[1], last.read(h))
        kept = now.prompt.memo.setdefault(
            (id(self), id(vector), measure, place[1]), torch.zeros(now.rows, device=h.device)
        )
        if last.column is not None:
            kept.copy_(value)
        else:
            kept[last.rows] = value

    def _read_mean(
        self, vector: SteeringVector, intervention: Intervention, measure: Measure, place: Place, h: Tensor, now: Pass
    ) -> None:
        """Gather the mean over the prompt, which may be read in chunks; the value is there once the last was seen."""
        chosen = now.select(_WHOLE, h.device)
        if chosen is None:
            return
        key = (id(self), id(vector), measure, place.site)
        total = torch.zeros(now.rows, h.shape[2], device=h.device)
        count = torch.zeros(now.rows, device=h.device)
        total, count = now.prompt.memo.get((*key, "sums"), (total, count))
        rows, read = chosen.rows, chosen.read(h).float()
        if rows is None:
            rows = torch.arange(now.rows, device=h.device)
        total, count = total.index_add(0, rows, read), count.index_add(0, rows, torch.ones_like(read[:, 0]))
        now.prompt.memo[(*key, "sums")] = (total, count)
        if now.start + now.length >= now.prompt_length:
            step = Step(vector, intervention, place.layer, 1.0)
            mean = total / count.clamp_min(1.0)[:, None]
            now.prompt.memo[key] = self._evaluate(step, measure, place.site, mean)

    def _value(
        self, step: Step, measure: Measure, place: Place, h: Tensor, selection: Selection, now: Observed
    ) -> Tensor:
        if measure.state is not None:
            layer = step.layer if measure.layer is None else measure.layer
            layers = step.layers if measure.layer is None else (measure.layer,)
            state = self._measured(measure.state, layers, layer, place.site, h, now)
            return selection.per_row(self._evaluate(replace(step, layer=layer), measure, place.site, state))
        if measure.layer is None:
            return self._evaluate(step, measure, place[1], h)
        kept: Tensor | None = now.prompt.memo.get((id(self), id(step.vector), measure, place[1]))
        if kept is None:
            raise EngineError(
                f"a measure that is read at the last prompt token of layer {measure.layer} is needed in a forward pass "
                "that ends before it, or continues from a KV cache without the prompt",
                expected="generate() without chunked prefill, or a forward pass over the whole prompt",
            )
        kept = kept.to(h.device)
        if kept.shape[0] != now.rows:
            kept = kept.repeat_interleave(now.rows // kept.shape[0])
        return selection.per_row(kept)

    def _evaluate(self, step: Step, measure: Measure, site: Site, h: Tensor) -> Tensor:
        direction = self._stored(step, measure.direction, site, h.device)
        reference = None
        if measure.reference is not None:
            reference = self._stored(step, measure.reference, site, h.device)
        return ops.MEASURES[measure.kind](h, direction, reference)

    # -- the receipt -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _sizes(self, change: Step | Sum, site: Site, before: Tensor, previous: Tensor, after: Tensor) -> list[Tensor]:
        """`|change| / |hidden state|` of each token, for each step of a change."""
        norm = before.detach().float().norm(dim=-1).clamp_min(1e-12)
        if isinstance(change, Step):
            return [(after.detach().float() - previous.detach().float()).norm(dim=-1) / norm]
        return [self._dosed(step, site).norm().to(norm.device) / norm for step in change.steps]

    def _count(self, place: Place, before: Tensor, after: Tensor, done: Sequence[_Done], now: Observed) -> None:
        selection = done[0].changed if len(done) == 1 else _union([each.changed for each in done], before)
        counted: dict[int, tuple[int, int]] = {}

        def tokens(chosen: Selection) -> tuple[int, int]:
            if id(chosen) not in counted:  # steps without gates share a selection, and counting waits for the device
                counted[id(chosen)] = _tokens(chosen, now)
            return counted[id(chosen)]

        prompt, generated = tokens(selection)
        change: Tensor | None = None
        if any(each.measured for each in done):
            with torch.no_grad():
                wide = selection.read(before).detach().float()
                moved = selection.read(after).detach().float() - wide
                change = moved.norm(dim=-1) / wide.norm(dim=-1).clamp_min(1e-12)
        whole = change if len(done) == 1 else None
        shares = [
            (step.index, *tokens(each.by_step[at]), each.size_of(at, whole))
            for each in done
            for at, step in enumerate(each.group.steps)
        ]
        site = site_label(place.site, place.tower)
        self.receipt.add(place.layer, site, prompt=prompt, generated=generated, change=change, shares=shares)


def _left_alone(wanted: Sequence[Prompts], pictured: Tensor) -> Tensor:
    """`[batch]`: the prompts that none of the interventions of a vector is for."""
    if "all" in wanted:
        return torch.zeros_like(pictured)
    alone = torch.ones_like(pictured)
    for prompts in wanted:
        alone = alone & (~pictured if prompts == "with_image" else pictured)
    return alone


def _group(
    contrast: MeasuredContrast, layers: tuple[int, ...], site: Site
) -> tuple[MeasuredContrast, Site, tuple[int, ...]]:
    """What is measured together: increments depend on the layers among which they are taken."""
    return contrast, site, layers if contrast.form == "increments" else ()


def _is_measured(group: Group, now: Observed) -> bool:
    """Whether the change is measured: on the prompt, or on the first token where only answers are steered."""
    return now.reads_prompt or (answers_only(group) and now.start == now.prompt_length)


def _tokens(selection: Selection, now: Observed) -> tuple[int, int]:
    """How many tokens of the prompt and of the answer are selected; what is read again is not counted again."""
    count = selection.count(now.rows)
    if not now.reads_prompt:
        return 0, count - count // now.length * now.redone
    generated = 0
    if now.start + now.length > now.prompt_length and selection.columns is not None:
        generated = int((selection.columns + now.start >= now.prompt_length).sum())
    return count - generated, generated


def _union(selections: Sequence[Selection], h: Tensor) -> Selection:
    """The tokens that any of the selections holds, each once."""
    mask = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    for selection in selections:
        if selection.column is not None:
            mask[:, selection.column] = True
        else:
            mask[selection.rows, selection.columns] = True
    return Selection(None, *mask.nonzero(as_tuple=True))
