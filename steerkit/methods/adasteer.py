"""AdaSteer: a strength for each prompt, from where its hidden state lies (arXiv 2504.09466)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from steerkit.interventions import (
    Add,
    FiniteFloat,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    StoredDirection,
    _arithmetic as ops,
)
from steerkit.methods._base import Fit, Plan, SteeringMethod, by_label
from steerkit.methods._differences import require_shift
from steerkit.methods._moments import Groups, Observations, farthest_apart
from steerkit.methods._requirements import require_images, require_labels, require_vision
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key

Line = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
"""Slope, intercept, minimum and maximum."""


class AdaSteer(SteeringMethod):
    """Steer towards rejection as far as the prompt is from it, and undo that where the prompt is harmless.

    Two directions are read at the last prompt token, each at a layer of its own; positions along them are measured on
    a pass that nothing steers:

        r = mean(rejected) - mean(complied)        p_r = (h - mean(complied)) . r / |r|^2     0 complied, 1 rejected
        q = mean(complied) - mean(harmless)        p_q = (h - mean(harmless)) . q / |q|^2     0 harmless, 1 harmful

        h' = h + a_r r + a_q k r      a_r = clip(w_r p_r + b_r)      a_q = clip(w_q p_q + b_q)      k = q . r / |r|^2

    r, q and k are those of each steered layer: what the second term adds is the projection of q on r there.

    Where the paper leaves a choice, or we differ from it:

    * Its groups are prompts of a language model: harmful ones that it rejects, jailbreaks that it complies with, and
      harmless ones. For a model whose safety an image undoes, `rejected` defaults to the harmful anchors shown as text
      alone; name a label to take anchors of that label instead.
    * It tunes w, b and the bounds for each model. Ours follow from the groups. A harmful prompt that would be complied
      with gets all of r (p_r = 0, p_q = 1), one that is rejected already none of it (p_r = 1, and p_q > 1 where k > 0),
      and of one that is harmless the second term takes back what the first gave: a_q runs from 0 at p_q = 1 to

          a_q = -a_r sum(k |r|^2) / sum(k^2 |r|^2)      over the steered layers, a_r at mean(harmless)

      at p_q = 0, the least squares of (a_r + a_q k) r. k differs from layer to layer, so that something of r is left at
      each unless q and r keep their angle; where q is orthogonal to r everywhere, nothing can be taken back.
      `harmfulness_along="rejection"` puts r in place of k r: nothing is left then, and no single a_q of the paper's
      form does the same. On the demo models the two do about the same at strength 1; at twice that, the paper's refuses
      more of the harmless ones.
    * It steers every token of the prompt; we the last one, from which the answer is generated.
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
        harmfulness: w_q, b_q and the bounds of a_q; None for the line that follows from the groups.
        harmfulness_along: What a_q is a coefficient of: the `projection` of q on r, or r itself, `rejection`.
        form: `increments` or `literal`; see above.
        phase: `prompt` steers the last prompt token only; `both` every generated token as well.
    """

    name: ClassVar[str] = "adasteer"
    paper: ClassVar[str] = "arXiv 2504.09466"
    distinct: ClassVar = ("harmful", "harmless", "rejected")

    harmful: str = "harmful"
    harmless: str = "harmless"
    rejected: str | None = None
    layers: tuple[int, ...] | None = None
    rejection_layer: Annotated[int, Field(ge=0)] | None = None
    harmfulness_layer: Annotated[int, Field(ge=0)] | None = None
    rejection: Line = (-1.0, 1.0, 0.0, 1.0)
    harmfulness: Line | None = None
    harmfulness_along: Literal["projection", "rejection"] = "projection"
    form: Literal["increments", "literal"] = "increments"
    phase: Literal["prompt", "both"] = "prompt"

    @model_validator(mode="after")
    def _sound(self) -> AdaSteer:
        for name in ("rejection", "harmfulness"):
            line: Line | None = getattr(self, name)
            if line is not None and line[2] > line[3]:
                raise ValueError(f"the minimum of {name}, {line[2]}, exceeds its maximum {line[3]}")
        return self

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Every label must occur, and no other; without a label for rejected ones, every anchor needs an image."""
        require_labels(anchors, *self._labels)
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
        q = {layer: complied[layer].mean - harmless[layer].mean for layer in layers}
        first = {layer: r[layer] for layer in steered}
        projected = {layer: _along(q[layer], r[layer]) for layer in steered}
        second = first if self.harmfulness_along == "rejection" else projected
        at_r = farthest_apart(rejected, complied) if self.rejection_layer is None else self.rejection_layer
        at_q = farthest_apart(complied, harmless) if self.harmfulness_layer is None else self.harmfulness_layer
        require_shift(r[at_r])
        require_shift(q[at_q])
        directions = {
            **self._added(first, ""),
            **self._added(second, "undone"),
            Key(at_r, name="rejection"): r[at_r],
            Key(at_r, name="complied"): complied[at_r].mean,
            Key(at_q, name="harmfulness"): q[at_q],
            Key(at_q, name="harmless"): harmless[at_q].mean,
        }
        position = float((harmless[at_r].mean - complied[at_r].mean) @ r[at_r] / (r[at_r] @ r[at_r]))
        line = self.harmfulness or _undoing(_value(self.rejection, position), first, second)
        rules = {
            "": _rule(self.rejection, "rejection", "complied", at_r, r[at_r]),
            "undone": _rule(line, "harmfulness", "harmless", at_q, q[at_q]),
        }
        interventions = (
            Intervention(
                operation=Add(direction=StoredDirection(name=name)),
                layers=tuple(steered),
                tokens="last",
                phase=self.phase,
                strength=rule,
            )
            for name, rule in rules.items()
        )
        return Fit(directions, tuple(interventions))

    def _added(self, by_layer: dict[int, Tensor], name: str) -> dict[Key, Tensor]:
        """What is added at each layer, in the form that was asked for."""
        rows = ops.increments(by_layer) if self.form == "increments" else by_layer
        return {Key(layer, name=name): row for layer, row in rows.items()}


def _along(x: Tensor, direction: Tensor) -> Tensor:
    """The projection of x on a direction."""
    return (x @ direction) / (direction @ direction) * direction


def _value(line: Line, position: float) -> float:
    """The strength at a position."""
    slope, intercept, minimum, maximum = line
    return min(max(slope * position + intercept, minimum), maximum)


def _undoing(dose: float, first: dict[int, Tensor], second: dict[int, Tensor]) -> Line:
    """The line that is 0 for harmful prompts, and for harmless ones undoes a dose of `first` by `second`.

    What `second` can undo: the coefficient is that of least squares over all layers, so what it adds is at most as long
    as what it undoes, however small `second` is.
    """
    square = sum(float(row @ row) for row in second.values())
    shared = sum(float(first[layer] @ row) for layer, row in second.items())
    harmless = -dose * shared / square if square else 0.0
    return -harmless, harmless, min(harmless, 0.0), max(harmless, 0.0)


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
