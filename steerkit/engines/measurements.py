"""What is measured while a model runs: contrasts of a prompt, quantities read off it, and the doses that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor

from steerkit.engines.passes import Observed, Pass, Selection
from steerkit.engines.prompts import Prompt
from steerkit.engines.steps import Place, Reading, Step, Together
from steerkit.errors import EngineError
from steerkit.interventions import MeasuredContrast, Selector, Site

Contrasts: TypeAlias = Mapping[int, Tensor]
"""`{layer: [batch, hidden]}`."""

MeasureContrast: TypeAlias = Callable[[Prompt, MeasuredContrast, Sequence[int], Site], Contrasts]

_LAST, _WHOLE = Selector("last", "prompt"), Selector("all", "prompt")


class Measurements:
    """What is known of each prompt of a call; it is kept in the prompt's memo.

    Args:
        contrasts: What to measure on each prompt, in a pass of its own.
        measure: How that is done.
    """

    def __init__(self, contrasts: Sequence[Together], measure: MeasureContrast) -> None:
        self.contrasts = contrasts
        self._measure = measure

    def begin(self, prompt: Prompt) -> None:
        """Measure, without steering, what has to be measured on a prompt."""
        for each in self.contrasts:
            key = _key(each)
            if key not in prompt.memo:
                prompt.memo[key] = self._measure(prompt, each.contrast, key[1], each.site)

    def contrast(self, of: Together, layer: int, h: Tensor, now: Observed) -> Tensor:
        """`[rows, hidden]`: what was measured on the prompts of a pass at a layer."""
        measured: Contrasts | None = now.prompt.memo.get(_key(of))
        if measured is None:
            raise EngineError(
                "a contrast is needed in a forward pass that continues from a KV cache, without its prompt",
                expected="generate(), or a forward pass over the whole prompt",
            )
        return _repeated(measured[layer].to(h.device), now)

    def read(self, reading: Reading, place: Place, h: Tensor, now: Observed) -> None:
        """Read a quantity off the prompt, where the pass holds what is to be read."""
        assert isinstance(now, Pass)  # a measure with a layer of its own is refused in the vision tower
        if reading.measure.pool == "mean":
            self._read_mean(reading, h, now)
            return
        last = now.select(_LAST, h.device)
        if last is None:
            return
        value = reading.of(last.read(h))
        kept = now.prompt.memo.setdefault(reading, torch.zeros(now.rows, device=h.device))
        if last.column is not None:
            kept.copy_(value)
        else:
            kept[last.rows] = value

    def _read_mean(self, reading: Reading, h: Tensor, now: Pass) -> None:
        """Gather the mean over the prompt, which may be read in chunks; the value is there once the last was seen."""
        chosen = now.select(_WHOLE, h.device)
        if chosen is None:
            return
        total = torch.zeros(now.rows, h.shape[2], device=h.device)
        count = torch.zeros(now.rows, device=h.device)
        total, count = now.prompt.memo.get((reading, "sums"), (total, count))
        rows, read = chosen.rows, chosen.read(h).float()
        if rows is None:
            rows = torch.arange(now.rows, device=h.device)
        total, count = total.index_add(0, rows, read), count.index_add(0, rows, torch.ones_like(read[:, 0]))
        now.prompt.memo[reading, "sums"] = (total, count)
        if now.start + now.length >= now.prompt_length:
            now.prompt.memo[reading] = reading.of(total / count.clamp_min(1.0)[:, None])

    def dose(self, step: Step, h: Tensor, selection: Selection, now: Observed) -> float | Tensor:
        """The strength of a step: a number, or one for each of the selected tokens."""
        intervention, dose = step.intervention, step.dose
        if step.rule is not None and intervention.rule is not None:
            rule = intervention.rule
            value = self._value(step.rule, h, selection, now)
            dose = dose * (rule.slope * value + rule.intercept).clamp(rule.minimum, rule.maximum)
        if intervention.rows is not None:
            rows = cast("Pass", now).each_row(torch.tensor(intervention.rows, device=h.device))
            dose = dose * selection.per_row(rows)
        if intervention.steps is not None:
            cast("Pass", now).check_counted()
            dose = dose * _of_steps(intervention.steps, h.device, selection, now)
        return dose

    def opened(self, step: Step, h: Tensor, selection: Selection, now: Observed) -> Tensor | None:
        """`[n]`: which of the selected tokens the gates of a step let through; None for all."""
        if not step.gates:
            return None
        opened: list[Tensor] = []
        for gate, reading in step.gates:
            passes = self._value(reading, h, selection, now) > gate.threshold
            opened.append(passes if gate.above else ~passes)
        combined = torch.stack(opened)
        return combined.all(0) if step.intervention.needs_all_gates else combined.any(0)

    def _value(self, reading: Reading, h: Tensor, selection: Selection, now: Observed) -> Tensor:
        """`[n]`: what a measure reads for the selected tokens."""
        if reading.state is not None:
            return selection.per_row(reading.of(self.contrast(reading.state, reading.layer, h, now)))
        if reading.measure.layer is None:
            return reading.of(h)
        kept: Tensor | None = now.prompt.memo.get(reading)
        if kept is None:
            raise EngineError(
                f"a measure that is read at the last prompt token of layer {reading.layer} is needed in a forward pass "
                "that ends before it, or continues from a KV cache without the prompt",
                expected="generate() without chunked prefill, or a forward pass over the whole prompt",
            )
        return selection.per_row(_repeated(kept.to(h.device), now))


def _key(of: Together) -> tuple[MeasuredContrast, tuple[int, ...], Site]:
    """Not the object itself: another block that steers the same call by the same contrast need not measure it anew."""
    return of.contrast, tuple(sorted(of.layers)), of.site


def _repeated(values: Tensor, now: Observed) -> Tensor:
    """One value for each row: beams and several answers of a prompt repeat its own."""
    rows = values.shape[0]
    return values if rows == now.rows else values.repeat_interleave(now.rows // rows, dim=0)


def _of_steps(factors: tuple[float, ...], device: torch.device, selection: Selection, now: Observed) -> float | Tensor:
    """The factor of each selected token: of a generated one by its number, 1 of one of the prompt."""
    first = now.start - now.prompt_length
    if selection.columns is None:
        step = first + cast("int", selection.column)
        return 1.0 if step < 0 else factors[min(step, len(factors) - 1)]
    steps = cast("Pass", now).steps(selection).clamp(-1, len(factors) - 1)
    return torch.tensor((*factors, 1.0), device=device)[steps]  # -1, the last, is any token of the prompt
