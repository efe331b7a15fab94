"""CMRM: cross-modality representation manipulation (arXiv 2410.09047, ACL Findings 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError
from steerkit.interventions import (
    Add,
    FiniteFloat,
    Gate,
    Intervention,
    Measure,
    MeasuredContrast,
    Prompts,
    StoredDirection,
    _arithmetic as ops,
)
from steerkit.methods._base import Fit, Observations, Plan, SteeringMethod
from steerkit.methods._moments import Groups, Moments
from steerkit.methods._requirements import (
    require_anchors,
    require_captions,
    require_images,
    require_two_kinds,
    require_vision,
)
from steerkit.methods._ridge import separate
from steerkit.models import Images, Sample, SteerableModel
from steerkit.vectors import Key


def _known_counterpart(value: Any) -> Any:
    if callable(value) or value in ("blank", "noise", "original"):
        return value
    raise ValueError("must be 'blank', 'noise', 'original' or a function of the sample that returns its images")


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


Counterpart = Annotated[
    Any,
    BeforeValidator(_known_counterpart),
    PlainSerializer(lambda value: value if isinstance(value, str) else f"function {value.__module__}.{_name(value)}"),
]


KINDS = ("moved", "spared")

Labels = Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(min_length=1)]


class CMRM(SteeringMethod):
    """Undo the shift that an image causes in the hidden states of the prompt's last token.

    With `h_t` the hidden state for the text alone, `h_c` that for the text with a counterpart image and `h` that for
    the real prompt, at the output of each decoder block (Eq. 3 of the paper):

        v = h_t - h_c                h' = h + alpha * v

    At the dataset level v is aggregated over an anchor set; at the sample level it is measured on the very prompt that
    is answered, once, before its first token. Both are measured on unsteered passes.

    Where the paper leaves a choice, or we differ from it:

    * Its Eq. 6 prints `h - v`, which contradicts its Eq. 3. We add, as Eq. 3 says; subtracting would double the shift.
    * `form`: the paper adds each layer's full v at that layer (`literal`). But v[l] already contains what the layers
      below passed up the residual stream, so the additions accumulate and over-correct, more with depth. `increments`,
      the default, adds v[l] - v[l-1]: along the depth this sums to the measured shift, and alpha = 1 needs no tuning.
    * Anchors: harmful prompts alone put the refusal direction into v, and harmless requests are refused too. Use
      harmful and harmless prompts together.
    * It steers prompts with an image. One without has no shift to undo, and where v is added to it nonetheless,
      harmless requests are refused: so `prompts` leaves it as it is.
    * `spared`: what brings refusals back makes harmless requests refused as well, and takes the picture away from
      questions about it. Anchors of these labels are such prompts: v leaves them out, and a prompt that is like them is
      left as it is. Read for that is the text alone, where the language model still tells them apart; see
      `steerkit.methods._ridge.separate`.
    * `aggregate`: the paper takes the first principal component; some readings take the mean. A principal component has
      no sign and, if centred, no common shift: so its sign follows the mean, and centring and scale are explicit.

    Attributes:
        level: `dataset` or `sample`.
        counterpart: Image of `h_c`: `blank` (white) or `noise`, of the original's size, `original`, or (dataset level)
            a function of the sample that returns its images.
        text_side: Text of `h_t`: the `query`, or the `caption` and the query. At the sample level the samples that are
            answered then need captions, and `VLM.generate` must answer them.
        aggregate: `mean`, or `pca` for the first principal component of the differences (dataset level).
        center: Subtract the mean before the principal component is taken.
        scale: Length of a principal component: `mean_projection` (that of the mean along it), `sigma` (the standard
            deviation along it) or `unit`.
        form: `increments` or `literal`; see above.
        phase: `prompt` steers the last prompt token only; `both` generated tokens as well.
        steps: With `both`, a factor of alpha for each generated token; the last holds from there on. None: 1 for all.
        prompts: Which prompts are steered: those `with_image`, or `all` of them; see above.
        spared: Labels of anchors, such as harmless requests and questions about the picture, whose like is not steered;
            one label or several. None: every prompt is steered.
        layers: 0-based decoder blocks; None for all.
        alpha: The paper's mixing coefficient.
        seed: Seed of noise images.
    """

    name: ClassVar[str] = "cmrm"
    paper: ClassVar[str] = "arXiv 2410.09047"

    level: Literal["dataset", "sample"] = "dataset"
    counterpart: Counterpart = "original"
    text_side: Literal["query", "caption"] = "query"
    aggregate: Literal["mean", "pca"] = "mean"
    center: bool = False
    scale: Literal["mean_projection", "sigma", "unit"] = "mean_projection"
    form: Literal["increments", "literal"] = "increments"
    phase: Literal["prompt", "both"] = "prompt"
    steps: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=4096)] | None = None
    prompts: Prompts = "with_image"
    spared: Labels | None = None
    layers: tuple[int, ...] | None = None
    alpha: FiniteFloat = 1.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _no_conflict(self) -> CMRM:
        if self.level == "sample":
            if self.aggregate != "mean":
                raise ValueError("aggregate='pca' conflicts with level='sample', which aggregates nothing")
            if callable(self.counterpart):
                raise ValueError("a function as counterpart conflicts with level='sample': a pack holds no code")
        if self.steps is not None and (self.phase == "prompt" or not any(self.steps)):
            raise ValueError("steps are factors for generated tokens, not all 0: they need phase='both'")
        # by value: the options of a pack, which names them all, must make the method again
        fields = type(self).model_fields
        changed = [name for name in ("center", "scale") if getattr(self, name) != fields[name].default]
        if self.aggregate == "mean" and changed:
            raise ValueError(f"{changed} apply to aggregate='pca' only")
        return self

    @property
    def _spared(self) -> tuple[str, ...]:
        return (self.spared,) if isinstance(self.spared, str) else self.spared or ()

    @property
    def _text_view(self) -> Literal["text", "caption"]:
        return "caption" if self.text_side == "caption" else "text"

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Every anchor needs an image (and a caption where shown); the sample level reads them for `spared` only."""
        require_vision(model)
        layers = model.check_layers(self.layers)
        if self.level == "sample" and self.spared is None:
            return Plan(layers, measures=False)
        require_anchors(anchors)
        if self.spared is not None:
            require_two_kinds(anchors, *self._spared)
            layers = model.check_layers(None)  # any may turn out to be the one that tells them
        if self.level == "sample":
            return Plan(layers, shown=("text",), rows=True)
        require_images(anchors)
        if self.text_side == "caption":
            require_captions(anchors)
        if self.aggregate == "pca" and self.center and len(anchors) < 2:
            raise EmptyAnchorSetError(
                "one anchor has no principal component once its mean is subtracted",
                expected="at least two anchors",
                fix="add anchors, or use center=False",
            )
        shown: tuple[Images, ...] = ("caption", True) if self.text_side == "caption" else (True,)
        if self.spared is not None:
            shown = (*shown, "text")
        return Plan(layers, second_moments=self.aggregate == "pca", shown=shown, rows=self.spared is not None)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The shift of each sample that is not spared, by layer; with `spared`, the states that tell the two kinds."""
        kinds = {kind: [each for each in batch if (each.label in self._spared) == (kind == "spared")] for kind in KINDS}
        found: dict[str, dict[int, Tensor]] = {}
        if self.spared is not None:
            found = {kind: model.capture(rows, images="text", layers=layers) for kind, rows in kinds.items() if rows}
        moved = kinds["moved"]
        if self.level == "sample" or not moved:
            return found
        steered = model.check_layers(self.layers)
        images: Images = self.counterpart
        if self.text_side == "query" and found:
            text = found["moved"]
        else:
            text = model.capture(moved, images=self._text_view, layers=steered)
        counterpart = model.capture(moved, images=images, layers=steered, seed=self.seed)
        shift = {layer: text[layer].float() - counterpart[layer].float() for layer in steered}
        return {**found, "shift": ops.increments(shift) if self.form == "increments" else shift}

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Aggregate the shifts; at the sample level, say how they are to be measured."""
        tells, gate = ({}, None) if self.spared is None else _gate(found["moved"], found["spared"])
        steered = model.check_layers(self.layers)
        if self.level == "sample":
            contrast = MeasuredContrast(
                positive=self._text_view,
                negative=cast("Literal['blank', 'noise', 'original']", self.counterpart),
                form=self.form,
                seed=self.seed,
            )
            return Fit(tells, (self._intervention(Add(direction=contrast), steered, gate),))
        directions = {Key(layer): self._aggregate(moments) for layer, moments in found["shift"].items()}
        return Fit({**directions, **tells}, (self._intervention(Add(), steered, gate),))

    def _intervention(self, operation: Add, layers: Sequence[int], gate: Gate | None) -> Intervention:
        return Intervention(
            operation=operation,
            layers=tuple(layers),
            tokens="last",
            phase=self.phase,
            steps=self.steps,
            prompts=self.prompts,
            gate=gate,
            strength=self.alpha,
        )

    def _aggregate(self, shift: Moments) -> Tensor:
        if self.aggregate == "mean":
            return shift.mean
        direction, sigma = shift.principal(center=self.center)
        length = {"unit": 1.0, "sigma": sigma, "mean_projection": float(shift.mean @ direction)}[self.scale]
        return length * direction


def _gate(moved: Mapping[int, Moments], spared: Mapping[int, Moments]) -> tuple[dict[Key, Tensor], Gate]:
    """The direction that tells what is moved from what is spared by its text, and the gate that it opens."""
    rows = {layer: (torch.cat(moved[layer].kept), torch.cat(spared[layer].kept)) for layer in moved}
    layer, unit, threshold = separate(rows)
    measure = Measure(
        kind="projection",
        direction=StoredDirection(name="spared", layer=layer),
        layer=layer,
        state=MeasuredContrast(positive="text", negative=None, form="literal"),
    )
    return {Key(layer, name="spared"): unit}, Gate(measure=measure, threshold=threshold)
