"""The refusal direction: one direction that mediates refusal (arXiv 2406.11717)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from steerkit.interventions import Ablate, Add, FiniteFloat, Intervention, StoredDirection, Tokens
from steerkit.methods._base import Fit, Plan, SteeringMethod, at_depth, by_label
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key


class RefusalDirection(SteeringMethod):
    """Add, or ablate, the direction of refusal: `r = mean(harmful) - mean(harmless)`.

        add, at one layer:           h' = h + c * r
        ablate, at every layer:      h' = h - (h . r / |r|^2) r

    Adding makes a model refuse, ablating keeps it from refusing. r is read at the last prompt token of one layer; the
    paper chooses layer and position by a search on validation prompts, which is not repeated here: the position is the
    last prompt token and the layer, if none is given, the block at 60 % of the depth. The paper ablates what every
    block's attention and MLP write; we ablate the output of every block, so that within a block the MLP still reads
    what the attention wrote along r, and the first block what the embedding holds of it. Its code reads and adds r at
    the input of a block, we at the output, so its layer n is our n - 1.

    Attributes:
        mode: `add` or `ablate`.
        harmful: Label of the harmful prompts.
        harmless: Label of the harmless ones.
        layer: 0-based decoder block that r is read from, and added at; None for the one at 60 % of the depth.
        images: Show the anchors with their images. Without, r is that of the text-aligned language model.
        tokens: Which tokens are steered.
        coefficient: The paper's c; for `ablate`, the part of the component that is removed.
    """

    name: ClassVar[str] = "refusal_direction"
    paper: ClassVar[str] = "arXiv 2406.11717"
    distinct: ClassVar = ("harmful", "harmless")

    mode: Literal["add", "ablate"] = "add"
    harmful: str = "harmful"
    harmless: str = "harmless"
    layer: Annotated[int, Field(ge=0)] | None = None
    images: bool = False
    tokens: Tokens = "all"
    coefficient: FiniteFloat = 1.0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Both labels must occur, and no other."""
        require_labels(anchors, *self._labels)
        layers = at_depth(model, 0.6) if self.layer is None else (self.layer,)
        return Plan(model.check_layers(layers), shown=(self.images,))

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of each label."""
        return by_label(batch, model.capture(batch, images=self.images, layers=layers), self._labels)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """The difference of the means at the reading layer, and what is done with it."""
        (layer,) = layers
        direction = {Key(layer): found[self.harmful][layer].mean - found[self.harmless][layer].mean}
        if self.mode == "add":
            change = Intervention(operation=Add(), layers=(layer,), tokens=self.tokens, strength=self.coefficient)
        else:
            change = Intervention(
                operation=Ablate(direction=StoredDirection(layer=layer)),
                layers="all",
                tokens=self.tokens,
                strength=self.coefficient,
            )
        return Fit(direction, (change,))
