"""What engines must know of the vision tower: its passes, and which of its tokens are steered.

The tower runs before the decoder, once for each prompt that has images, and knows neither padding nor positions: its
hidden states are `[images, tokens, hidden]`, or `[tokens, hidden]` where the patches of all images are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerkit.engines.calls import CallTracker
from steerkit.engines.passes import Observed, Selection
from steerkit.engines.prompts import Prompt
from steerkit.errors import EngineError
from steerkit.interventions import Intervention, Selector

if TYPE_CHECKING:
    from steerkit.engines.steps import Place


@dataclass(frozen=True, slots=True, eq=False)
class VisionPass:
    """One pass of the vision tower, as an application sees it: all of it belongs to the prompt.

    Attributes:
        prompt: The call that it belongs to.
        rows: Number of images, or 1 where they are packed.
        length: Tokens in a row.
        class_tokens: How many of them, in front, stand for no patch.
    """

    prompt: Prompt
    rows: int
    length: int
    class_tokens: int
    start: int = 0
    redone: int = 0
    reads_prompt: bool = True
    decodes: bool = False

    @property
    def graded(self) -> bool:
        """Whether gradients can flow through it; a block that will be run again does not show that."""
        return self.prompt.graded

    @property
    def prompt_length(self) -> int:
        """All of the pass."""
        return self.length

    def visit(self, apply: Callable[[Tensor, VisionPass], Tensor], h: Tensor) -> Tensor:
        """What a function makes of the hidden states."""
        return apply(h, self)

    def generated(self, selection: Selection) -> int:
        """None of the tokens belongs to an answer."""
        return 0

    def select(self, selector: Selector, device: torch.device) -> Selection | None:
        """Every token for `all`, every patch for `image`."""
        first = self.class_tokens if selector.tokens == "image" else 0
        mask = (torch.arange(self.length, device=device) >= first).expand(self.rows, -1)
        rows, columns = mask.nonzero(as_tuple=True)
        return Selection(None, rows, columns)


def pass_at(tracker: CallTracker, place: Place, h: Tensor) -> Observed | None:
    """The pass that a hidden state belongs to, or None where nothing is to be observed."""
    if place.tower == "language":
        return tracker.current
    tower, prompt = tracker.architecture.vision, tracker.prompt()
    if tower is None or prompt is None:
        return None
    rows, length = (1, h.shape[0]) if h.dim() == 2 else (h.shape[0], h.shape[1])
    return VisionPass(prompt, rows, length, tower.class_tokens)


def check(intervention: Intervention) -> None:
    """Refuse what has no meaning in the vision tower.

    Raises:
        EngineError: The intervention wants tokens, a time or a measure that the tower does not have.
    """
    found = []
    if intervention.tokens not in ("all", "image"):
        found.append(f"tokens={intervention.tokens!r}")
    if intervention.phase == "generation":
        found.append("phase='generation'")
    if intervention.contrast is not None or any(m.state is not None for m in intervention.measures):
        found.append("a contrast")
    if any(measure.layer is not None for measure in intervention.measures):
        found.append("a measure with a layer of its own")
    if found:
        raise EngineError(
            f"an intervention in the vision tower has {' and '.join(found)}",
            expected="tokens='all' (class tokens included) or 'image' (patches), while the prompt is read, and "
            "measures of the very token that is steered",
        )
