"""An intervention: what is done, where, when and how much, as data.

Interventions are frozen pydantic models and travel inside the pack as JSON, so they can be read, checked, composed and
refused, and any engine can run them. `ops.py` holds the arithmetic of each operation. This module needs no torch.
"""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Site: TypeAlias = Literal["resid_post", "mlp_out", "attn_out", "head_out"]
"""Where in a layer: the output of the block, of its MLP, or of its attention; or `head_out`, the attention heads side
by side, which is the input of the projection at the end of the attention."""

Tower: TypeAlias = Literal["language", "vision"]
"""The decoder, or the tower that turns an image into features."""

Tokens: TypeAlias = Literal["last", "all", "image", "text", "system", "after_image", "generated"]
"""Which tokens, by meaning.

`last` is the last real token of the prompt and, in the generation phase, the newest token. `all` is every real token.
`system`, `image`, `text` (what is neither) and `after_image` (text behind the last image) are tokens of the prompt.
`generated` are the tokens after the prompt. Padding is never selected.

In the vision tower, `all` is every token, class tokens included, and `image` the patches alone; there are no others.
"""

Phase: TypeAlias = Literal["prompt", "generation", "both"]

Prompts: TypeAlias = Literal["all", "with_image", "without_image"]
"""Which prompts, with their answers: those that hold an image, those that hold none, or all."""

View: TypeAlias = Literal["text", "caption", "original", "blank", "noise"]
"""How a sample is shown to the model.

`text`: its image and placeholder removed; `caption`: text only, with the caption in front; `original`: as it is;
`blank`: a white image of the same size; `noise`: uniform RGB noise of the same size, seeded.
"""

_LAYER = re.compile(r"0|[1-9][0-9]*")

