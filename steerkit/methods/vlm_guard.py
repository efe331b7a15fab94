"""VLM-Guard: the safety subspace of the language model as supervision for the whole (arXiv 2502.10486)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError
from steerkit.interventions import (
    Ablate,
    AddProjection,
    FiniteFloat,
    Gate,
    Intervention,
    Measure,
    MeasuredContrast,
    StoredDirection,
)
from steerkit.methods._base import Fit, Plan, SteeringMethod, by_label
from steerkit.methods._differences import (
    difference_components,
    neighbour_differences,
    pair_components,
    require_neighbours,
)
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_labels, require_vision
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key

TEXT_STATE = MeasuredContrast(positive="text", negative=None, form="literal")
"""The state that the text of the prompt alone has at its last token."""


class VLMGuard(SteeringMethod):
    """Put the text's own component in the safety subspace in place of the image-blurred one.

    From text-only prompts, with A the differences of harmful and harmless states at the last token and V `[m, hidden]`
    its leading right singular vectors; h(q) is the state of the same prompt without its image:

        h' = h - h V^T V            h* = h' + alpha * g * h(q) V^T V            g = 1 if h(q) . V1 > 0, else 0

    Where the paper leaves a choice, or we differ from it:

    * Read with h in place of h', the second formula would remove nothing, and h' would be of no use.
    * A singular vector has no sign: V1 points from harmless to harmful, so that the gate opens for harmful prompts.
    * `threshold`: h(q) . V1 has no natural zero, since states are not centred; `middle` puts it half way between the
      means of the two labels in each layer. The paper's 0 is `zero`, the default.
    * h' removes the component whether the gate opens or not, as the formula has it. `gate_all` leaves a prompt whose
      gate stays shut as it is.
    * A prompt without an image is left alone: h is h(q) there, and no image has blurred what h' removes.
    * Harmful and harmless prompts are not paired by anything but their number: by default A holds the differences of
      all with all, from their moments. `neighbours` takes anchors 2i and 2i + 1 as pair i.
    * m is not given. At 1, the default, the subspace is what anchors differ in most: harm only where that is harm.
    * No code is public. We steer the last token of the prompt at every block; `phase="both"` also the generated ones.

    It measures each prompt with an image once more, without its image, and needs the processor for that.

    Attributes:
        harmful: Label of the harmful prompts.
        harmless: Label of the harmless ones.
        pairing: `all` or `neighbours`; see above.
        rank: The paper's m.
        layers: 0-based decoder blocks; None for all.
        threshold: `zero` or `middle`; see above.
        gate_all: Whether the gate is on the removal as well.
        phase: `prompt` steers the last prompt token only; `both` every generated token as well.
        alpha: The paper's mixing coefficient.
    """

    name: ClassVar[str] = "vlm_guard"
    paper: ClassVar[str] = "arXiv 2502.10486"
    distinct: ClassVar = ("harmful", "harmless")

    harmful: str = "harmful"
    harmless: str = "harmless"
    pairing: Literal["all", "neighbours"] = "all"
    rank: Annotated[int, Field(ge=1)] = 1
    layers: tuple[int, ...] | None = None
    threshold: Literal["zero", "middle"] = "zero"
    gate_all: bool = False
    phase: Literal["prompt", "both"] = "prompt"
    alpha: FiniteFloat = 1.0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Both labels, enough of them for the rank, and in pairs where neighbours are."""
        require_vision(model)
        require_labels(anchors, *self._labels)
        if self.pairing == "neighbours":
            require_neighbours(anchors)
        pairs = len(anchors) // 2 if self.pairing == "neighbours" else len(anchors) - 1
        if self.rank > min(pairs, model.record.hidden_size):
            raise EmptyAnchorSetError(
                f"the differences of {len(anchors)} anchors span at most {pairs} directions, and rank is {self.rank}",
                expected="more anchors, or a smaller rank",
            )
        together = 2 if self.pairing == "neighbours" else 1
        return Plan(model.check_layers(self.layers), second_moments=True, shown=(False,), together=together)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The states of the text alone, by label, and the differences of pairs."""
        captured = model.capture(batch, images=False, layers=layers)
        found = dict(by_label(batch, captured, self._labels))
        if self.pairing == "neighbours":
            found["difference"] = neighbour_differences(batch, captured, self.harmful)
        return found

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """The subspace of each layer, and for each its removal and the gated return of the text's component."""
        directions: dict[Key, Tensor] = {}
        middles: dict[int, float] = {}
        for layer in layers:
            harmful, harmless = found[self.harmful][layer], found[self.harmless][layer]
            if self.pairing == "neighbours":
                span = pair_components(found["difference"][layer], self.rank)
            else:
                span = difference_components(harmful, harmless, self.rank)
            directions[Key(layer, name="span")] = span
            directions[Key(layer, name="first")] = span[0]
            middles[layer] = float((harmful.mean + harmless.mean) @ span[0]) / 2
        if self.threshold == "zero":
            return Fit(directions, self._at(tuple(layers), 0.0))
        return Fit(directions, sum((self._at((layer,), middle) for layer, middle in middles.items()), ()))

    def _at(self, layers: tuple[int, ...], threshold: float) -> tuple[Intervention, ...]:
        span, first = StoredDirection(name="span"), StoredDirection(name="first")
        gate = Gate(measure=Measure(kind="projection", direction=first, state=TEXT_STATE), threshold=threshold)
        return (
            Intervention(
                operation=Ablate(direction=span),
                layers=layers,
                phase=self.phase,
                prompts="with_image",
                gate=gate if self.gate_all else None,
            ),
            Intervention(
                operation=AddProjection(contrast=TEXT_STATE, direction=span),
                layers=layers,
                phase=self.phase,
                prompts="with_image",
                gate=gate,
                strength=self.alpha,
            ),
        )
