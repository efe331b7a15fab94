"""Interventions, compiled for one model: what is done, read and measured, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steerkit.engines import vision
from steerkit.engines.steps import Group, Kept, Place, Reading, Step, Sum, Together, grouped
from steerkit.errors import EngineError, LayerRangeError, OptionError
from steerkit.interventions import (
    OF_CONTENT,
    OPERATIONS,
    Intervention,
    Measure,
    MeasuredContrast,
    Prompts,
    Site,
    StoredDirection,
    _arithmetic as ops,
    is_finite,
    site_label,
)
from steerkit.models import Architecture
from steerkit.vectors import SteeringVector

_ORDER = {"head_out": 0, "attn_out": 1, "mlp_out": 2, "resid_post": 3}


@dataclass(frozen=True, eq=False)
class Program:
    """What one or several vectors do to a model.

    Attributes:
        groups: What is done at each place.
        readings: The measures that are read off the prompt at each place.
        contrasts: What is measured on each prompt before it is steered.
        prompts: For each vector the prompts that its interventions are for.
    """

    groups: dict[Place, list[Group]]
    readings: dict[Place, list[Reading]]
    contrasts: tuple[Together, ...]
    prompts: tuple[tuple[Prompts, ...], ...]

    @property
    def places(self) -> list[Place]:
        """Every layer and site that must be visited, in the order of the forward pass."""
        places = {*self.groups, *self.readings}
        return sorted(places, key=lambda place: (place.tower == "language", place.layer, _ORDER[place.site]))

    @property
    def moved(self) -> frozenset[tuple[int, str]]:
        """The layers and labels of sites where nothing is done but adding what does not cancel."""
        return frozenset(
            (place.layer, site_label(place.site, place.tower))
            for place, groups in self.groups.items()
            if all(isinstance(change, Sum) and bool(change.exact().any()) for each in groups for change in each.changes)
        )

    def check(self, dtype: torch.dtype) -> None:
        """Refuse what can't be added to hidden states of a type.

        Raises:
            NonFiniteError: A direction, or the sum of several, does not fit the type.
        """
        for groups in self.groups.values():
            for group in groups:
                for step in group.steps:
                    step.check(dtype)
                for change in group.changes:
                    if isinstance(change, Sum) and len(change.steps) > 1:  # else it is that step's
                        change.total.make(dtype)


def compiled(vectors: Sequence[SteeringVector], strengths: Sequence[float], architecture: Architecture) -> Program:
    """The program of several vectors, applied in their order.

    Raises:
        EngineError: An intervention can't be run on this model.
        LayerRangeError: An intervention names a layer that the model does not have.
        OptionError: A strength is not finite.
    """
    compiler = _Compiler(architecture, not any(t.requires_grad for v in vectors for t in v.tensors.values()))
    for index, (vector, strength) in enumerate(zip(vectors, strengths, strict=True)):
        if not is_finite(strength):
            raise OptionError(f"the strength is {strength!r}", expected="a finite number")
        for intervention in vector.interventions:
            compiler.add(index, vector, intervention, float(strength))
    return Program(
        {place: grouped(steps, keeps=compiler.keeps) for place, steps in compiler.steps.items()},
        dict(compiler.readings),
        tuple(compiler.together.values()),
        # the vision tower runs for prompts with an image alone
        tuple(
            tuple("with_image" if each.tower == "vision" else each.prompts for each in vector.interventions)
            for vector in vectors
        ),
    )


@dataclass
class _Compiler:
    """Gathers what a program consists of.

    Attributes:
        keeps: Whether tensors made of the vectors may be kept.
    """

    architecture: Architecture
    keeps: bool
    steps: dict[Place, list[Step]] = field(default_factory=lambda: defaultdict(list))
    readings: dict[Place, list[Reading]] = field(default_factory=lambda: defaultdict(list))
    together: dict[tuple[MeasuredContrast, Site, tuple[int, ...]], Together] = field(default_factory=dict)
    of_prompts: dict[tuple[int, Measure, Site], Reading] = field(default_factory=dict)

    def add(self, index: int, vector: SteeringVector, intervention: Intervention, strength: float) -> None:
        """Compile one intervention."""
        _check(intervention, self.architecture)
        layers = _steered_layers(vector, intervention, self.architecture)
        _check_single(vector, intervention, layers)
        for measure in intervention.measures:
            self._check_measure(measure, intervention, layers)
        operation, rule = intervention.operation, intervention.rule
        contrast = self._contrast(operation.measured, intervention.site, layers)
        for layer in layers:
            direction = None
            if operation.stored is not None:
                found = _stored(vector, operation.stored, layer, intervention)
                direction = Kept(lambda _, found=found: operation.prepare(found), keeps=self.keeps)
            step = Step(
                index,
                intervention,
                layer,
                strength * intervention.strength_at(layer),
                direction,
                contrast,
                tuple((gate, self._reading(vector, intervention, gate.measure, layer)) for gate in intervention.gates),
                rule and self._reading(vector, intervention, rule.measure, layer)
                if (rule := intervention.rule)
                else None,
            )
            self.steps[Place(layer, intervention.site, intervention.tower)].append(step)

    def _contrast(self, contrast: MeasuredContrast | None, site: Site, layers: Sequence[int]) -> Together | None:
        """Where a contrast is measured; together with others, but for increments among other layers."""
        if contrast is None:
            return None
        among = tuple(layers) if contrast.form == "increments" else ()
        found = self.together.setdefault((contrast, site, among), Together(contrast, site, among))
        found.layers.update(layers)
        return found

    def _check_measure(self, measure: Measure, intervention: Intervention, layers: Sequence[int]) -> None:
        if measure.state is not None:
            self._contrast(measure.state, intervention.site, layers if measure.layer is None else (measure.layer,))
        if measure.layer is None:
            return
        if measure.layer >= self.architecture.layer_count:
            raise LayerRangeError(
                f"a measure reads layer {measure.layer}", expected=f"below {self.architecture.layer_count}"
            )
        if measure.state is None and intervention.phase != "generation" and measure.layer > min(layers):
            raise EngineError(
                f"a measure reads layer {measure.layer} but decides on layer {min(layers)}, which comes before",
                expected="a reading layer at or below the first steered layer",
            )

    def _reading(self, vector: SteeringVector, intervention: Intervention, measure: Measure, layer: int) -> Reading:
        """What a measure reads for a step at a layer; what it reads off the prompt, it reads once for all steps."""
        of_prompt = measure.layer is not None and measure.state is None
        key = (id(vector), measure, intervention.site)
        if of_prompt and key in self.of_prompts:
            return self.of_prompts[key]
        at = layer if measure.layer is None else measure.layer
        direction = _stored(vector, measure.direction, at, intervention)
        reference = None if measure.reference is None else _stored(vector, measure.reference, at, intervention)
        state = None
        if measure.state is not None:
            layers = _steered_layers(vector, intervention, self.architecture) if measure.layer is None else (at,)
            state = self._contrast(measure.state, intervention.site, layers)
        found = Reading(
            measure,
            Kept(lambda _: ops.unit(direction.double()).float(), keeps=self.keeps),
            None if reference is None else Kept(lambda _: reference.float(), keeps=self.keeps),
            at,
            state,
        )
        if of_prompt:
            self.of_prompts[key] = found
            self.readings[Place(at, intervention.site)].append(found)
        return found


def _check(intervention: Intervention, architecture: Architecture) -> None:
    """Refuse what this model has not.

    Raises:
        EngineError: It is so.
    """
    architecture.check_site(intervention.site, intervention.tower)
    if intervention.tower == "vision":
        vision.check(intervention)
    elif architecture.encoder_decoder and intervention.tokens in OF_CONTENT:
        raise EngineError(
            f"tokens={intervention.tokens!r} in an encoder-decoder model", expected="last, all or generated"
        )
    if intervention.prompts == "with_image" and not architecture.takes_images:
        raise EngineError(
            "an intervention steers prompts with an image, and this model takes no images",
            expected="a vision-language model, or prompts='all' in the intervention",
        )


def _stored(vector: SteeringVector, stored: StoredDirection, layer: int, intervention: Intervention) -> Tensor:
    found = vector.direction(stored, layer, intervention.site, intervention.tower)
    if found is None:
        raise LayerRangeError(
            f"an intervention reads direction {stored.name!r} at layer {layer}, and the vector holds none there"
        )
    return found


def _steered_layers(vector: SteeringVector, intervention: Intervention, architecture: Architecture) -> tuple[int, ...]:
    """The layers that an intervention steers.

    Raises:
        LayerRangeError: The model does not have one of them.
    """
    layers = tuple(vector.layers_of(intervention))
    if layers and layers[-1] >= (count := architecture.count(intervention.tower)):
        raise LayerRangeError(f"an intervention steers layer {layers[-1]}", expected=f"0 to {count - 1}")
    return layers


def _check_single(vector: SteeringVector, intervention: Intervention, layers: Sequence[int]) -> None:
    """Refuse several directions where one is wanted: only projections know what to do with more.

    Raises:
        EngineError: It is so.
    """
    for stored in intervention.stored[1 if intervention.operation.spans else 0 :]:
        for layer in layers:
            found = vector.direction(stored, layer, intervention.site, intervention.tower)
            if found is not None and found.dim() != 1:
                raise EngineError(
                    f"an intervention of kind {intervention.operation.kind!r} reads {found.shape[0]} directions "
                    f"{stored.name!r} at layer {layer}",
                    expected="one direction [hidden]; "
                    f"only {' and '.join(kind for kind, each in OPERATIONS.items() if each.spans)} take [k, hidden]",
                )
