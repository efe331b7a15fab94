"""What engines must know of the vision tower: where its passes belong, and what can be done in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from steerkit.engines.calls import CallTracker
from steerkit.engines.passes import Observed, VisionPass
from steerkit.errors import EngineError
from steerkit.interventions import Intervention

if TYPE_CHECKING:
    from steerkit.engines.steps import Place


def pass_at(tracker: CallTracker, place: Place, h: Tensor) -> Observed | None:
    """The pass that a hidden state belongs to, or None where nothing is to be observed."""
    if place.tower == "language":
        return tracker.current
    tower, prompt = tracker.architecture.vision, tracker.prompt()
    if tower is None or prompt is None:
        return None
    rows, length = (1, h.shape[0]) if h.dim() == 2 else (h.shape[0], h.shape[1])
    patches = length - tower.class_tokens
    return VisionPass(prompt, rows, length, range(patches) if tower.class_behind else range(length - patches, length))


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
