"""An intervention: what is done, where, when and how much, as data.

Interventions are frozen pydantic models and travel inside the pack as JSON, so they can be read, checked, composed and
refused, and any engine can run them. This module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    field_validator,
    model_serializer,
    model_validator,
)

from steerkit.interventions._directions import FiniteFloat, Frozen, MeasuredContrast, StoredDirection, is_finite
from steerkit.interventions._selection import (
    OF_CONTENT,
    VISUAL,
    Phase,
    Prompts,
    Reach,
    Selector,
    Site,
    Span,
    Tokens,
    Tower,
    reach,
)
from steerkit.interventions.operations import Add, AnyOperation

_LAYER = re.compile(r"0|[1-9][0-9]*")

LONGEST = 2**24
"""Tokens, and rows of a batch, that a selection may name at most: beyond any context."""

Pool: TypeAlias = Literal["last", "mean"]
"""What stands for a whole prompt: its last token, or the mean over its tokens."""

CapturePool: TypeAlias = Literal["last", "mean", "answer"]
"""The same where states are captured: also the mean over the tokens of the answer that the prompt begins."""

Number = Annotated[StrictInt, Field(ge=-LONGEST, le=LONGEST)]

_NUMBERED = ("positions", "rows", "steps")


class Measure(Frozen):
    """A number read off a hidden state: its projection on, or its cosine with, a stored direction.

    Attributes:
        kind: `projection` is `(h - r) . d / |d|`; `cosine` is `(h - r) . d / (|h - r| |d|)`; `tanh_cosine` is the
            cosine of `h - r` with `tanh` of its projection `((h - r) . d / |d|^2) d`, elementwise.
        direction: d.
        reference: r, a stored direction that is subtracted first; None for zero.
        layer: Read on the prompt at this layer, once, and hold the value from there on. None: read at the very token
            and layer that is steered.
        pool: What of the prompt is read at that layer: its `last` token, or the `mean` of its hidden states.
        state: Read what is measured on the prompt instead of the hidden state itself: `h` is then this contrast, or
            this view's state, at the layer.
    """

    kind: Literal["projection", "cosine", "tanh_cosine"]
    direction: StoredDirection = StoredDirection()
    reference: StoredDirection | None = None
    layer: int | None = Field(default=None, ge=0)
    pool: Pool = "last"
    state: MeasuredContrast | None = None

    @model_validator(mode="after")
    def _readable(self) -> Measure:
        if self.pool == "mean" and (self.layer is None or self.state is not None):
            raise ValueError("pool='mean' is read off the prompt: it needs a layer, and no state")
        return self


class Gate(Frozen):
    """Steer only where the measure passes the threshold (`above`), or stays at or below it (`above=False`)."""

    measure: Measure
    threshold: FiniteFloat
    above: bool = True


class Gates(Frozen):
    """Steer only where `any`, or `all`, of several gates are open."""

    combine: Literal["any", "all"] = "any"
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]


class LinearStrength(Frozen):
    """`clip(slope * measure + intercept, minimum, maximum)`."""

    measure: Measure
    slope: FiniteFloat
    intercept: FiniteFloat = 0.0
    minimum: FiniteFloat
    maximum: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> LinearStrength:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} exceeds maximum {self.maximum}")
        return self

    def dosed(self, factor: float) -> LinearStrength:
        """The same function times a factor."""
        low, high = sorted((self.minimum * factor, self.maximum * factor))
        return self.model_copy(
            update={
                "slope": self.slope * factor,
                "intercept": self.intercept * factor,
                "minimum": low,
                "maximum": high,
            }
        )


Strength: TypeAlias = FiniteFloat | dict[int, FiniteFloat] | LinearStrength
"""A number, a number per layer (absent layers: 0), or a bounded function of a measured quantity."""


class Intervention(Frozen):
    """One operation with its place, time and dose.

    Attributes:
        operation: What is done to the hidden state.
        layers: 0-based decoder blocks, or `all`: every block that has a direction for it.
        site: Where in the block.
        tower: Language model or vision tower.
        tokens: Which tokens, by meaning.
        phase: While the prompt is read, while tokens are generated, or both.
        positions: Which of these tokens, by number: `[0, -1]`, `[[2, 5]]`, `slice(4)`. None: all. They are counted from
            0 among the tokens of a row that `tokens` and `phase` mean, padding left out; negative numbers count from
            the end of the prompt. A range is `[start, stop)`; with null for the stop it has no end.
        prompts: Which prompts of a batch, by whether they hold an image.
        rows: A factor of the strength for each prompt of the batch, which must have so many; None: 1 for all. A prompt
            with 0 is not touched.
        steps: A factor of the strength for each generated token; the last holds from there on. None: 1 for all. A token
            with 0 is not touched. Tokens of the prompt have 1.
        gate: Condition on a measured quantity, or on several.
        strength: Dose; multiplied by the strength given to `steer`.
        norm_preserving: Rescale each changed token to the norm it had.
    """

    operation: AnyOperation = Add()
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    site: Site = "resid_post"
    tower: Tower = "language"
    tokens: Tokens = "last"
    phase: Phase = "both"
    positions: (
        Annotated[tuple[Number | tuple[Number, Number | None], ...], Field(min_length=1, max_length=1000)] | None
    ) = None
    prompts: Prompts = "all"
    rows: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=4096)] | None = None
    steps: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=4096)] | None = None
    gate: Gate | Gates | None = None
    strength: Strength = 1.0
    norm_preserving: bool = False

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if not isinstance(layers, str) and (not layers or len(set(layers)) != len(layers)):
            raise ValueError(f"layers {list(layers)} are empty or repeat")
        return layers

    @field_validator("tokens", mode="before")
    @classmethod
    def _by_meaning(cls, tokens: object) -> object:
        if isinstance(tokens, int | slice | range | list | tuple):
            raise ValueError(f"{tokens!r:.80} are numbers: tokens='all' with positions={tokens!r:.80}")
        return tokens

    @field_validator("positions", mode="before")
    @classmethod
    def _as_ranges(cls, positions: object) -> object:
        if isinstance(positions, slice | range):
            if positions.step not in (None, 1):
                raise ValueError(f"a step of {positions.step}: positions are numbers and ranges without a step")
            stop = positions.stop
            positions = ((0 if positions.start is None else positions.start, stop),)
        if isinstance(positions, Sequence) and not isinstance(positions, str | bytes):
            return tuple(tuple(each) if isinstance(each, list) else each for each in positions)
        return positions

    @field_validator("positions")
    @classmethod
    def _apart(cls, positions: tuple[int | Span, ...] | None) -> tuple[int | Span, ...] | None:
        ends = [(each, each + 1, False) if isinstance(each, int) else (*each, True) for each in positions or ()]
        for start, stop, given in ends:
            if given and stop is not None and (stop == 0 or ((start < 0) == (stop < 0) and start >= stop)):
                raise ValueError(f"the range [{start}, {stop}] holds no position: null stands for the end")
        for negative in (False, True):
            ordered = sorted((each for each in ends if (each[0] < 0) == negative), key=lambda each: each[0])
            for (start, stop, _), (after, _, _) in pairwise(ordered):
                if stop is None or (start == after) or ((stop > 0) != negative and stop > after):
                    raise ValueError(f"positions from {start} and from {after} overlap")
        return positions

    @field_validator("rows", "steps", mode="before")
    @classmethod
    def _factors(cls, factors: object) -> object:
        if factors is None:
            return None
        if isinstance(factors, str | bytes) or not isinstance(factors, Sequence):
            raise ValueError(f"{factors!r:.80} is not a list of numbers")
        if not all(map(is_finite, factors)):
            raise ValueError("a factor is not a finite number")
        if not any(factors):
            raise ValueError("every factor is 0")
        return tuple(map(float, factors))

    @field_validator("strength", mode="before")
    @classmethod
    def _plain_keys(cls, strength: object) -> object:
        if not isinstance(strength, dict):
            return strength
        for key in strength:
            if isinstance(key, str) and not key.isidentifier() and not _LAYER.fullmatch(key):
                raise ValueError(f"{key!r:.40} is not a layer number: '01' and '1' would be the same")
        # keys of JSON are strings, which a strict reading takes for no integers
        return {int(key) if isinstance(key, str) and _LAYER.fullmatch(key) else key: strength[key] for key in strength}

    @model_validator(mode="after")
    def _coherent(self) -> Intervention:
        if self.phase == "prompt" and self.tokens == "generated":
            raise ValueError("tokens='generated' never occur in phase='prompt'")
        if self.steps is not None and not self._selects_answers:
            raise ValueError(f"steps count generated tokens: none are {self.tokens!r} in phase={self.phase!r}")
        ends = [end for each in self.positions or () for end in ((each,) if isinstance(each, int) else each)]
        back = [end for end in ends if end is not None and end < 0]
        if back and (self.tokens == "generated" or self.phase == "generation"):
            raise ValueError(f"position {back[0]} counts from the end of the prompt, and only its answer is steered")
        if self.tower == "vision" and (self.positions, self.rows, self.steps) != (None, None, None):
            raise ValueError("positions, rows and steps are of the language model: a vision tower sees no prompts")
        if self.phase == "generation" and self.tokens in OF_CONTENT:
            raise ValueError(f"tokens={self.tokens!r} are prompt tokens and never occur in phase='generation'")
        if self.prompts == "without_image" and (self.tokens in VISUAL or self.tower == "vision"):
            place = "the vision tower" if self.tower == "vision" else f"tokens={self.tokens!r}"
            raise ValueError(f"prompts='without_image' never reach {place}")
        if isinstance(self.strength, dict) and any(layer < 0 for layer in self.strength):
            raise ValueError("a per-layer strength names a negative layer")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the numbers of a selection by meaning alone: documents written before there were any stay equal."""
        found = dump(self)
        return {key: value for key, value in found.items() if value is not None or key not in _NUMBERED}

    @property
    def _selects_answers(self) -> bool:
        return self.phase != "prompt" and self.tokens in ("last", "all", "generated")

    @property
    def fixed(self) -> bool:
        """Whether the same happens to every token that it selects: no gate, no measured strength, no factors."""
        return not self.measures and self.rows is None and self.steps is None

    @property
    def rule(self) -> LinearStrength | None:
        """What the strength is measured by, if it is."""
        return self.strength if isinstance(self.strength, LinearStrength) else None

    @property
    def selector(self) -> Selector:
        """Which tokens of a call it changes."""
        rows = None if self.rows is None else tuple(map(bool, self.rows))
        return Selector(self.tokens, self.phase, self.prompts, self.positions, rows, self._steered_steps)

    @property
    def _steered_steps(self) -> tuple[Span, ...] | None:
        if self.steps is None or all(self.steps):
            return None
        last = len(self.steps) - 1
        return tuple((step, None if step == last else step + 1) for step, factor in enumerate(self.steps) if factor)

    @property
    def reach(self) -> Reach:
        """What it reaches, as sets."""
        return reach(self.selector, None if self.layers == "all" else self.layers, self.site, self.tower)

    @property
    def factors(self) -> tuple[float, ...]:
        """The least and the greatest product of a row's and a step's factor, the prompt's step being 1."""
        rows = self.rows or (1.0,)
        steps = (*(self.steps or ()), *((1.0,) if self.steps is None or self.selector.reaches_prompts else ()))
        found = [row * step for row in (min(rows), max(rows)) for step in (min(steps), max(steps))]
        return (min(found),) if min(found) == max(found) else (min(found), max(found))

    def strength_at(self, layer: int) -> float:
        """The fixed part of the strength at a layer (1 for a measured strength), without the factors."""
        if isinstance(self.strength, dict):
            return self.strength.get(layer, 0.0)
        return 1.0 if isinstance(self.strength, LinearStrength) else float(self.strength)

    def strength_bounds(self, layer: int) -> tuple[float, ...]:
        """The ends of what the strength at a layer can be, the factors of rows and steps included.

        Of a fixed strength they are in the order of the factors, so that those of several interventions with equal
        factors belong together.
        """
        if self.rule is not None:
            found = [end * factor for end in (self.rule.minimum, self.rule.maximum) for factor in self.factors]
            return min(found), max(found)
        return tuple(self.strength_at(layer) * factor for factor in self.factors)

    def dosed(self, factor: float) -> Intervention:
        """The same at `factor` times the strength."""
        strength = self.strength
        if isinstance(strength, LinearStrength):
            changed: object = strength.dosed(factor)
        elif isinstance(strength, dict):
            changed = {layer: value * factor for layer, value in strength.items()}
        else:
            changed = strength * factor
        return self.model_copy(update={"strength": changed})

    @property
    def in_stream(self) -> bool:
        """Whether what it changes is of the decoder's residual stream or is added to it: not heads, not the tower."""
        return self.tower == "language" and self.site != "head_out"

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates, none for no condition."""
        if self.gate is None:
            return ()
        return self.gate.gates if isinstance(self.gate, Gates) else (self.gate,)

    @property
    def needs_all_gates(self) -> bool:
        """Whether all of the gates must be open; else one is enough."""
        return isinstance(self.gate, Gates) and self.gate.combine == "all"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Every quantity that decides whether, or how much, it steers."""
        gates = tuple(gate.measure for gate in self.gates)
        return (*gates, self.strength.measure) if isinstance(self.strength, LinearStrength) else gates

    @property
    def stored(self) -> tuple[StoredDirection, ...]:
        """Every stored direction that this intervention reads; one that is read at a fixed layer carries it."""
        found: list[StoredDirection] = []
        if self.operation.stored is not None:
            found.append(self.operation.stored)
        for measure in self.measures:
            for stored in filter(None, (measure.direction, measure.reference)):
                elsewhere = stored.layer is None and measure.layer is not None
                found.append(stored.model_copy(update={"layer": measure.layer}) if elsewhere else stored)
        return tuple(found)

    @property
    def contrast(self) -> MeasuredContrast | None:
        """The contrast that must be measured on each prompt, if any."""
        return self.operation.measured

    @property
    def at_the_end(self) -> bool:
        """Whether it changes and reads nothing before the prompt's last token, by directions that are stored."""
        return (
            self.tower == "language"
            and self.contrast is None
            and (self.tokens in ("last", "generated") or self.phase == "generation")
            and self.positions is None
            and all(measure.pool == "last" and measure.state is None for measure in self.measures)
        )


def site_label(site: str, tower: str = "language") -> str:
    """How a place is called in receipts and tables: `mlp_out`, and in the vision tower `vision.mlp_out`."""
    return site if tower == "language" else f"{tower}.{site}"
