"""AdaSteer: a strength for each prompt, from where its hidden state lies (arXiv 2504.09466)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from steerkit import ops
from steerkit.adapter import SteerableModel
from steerkit.intervention import (
    Add,
    FiniteFloat,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    StoredDirection,
)
from steerkit.method import (
    Fit,
    Observations,
    Plan,
    SteeringMethod,
    by_label,
    require_images,
    require_labels,
    require_vision,
)
from steerkit.samples import Sample
from steerkit.statistics import Groups, Moments
from steerkit.vector import Key

Line = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
"""Slope, intercept, minimum and maximum."""


class AdaSteer(SteeringMethod):
    """Steer towards rejection as far as the prompt is from it, and less where the prompt is harmless.

    Two directions are read at the last prompt token, each at a layer of its own; positions along them are measured on
    a pass that nothing steers:

        r = mean(rejected) - mean(complied)        p_r = (h - mean(complied)) . r / |r|^2     0 complied, 1 rejected
        q = mean(complied) - mean(harmless)        p_q = (h - mean(harmless)) . q / |q|^2     0 harmless, 1 harmful

        h' = h + (a_r + a_q) r      a_r = clip(w_r p_r + b_r)      a_q = clip(w_q p_q + b_q)

    Where the paper leaves a choice, or we differ from it:

    * Its groups are prompts of a language model: harmful ones that it rejects, jailbreaks that it complies with, and
      harmless ones. For a model whose safety an image undoes, `rejected` defaults to the harmful anchors shown as text
      alone; name a label to take anchors of that label instead.
    * Its second term adds q's projection on r, (q . r / |r|^2) r, layer by layer. We add r for both terms, which
      differs by a factor of each layer: no single coefficient makes up for it.
    * It tunes w, b and the bounds for each model. Ours follow from the groups: a harmful prompt that would be complied
      with gets all of r, one that is rejected already, or is harmless, gets none.
    * It adds at every layer with small coefficients, which accumulate. `increments` adds at each layer what r gained
      there, which sums to r.
    * It finds the reading layers by a probe; we take the layer at which the two groups lie furthest apart in units of
      their spread along the direction.

    Attributes:
        harmful: Label of the harmful anchors, which the model complies with when it is shown their images.
        harmless: Label of the harmless anchors.
        rejected: Label of harmful anchors that the model rejects; None for the `harmful` ones without their images.
        layers: 0-based decoder blocks that are steered; None for all.
        rejection_layer: Block at which p_r is read; None for the one that separates best.
        harmfulness_layer: Block at which p_q is read; None for the one that separates best.
        rejection: w_r, b_r and the bounds of a_r.
        harmfulness: w_q, b_q and the bounds of a_q.
        form: `increments` or `literal`; see above.
        phase: `prompt` steers the last prompt token only; `both` every generated token as well.
    """

    name: ClassVar[str] = "adasteer"
    paper: ClassVar[str] = "arXiv 2504.09466"

    harmful: str = "harmful"
    harmless: str = "harmless"
    rejected: str | None = None
    layers: tuple[int, ...] | None = None
    rejection_layer: Annotated[int, Field(ge=0)] | None = None
    harmfulness_layer: Annotated[int, Field(ge=0)] | None = None
    rejection: Line = (-1.0, 1.0, 0.0, 1.0)
    harmfulness: Line = (1.0, -1.0, -1.0, 0.0)
    form: Literal["increments", "literal"] = "increments"
    phase: Literal["prompt", "both"] = "prompt"

    @model_validator(mode="after")
    def _sound(self) -> AdaSteer:
        labels = [label for label in (self.harmful, self.harmless, self.rejected) if label is not None]
        if len(set(labels)) != len(labels):
            raise ValueError(f"two of the labels {labels} are the same")
        for name in ("rejection", "harmfulness"):
            _, _, minimum, maximum = getattr(self, name)
            if minimum > maximum:
                raise ValueError(f"the minimum of {name}, {minimum}, exceeds its maximum {maximum}")
        return self

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Every label must occur, and no other; without a label for rejected ones, every anchor needs an image."""
        require_labels(anchors, *filter(None, (self.harmful, self.harmless, self.rejected)))
        if self.rejected is None:
            require_vision(model)
            require_images(anchors)
        model.check_layers(self.layers)
        for layer in (self.rejection_layer, self.harmfulness_layer):
            if layer is not None:
                model.check_layers((layer,))
        # every layer is measured, because any may turn out to be the one to read
        shown = (True, "text") if self.rejected is None else (True,)
        return Plan(model.check_layers(None), second_moments=True, shown=shown)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of the three groups."""
        labels = {"complied": self.harmful, "harmless": self.harmless}
        if self.rejected is not None:
            labels["rejected"] = self.rejected
        split = by_label(batch, model.capture(batch, layers=layers), list(labels.values()))
        groups = {group: split[label] for group, label in labels.items()}
        harmful = [sample for sample in batch if sample.label == self.harmful]
        if self.rejected is None and harmful:
            groups["rejected"] = model.capture(harmful, images="text", layers=layers)
        return groups

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Both directions, the layers at which they are read, and the two interventions."""
        rejected, complied, harmless = found["rejected"], found["complied"], found["harmless"]
        steered = model.check_layers(self.layers)
        r = {layer: rejected[layer].mean - complied[layer].mean for layer in layers}
        added = {layer: r[layer] for layer in steered}
        directions = {
            Key(layer): row for layer, row in (ops.increments(added) if self.form == "increments" else added).items()
        }
        at_r = _best(rejected, complied) if self.rejection_layer is None else self.rejection_layer
        at_q = _best(complied, harmless) if self.harmfulness_layer is None else self.harmfulness_layer
        q = complied[at_q].mean - harmless[at_q].mean
        directions |= {
            Key(at_r, name="rejection"): r[at_r],
            Key(at_r, name="complied"): complied[at_r].mean,
            Key(at_q, name="harmfulness"): q,
            Key(at_q, name="harmless"): harmless[at_q].mean,
        }
        places = tuple(steered)
        rules = (
            _rule(self.rejection, "rejection", "complied", at_r, r[at_r]),
            _rule(self.harmfulness, "harmfulness", "harmless", at_q, q),
        )
        return Fit(
            directions,
            tuple(
                Intervention(operation=Add(), layers=places, tokens="last", phase=self.phase, strength=rule)
                for rule in rules
            ),
        )


def _rule(line: Line, direction: str, origin: str, layer: int, along: Tensor) -> LinearStrength:
    """The strength as a function of the projection, which is `|d|` times the position."""
    slope, intercept, minimum, maximum = line
    measure = Measure(
        kind="projection",
        direction=StoredDirection(name=direction, layer=layer),
        reference=StoredDirection(name=origin, layer=layer),
        layer=layer,
        state=MeasuredContrast(positive="original", negative=None, form="literal"),
    )
    return LinearStrength(
        measure=measure, slope=slope / float(along.norm()), intercept=intercept, minimum=minimum, maximum=maximum
    )


def _best(one: dict[int, Moments], other: dict[int, Moments]) -> int:
    """The layer at which the means lie furthest apart, in units of the spread of both groups along their difference."""

    def separation(layer: int) -> float:
        difference = one[layer].mean - other[layer].mean
        spread = one[layer].variance(difference) + other[layer].variance(difference)
        return float(difference.norm()) / max(spread, 1e-12) ** 0.5

    return max(one, key=separation)
