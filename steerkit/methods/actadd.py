"""ActAdd: activation addition from one pair of prompts (arXiv 2308.10248)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from steerkit.errors import EmptyAnchorSetError
from steerkit.interventions import Add, FiniteFloat, Intervention, Tokens
from steerkit.methods._base import Fit, Plan, SteeringMethod, at_depth, by_label
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key


class ActAdd(SteeringMethod):
    """Add the difference of two prompts' hidden states: `h' = h + c * (h(positive) - h(negative))`, at one layer.

    Where the paper leaves a choice, or we differ from it:

    * It pads the two prompts to one length, takes the difference at every position, and adds it to the tokens at the
      front of the prompt. The front of a chat with an image is the template's opening, the system's turn and the
      image, whose tokens have no counterpart in a contrast of two texts. So we take the difference at one place, the
      last prompt token, where either prompt has been read whole, and add it at the tokens that `tokens` names.
    * It writes bare words such as "Love" and "Hate"; we put each prompt into the model's chat template, as the prompts
      that are steered are.
    * It reads and adds before a block, we behind it: its layer n is our n - 1.
    * It sweeps layer and c. Without a sweep we take the block at 40 % of the depth, and 1.

    One pair also holds whatever else its two prompts differ in; with more of them, use CAA.

    Attributes:
        positive: Label of the prompt that is steered towards.
        negative: Label of the prompt that is steered away from.
        layer: 0-based decoder block; None for the one at 40 % of the depth.
        images: Show the two prompts with their images.
        tokens: Which tokens are steered.
        phase: `prompt` steers the prompt only; `both` every generated token as well.
        coefficient: The paper's c.
    """

    name: ClassVar[str] = "actadd"
    paper: ClassVar[str] = "arXiv 2308.10248"
    distinct: ClassVar = ("positive", "negative")

    positive: str = "positive"
    negative: str = "negative"
    layer: Annotated[int, Field(ge=0)] | None = None
    images: bool = False
    tokens: Tokens = "last"
    phase: Literal["prompt", "both"] = "prompt"
    coefficient: FiniteFloat = 1.0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """The anchor set is one pair of prompts."""
        require_labels(anchors, *self._labels)
        if len(anchors) != 2:
            raise EmptyAnchorSetError(
                f"the anchor set holds {len(anchors)} prompts",
                expected=f"two, one labelled {self.positive!r} and one {self.negative!r}",
                fix="choose a pair, or use CAA, which takes the means of many",
            )
        layers = at_depth(model, 0.4) if self.layer is None else (self.layer,)
        return Plan(model.check_layers(layers), shown=(self.images,))

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of each prompt."""
        return by_label(batch, model.capture(batch, images=self.images, layers=layers), self._labels)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Their difference."""
        (layer,) = layers
        direction = {Key(layer): found[self.positive][layer].mean - found[self.negative][layer].mean}
        add = Intervention(
            operation=Add(), layers=(layer,), tokens=self.tokens, phase=self.phase, strength=self.coefficient
        )
        return Fit(direction, (add,))