Pool: TypeAlias = Literal["last", "mean"]
"""What stands for a whole prompt: its last token, or the mean over its tokens."""

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """Base of everything that is serialised: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class StoredDirection(Frozen):
    """A direction that the vector carries.

    Attributes:
        name: Which of the tensors stored for a layer; empty for the only one.
        layer: Take the tensor stored at this layer, wherever it is applied. None: the one of the layer itself.
    """

    source: Literal["stored"] = "stored"
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$", max_length=64)
    layer: int | None = Field(default=None, ge=0)


class MeasuredContrast(Frozen):
    """`h(positive) - h(negative)`, measured on the prompt itself without steering, at its last token.

    Attributes:
        positive: The view that is moved towards.
        negative: The view that is moved away from; None: none, and what is measured is the state `h(positive)` itself.
        form: `literal`: the contrast of a layer is added at that layer. `increments`: a layer adds only what it
            contributes beyond the steered layer below, so that the additions sum to the measured contrast.
        seed: Seed of a noise view.
    """

    source: Literal["contrast"] = "contrast"
    positive: View = "text"
    negative: View | None = "blank"
    form: Literal["literal", "increments"] = "increments"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _differ(self) -> MeasuredContrast:
        if self.positive == self.negative:
            raise ValueError(f"a contrast of {self.positive!r} with itself is zero")
        if self.negative is None and self.form == "increments":
            raise ValueError("form='increments' of a state: only contrasts have increments, a state is 'literal'")
        return self


Direction: TypeAlias = Annotated[StoredDirection | MeasuredContrast, Field(discriminator="source")]


class Add(Frozen):
    """`h + s * d`, or `h + s * |h| * d / |d|` when `relative`."""

    kind: Literal["add"] = "add"
    direction: Direction = StoredDirection()
    relative: bool = False


class Ablate(Frozen):
    """`h - s * P h` with P the projection on the direction, or on the span of `[k, hidden]` directions."""

    kind: Literal["ablate"] = "ablate"
    direction: StoredDirection = StoredDirection()


class AddProjection(Frozen):
    """`h + s * P c`: add the part of a measured contrast `c` that lies along a stored direction."""

    kind: Literal["add_projection"] = "add_projection"
    contrast: MeasuredContrast
    direction: StoredDirection = StoredDirection()


class Clamp(Frozen):
    """Bound the coordinate of h along the unit direction to `[minimum, maximum]`; s blends from h to the result."""

    kind: Literal["clamp"] = "clamp"
    direction: StoredDirection = StoredDirection()
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Clamp:
        if self.minimum is None and self.maximum is None:
            raise ValueError("a clamp needs a minimum or a maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} exceeds maximum {self.maximum}")
        return self


class Scale(Frozen):
    """Multiply the coordinate of h along the direction by `factor`; s blends from h to the result."""

    kind: Literal["scale"] = "scale"
    direction: StoredDirection = StoredDirection()
    factor: FiniteFloat


Operation: TypeAlias = Annotated[Add | Ablate | AddProjection | Clamp | Scale, Field(discriminator="kind")]


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
        prompts: Which prompts of a batch, by whether they hold an image.
        gate: Condition on a measured quantity, or on several.
        strength: Dose; multiplied by the strength given to `steer`.
        norm_preserving: Rescale each changed token to the norm it had.
    """

    operation: Operation = Add()
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    site: Site = "resid_post"
    tower: Tower = "language"
    tokens: Tokens = "last"
    phase: Phase = "both"
    prompts: Prompts = "all"
    gate: Gate | Gates | None = None
    strength: Strength = 1.0
    norm_preserving: bool = False

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if not isinstance(layers, str) and (not layers or len(set(layers)) != len(layers)):
            raise ValueError(f"layers {list(layers)} are empty or repeat")
        return layers

    @field_validator("strength", mode="before")
    @classmethod
    def _plain_keys(cls, strength: object) -> object:
        if not isinstance(strength, dict):
            return strength
        for key in strength:
            if isinstance(key, str) and not key.isidentifier() and not _LAYER.fullmatch(key):
                raise ValueError(f"{key!r:.40} is no layer: '01' and '1' would be the same")
        # keys of JSON are strings, which a strict reading takes for no integers
        return {int(key) if isinstance(key, str) and _LAYER.fullmatch(key) else key: strength[key] for key in strength}

    @model_validator(mode="after")
    def _coherent(self) -> Intervention:
        if self.phase == "prompt" and self.tokens == "generated":
            raise ValueError("tokens='generated' never occur in phase='prompt'")
        if self.phase == "generation" and self.tokens in ("image", "text", "system", "after_image"):
            raise ValueError(f"tokens={self.tokens!r} are prompt tokens and never occur in phase='generation'")
        if self.prompts == "without_image" and (self.tokens in ("image", "after_image") or self.tower == "vision"):
            place = "the vision tower" if self.tower == "vision" else f"tokens={self.tokens!r}"
            raise ValueError(f"prompts='without_image' never reach {place}")
        if isinstance(self.strength, dict) and any(layer < 0 for layer in self.strength):
            raise ValueError("a per-layer strength names a negative layer")
        return self

    def strength_at(self, layer: int) -> float:
        """The fixed part of the strength at a layer (1 for a measured strength)."""
        if isinstance(self.strength, dict):
            return self.strength.get(layer, 0.0)
        return 1.0 if isinstance(self.strength, LinearStrength) else float(self.strength)

    def strength_bounds(self, layer: int) -> tuple[float, ...]:
        """The ends of a measured strength; the strength at a layer, where it is fixed."""
        if isinstance(self.strength, LinearStrength):
            return self.strength.minimum, self.strength.maximum
        return (self.strength_at(layer),)

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
    def measures(self) -> tuple[Measure, ...]:
        """Every quantity that decides whether, or how much, it steers."""
        gates = tuple(gate.measure for gate in self.gates)
        return (*gates, self.strength.measure) if isinstance(self.strength, LinearStrength) else gates

    @property
    def stored(self) -> tuple[StoredDirection, ...]:
        """Every stored direction that this intervention reads; one that is read at a fixed layer carries it."""
        found: list[StoredDirection] = []
        if isinstance(self.operation.direction, StoredDirection):
            found.append(self.operation.direction)
        for measure in self.measures:
            for stored in filter(None, (measure.direction, measure.reference)):
                elsewhere = stored.layer is None and measure.layer is not None
                found.append(stored.model_copy(update={"layer": measure.layer}) if elsewhere else stored)
        return tuple(found)

    @property
    def contrast(self) -> MeasuredContrast | None:
        """The contrast that must be measured on each prompt, if any."""
        if isinstance(self.operation, AddProjection):
            return self.operation.contrast
        direction = self.operation.direction
        return direction if isinstance(direction, MeasuredContrast) else None


def site_label(site: str, tower: str = "language") -> str:
    """How a place is called in receipts and tables: `mlp_out`, and in the vision tower `vision.mlp_out`."""
    return site if tower == "language" else f"{tower}.{site}"


def is_finite(value: object) -> bool:
    """Whether a value is a number that can serve as a strength: any real one, numpy's scalars among them."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
