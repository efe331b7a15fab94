"""A program at work on one model: what every engine calls with the hidden states that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from steerkit.engines.counting import Done, count, is_measured, sizes
from steerkit.engines.measurements import Contrasts as Contrasts, MeasureContrast, Measurements
from steerkit.engines.passes import Observed, Pass, Selection
from steerkit.engines.program import compiled
from steerkit.engines.prompts import Prompt
from steerkit.engines.receipt import Receipt, SiteCount
from steerkit.engines.steps import Group, Place, Step, Sum, decoding
from steerkit.errors import EngineError, NonFiniteError
from steerkit.interventions import MeasuredContrast, Prompts, Site, _arithmetic as ops, site_label
from steerkit.models import Architecture, merged, spread
from steerkit.vectors import SteeringVector

_BROKEN = "states that are not finite before they are steered"


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
        self.closed = False
        self._architecture = architecture
        self._special = architecture.state != "plain" or bool(architecture.runs)
        self._program = compiled(vectors, strengths, architecture)
        self._measurements = Measurements(self._program.contrasts, measure)
        self._fitting: set[torch.dtype] = set()
        self.check_fits(dtype)
        self._decoding = {
            place: quick
            for place, groups in self._program.groups.items()
            if place not in self._program.readings and (quick := decoding(groups)) is not None
        }
        steered = [place for place in self.places if place in self._program.groups]
        self._first, self._last = (steered[0], steered[-1]) if steered else (None, None)
        receipt.name([vector.metadata.method.name for vector in vectors])

    @property
    def places(self) -> list[Place]:
        """Every layer and site that must be visited, in the order of the forward pass."""
        return self._program.places

    @property
    def contrasts(self) -> list[tuple[MeasuredContrast, tuple[int, ...], Site]]:
        """What is measured on each prompt: each in a pass of its own, at so many layers at once."""
        return [(each.contrast, tuple(sorted(each.layers)), each.site) for each in self._program.contrasts]

    def begin(self, prompt: Prompt) -> None:
        """Measure, without steering, what has to be measured on this prompt."""
        left_alone = self._note_left_alone(prompt)
        if not prompt.continues and not left_alone:
            self._measurements.begin(prompt)

    def apply(self, place: Place, h: Tensor, now: Observed) -> Tensor:
        """The hidden state `[rows, tokens, hidden]` (`[tokens, hidden]` of packed images) after all interventions.

        Raises:
            EngineError: The module returns something else.
        """
        if self._special and place.tower == "language":
            return self._apply_specially(place, h, now)
        if now.decodes and (quick := self._decoding.get(place)) is not None:
            change = quick.change
            if change is None:
                return h
            chosen = quick.prompts == "all" or cast("Pass", now).chosen(quick.prompts)
            if chosen is False:
                return h
            if chosen is True and (not quick.answers_only or now.start > now.prompt_length):
                if quick.counts is None:
                    quick.counts = self._counts(place, change)
                self.receipt.add_generated(quick.counts, now.rows * (1 - now.redone))
                changed = h + change.total.on(h.device, h.dtype)
                if h.dtype == torch.float16 and place == self._last:
                    self._check_finite(place, h, changed, now, Selection(0))
                return changed
        return self._steered(place, h, now)

    def _apply_specially(self, place: Place, h: Tensor, now: Observed) -> Tensor:
        """Where blocks return several residual streams, or run several times in a pass: steered in the last run."""
        runs = self._architecture.runs
        if runs and runs[place.layer] > 1:
            counted: dict[Any, int] = now.prompt.memo.setdefault((id(self), "runs"), {})
            counted[place] = counted.get(place, 0) + 1
            if counted[place] % runs[place.layer]:
                return h
        before = h if place.site != "resid_post" else merged(h, self._architecture)
        after = self._steered(place, before, now)
        if after is before:
            return h
        return after if before is h else spread(h, before, after, self._architecture)

    def _steered(self, place: Place, h: Tensor, now: Observed) -> Tensor:
        if h.dim() == 2 and place.tower == "vision":
            return self._steered(place, h[None], now)[0]
        if place.tower == "language":
            _check_shape(place, h, now, None if place.site == "head_out" else self._architecture.hidden_size)
        self.check_fits(h.dtype)  # the model may have been converted inside the block
        for reading in self._program.readings.get(place, ()):
            self._measurements.read(reading, place, h, now)
        before, done = h, []
        groups = self._program.groups.get(place, ())
        alone = len(groups) == 1 and len(groups[0].steps) == 1
        for group in groups:
            selection = now.select(group.selector, h.device)
            if selection is not None:
                measured = is_measured(group, now)
                h, opened, changes = self._apply(group, h, selection, now, measures=measured and not alone)
                done.append(Done(group, selection, opened, changes, measured))
        if done:
            count(self.receipt, place, before, h, done, now)
            # what overflowed anywhere is still there at the last place; where changes are measured, the device is
            # waited for in any case
            if place == self._last or any(each.measured for each in done):
                for each in done:
                    self._check_finite(place, before, h, now, each.selection)
        return h

    def apply_again(self, place: Place, h: Tensor, now: Observed) -> Tensor:
        """The same as `apply` did in this pass before: nothing is counted, and what is read is known already.

        Raises:
            EngineError: The model's blocks return several streams, or run several times in a pass.
        """
        if self._special:
            raise EngineError(
                "a block that returns several residual streams, or runs several times in a pass, is run again",
                expected="a pass without gradient checkpointing",
                fix="model.gradient_checkpointing_disable()",
            )
        if h.dim() == 2:
            return self.apply_again(place, h[None], now)[0]
        for reading in self._program.readings.get(place, ()):  # torch wants to see the same operations
            memo = {key: value for key, value in now.prompt.memo.items() if key not in (reading, (reading, "sums"))}
            self._measurements.read(
                reading, place, h, replace(cast("Pass", now), prompt=replace(now.prompt, memo=memo))
            )
        for group in self._program.groups.get(place, ()):
            selection = now.select(group.selector, h.device)
            if selection is not None:
                h, _, _ = self._apply(group, h, selection, now, measures=False)
        return h

    def follows(self, place: Place) -> bool:
        """Whether how much is done at a place depends on what is read at another."""
        rules = (step.rule for group in self._program.groups.get(place, ()) for step in group.steps)
        return any(rule is not None and rule.measure.layer is not None and rule.state is None for rule in rules)

    def check_fits(self, dtype: torch.dtype) -> None:
        """Refuse hidden states of a type that can't hold what is added to them.

        Raises:
            NonFiniteError: They are.
        """
        if dtype not in self._fitting:
            self._program.check(dtype)
            self._fitting.add(dtype)

    @property
    def lost(self) -> bool:
        """Whether something was added wherever a token was steered, and so little of it that rounding left nothing."""
        unchanged = self.receipt.unchanged
        return bool(unchanged) and unchanged <= self._program.moved

    def _note_left_alone(self, prompt: Prompt) -> bool:
        """Count the prompts that nothing is for; whether there are no others.

        Raises:
            EngineError: The call does not say whether its prompts hold an image, and that decides.
        """
        ids, wanted = prompt.input_ids, self._program.prompts
        asks = any(group.selector.prompts != "all" for groups in self._program.groups.values() for group in groups)
        if all("all" in each for each in wanted) or (ids is None and not asks):
            return False
        held = prompt.pictured()
        count = 1 if ids is None else ids.shape[0]
        pictured = torch.full((count,), held, device="cpu") if isinstance(held, bool) else held
        alone = [_left_alone(each, pictured) for each in wanted]
        nobody = torch.stack(alone).all(0)
        of_vectors = [0 if prompt.continues else int(each.sum()) for each in alone]
        if bool(torch.stack(alone).any()):
            self.receipt.leave_alone(0 if prompt.continues else int(nobody.sum()), of_vectors)
        return bool(nobody.all())

    def _counts(self, place: Place, change: Sum) -> tuple[SiteCount, ...]:
        """Where tokens of answers are counted that a sum has changed."""
        vectors = {step.index for step in change.steps}
        return self.receipt.counts_of(place.layer, site_label(place.site, place.tower), vectors)

    def _apply(
        self, group: Group, h: Tensor, selection: Selection, now: Observed, *, measures: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...], tuple[Tensor, ...] | None]:
        """The steered state; which tokens each step's gates let through; and, where wanted, each step's changes."""
        before = after = selection.read(h)
        opened: list[Tensor | None] = []
        found: list[Tensor] = []
        for change in group.changes:
            previous = after
            if isinstance(change, Sum):
                after = previous + change.total.on(h.device, h.dtype)
                opened += [None] * len(change.steps)
            else:
                after, through = self._changed(change, previous, selection, now)
                opened.append(through)
            if measures:
                found += sizes(change, before, previous, after)
        return selection.write(h, after), tuple(opened), tuple(found) if measures else None

    def _changed(self, step: Step, h: Tensor, selection: Selection, now: Observed) -> tuple[Tensor, Tensor | None]:
        """The tokens after one step, and which of them its gates let through; None for all."""
        dose = self._measurements.dose(step, h, selection, now)
        contrast = None
        if step.contrast is not None:
            contrast = selection.per_row(self._measurements.contrast(step.contrast, step.layer, h, now))
        direction = None if step.direction is None else step.direction.on(h.device)
        function, arguments = step.intervention.operation.bind(direction, contrast)
        changed = function(h, *arguments, dose)
        if step.intervention.norm_preserving:
            changed = ops.preserve_norm(changed, h)
        opened = self._measurements.opened(step, h, selection, now)
        return (changed if opened is None else torch.where(opened[:, None], changed, h)), opened

    def _check_finite(self, place: Place, before: Tensor, after: Tensor, now: Observed, changed: Selection) -> None:
        """Refuse to go on from a sum that overflowed, which makes NaN of all that follows.

        A model that gives NaN by itself is left to whoever reads its answers.

        Raises:
            NonFiniteError: It is so.
        """
        if bool(torch.isfinite(changed.read(after.detach())).all()) or _BROKEN in now.prompt.memo:
            return
        if place == self._first and not bool(torch.isfinite(changed.read(before.detach())).all()):
            now.prompt.memo[_BROKEN] = True
            return
        raise NonFiniteError(
            f"a hidden state at layer {place.layer} is not finite in {after.dtype} while the model is steered",
            expected="finite values",
            fix="use a lower strength, or a model in bfloat16 or float32",
        )

    def portable(self, place: Place) -> list[tuple[Any, ...]]:
        """The steps of a place as functions and tensors alone: `(operation, norm, tokens, phase, prompts, arguments)`.

        `operation(h, *arguments)` is the changed `[n, hidden]`, then `norm(changed, h)` where norm is not None.

        Raises:
            EngineError: A step needs more than the hidden state and the padding.
        """
        return [_portable(step) for group in self._program.groups.get(place, ()) for step in group.steps]


def _check_shape(place: Place, h: Tensor, now: Observed, width: int | None) -> None:
    """Refuse to steer what is not one state for each position of the pass.

    Raises:
        EngineError: It is something else: of flattened tokens, say, the wrong ones would be steered.
    """
    if h.dim() == 3 and tuple(h.shape) == (now.rows, now.length, width or h.shape[2]):
        return
    raise EngineError(
        f"{site_label(place.site, place.tower)} of layer {place.layer} is of shape {tuple(h.shape)}",
        expected=f"({now.rows}, {now.length}, {width or 'heads'}), rows and positions of the pass",
        fix="use site='resid_post'; or declare `state` in a Family record, where blocks return several streams",
    )


def _portable(step: Step) -> tuple[Any, ...]:
    intervention = step.intervention
    needs = [
        what
        for what, needed in {
            "a contrast that is measured on the prompt": step.contrast is not None,
            "a measure": bool(intervention.measures),
            "factors of rows or steps": intervention.rows is not None or intervention.steps is not None,
            "positions": intervention.positions is not None,
            site_label(intervention.site, intervention.tower): not intervention.in_stream,
            f"tokens={intervention.tokens!r}": intervention.tokens not in ("last", "all", "generated"),
        }.items()
        if needed
    ]
    if needs or step.direction is None:
        raise EngineError(
            f"an intervention with {' and '.join(needs)} runs in a remote trace",
            expected="stored directions of fixed strength at the tokens last, all or generated, at outputs of the "
            "decoder's modules",
            fix="run the trace locally",
        )
    function, arguments = intervention.operation.bind(step.direction.on(torch.device("cpu")), None)
    norm = ops.preserve_norm if intervention.norm_preserving else None
    return function, norm, intervention.tokens, intervention.phase, intervention.prompts, (*arguments, step.dose)


def _left_alone(wanted: Sequence[Prompts], pictured: Tensor) -> Tensor:
    """`[batch]`: the prompts that none of the interventions of a vector is for."""
    if "all" in wanted:
        return torch.zeros_like(pictured)
    alone = torch.ones_like(pictured)
    for prompts in wanted:
        alone = alone & (~pictured if prompts == "with_image" else pictured)
    return alone
