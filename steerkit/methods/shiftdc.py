"""ShiftDC: disentangling and calibrating the shift that an image causes (arXiv 2502.13095)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from steerkit.interventions import AddProjection, FiniteFloat, Intervention, MeasuredContrast
from steerkit.methods._base import Fit, Plan, SteeringMethod, by_label
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_captions, require_labels, require_vision
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key


class ShiftDC(SteeringMethod):
    """Remove of the shift that an image causes only the part that matters for safety.

    With `h_v` the hidden state of the prompt's last token, `h_t` that of the text-only prompt and `s` the safety
    direction, at the output of each block of the upper half (Eq. 4 to 7 of the paper):

        s = mean(safe) - mean(unsafe)      m = h_v - h_t      h' = h - alpha * (m . s / |s|^2) s

    s is fitted on text-only prompts; m is measured on the very prompt that is answered, without steering.

    Where the paper leaves a choice, or we differ from it:

    * Its text-only prompt holds a caption of the image, which the model writes first. The inputs of a prompt hold no
      caption, so by default `h_t` is the query alone. With `text_side="caption"` the anchors and the samples that are
      answered need captions, and `VLM.generate` must answer them.
    * A prompt without an image has no shift, and is left alone.
    * It does not say whether m of a layer is measured with the layers below calibrated. Its authors' code measures all
      of them without; subtracting each in full (`literal`) then over-corrects, as with CMRM. `increments`, the default,
      subtracts at a layer what the shift gained there.
    * It steers the prompt and says nothing of the answer's tokens: `phase`. The code steers the prompt alone.

    Attributes:
        safe: Label of the harmless anchors.
        unsafe: Label of the harmful ones.
        text_side: What the text-only prompts hold: the `query`, or the `caption` and the query.
        layers: 0-based decoder blocks; None for the upper half.
        form: `increments` or `literal`; see above.
        phase: `prompt` steers the last prompt token only; `both` every generated token as well.
        alpha: Part of the projected shift that is removed.
    """

    name: ClassVar[str] = "shiftdc"
    paper: ClassVar[str] = "arXiv 2502.13095"
    distinct: ClassVar = ("safe", "unsafe")

    safe: str = "harmless"
    unsafe: str = "harmful"
    text_side: Literal["query", "caption"] = "query"
    layers: tuple[int, ...] | None = None
    form: Literal["increments", "literal"] = "increments"
    phase: Literal["prompt", "both"] = "prompt"
    alpha: FiniteFloat = 1.0

    @property
    def _shown(self) -> Literal["text", "caption"]:
        return "caption" if self.text_side == "caption" else "text"

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Both labels must occur, and no other; where captions are shown, each anchor needs one."""
        require_vision(model)
        require_labels(anchors, *self._labels)
        if self.text_side == "caption":
            require_captions(anchors)
        count = model.architecture.layer_count
        layers = model.check_layers(range(count // 2, count) if self.layers is None else self.layers)
        return Plan(layers, shown=(self._shown,))

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of each label, for the text alone."""
        return by_label(batch, model.capture(batch, images=self._shown, layers=layers), self._labels)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """The safety direction of each layer, and the contrast that is projected on it."""
        safe, unsafe = found[self.safe], found[self.unsafe]
        directions = {Key(layer): safe[layer].mean - unsafe[layer].mean for layer in layers}
        # towards the text: the projection of h_t - h_v is added, which is that of m subtracted
        back = AddProjection(contrast=MeasuredContrast(positive=self._shown, negative="original", form=self.form))
        change = Intervention(
            operation=back,
            layers=tuple(layers),
            tokens="last",
            phase=self.phase,
            prompts="with_image",
            strength=self.alpha,
        )
        return Fit(directions, (change,))
