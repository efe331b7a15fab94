"""ASTRA: steering away from adversarial images, attributed patch by patch (arXiv 2411.16721)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from steerkit.errors import OptionError
from steerkit.interventions import Add, FiniteFloat, Intervention, LinearStrength, Measure, StoredDirection
from steerkit.methods._base import Fit, Plan, SteeringMethod, by_label
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_images, require_labels, require_vision
from steerkit.models import AnsweringModel, Sample, SteerableModel, open_image
from steerkit.vectors import Key

Cells = np.ndarray
"""`[images, grid, grid]` of bool: which cells of a sample's images are shown."""


class ASTRA(SteeringMethod):
    """Steer away from what the harmful patches of adversarial images add, as far as a token lies along it.

    With `h` at the last token of one layer, `r` the mean of benign prompts, and the second mean over adversarial images
    whose attributed patches are masked:

        v = mean[h(adversarial)] - mean[h(masked)]
        c = clip(cos(h - r, v), 0, 1)      h' = h - alpha * c * |h| * v / |v|

    at the last prompt token and at every generated one. Which patches are masked is found by attribution: the model
    answers, the image is shown with random cells of a grid masked, a linear surrogate of the answer's log-likelihood
    over the masks is fitted with a lasso, and the cells with the largest weights are those that brought the answer
    about.

    Where the paper leaves a choice, or we differ from it:

    * The surrogate fits the answer's log-probability; with long answers the log-odds are the same number. Its penalty
      is relative to that which leaves no weight; theirs is 0.01, for log-odds per token of the answer.
    * Cells are squares of the picture, the same for every family, and masking paints them black, as the authors' images
      are. How many are masked is a share of the grid (`top`), and only cells with a positive weight are.
    * The authors read h at a prompt with an empty text; we read it at the anchor's own. Their r is the mean over the
      tokens of the model's descriptions of benign images, ours that of the benign anchors' last prompt tokens.
    * One layer is steered; without a sweep we take the block in the middle, as the authors do for three models.
    * alpha: the authors take 5 to 10 for models of 7 to 13 billion parameters.

    Attributes:
        source: `attribution` finds and masks the patches. `pairs` takes masked images that the anchors bring along, as
            samples with a label of their own; only the means matter, so they need no order. A masked sample may have no
            image at all: v is then the shift that the whole image causes.
        adversarial: Label of the samples with an adversarial image.
        benign: Label of the samples whose mean is r.
        masked: Label of the masked samples, with `source="pairs"`.
        layer: 0-based decoder block; None for the one in the middle.
        alpha: The paper's strength.
        grid: Cells along each side of an image.
        masks: Random masks for each adversarial sample: so many forward passes.
        keep: Probability that a mask shows a cell.
        top: Share of the cells that is masked at most.
        penalty: The lasso's, relative to that which leaves no weight.
        answer_tokens: Length of the answer that is attributed.
        seed: Of the masks; each sample's also depend on the sample, and on nothing else.
    """

    name: ClassVar[str] = "astra"
    paper: ClassVar[str] = "arXiv 2411.16721"

    source: Literal["attribution", "pairs"] = "attribution"
    adversarial: str = "harmful"
    benign: str = "harmless"
    masked: str = "masked"
    layer: Annotated[int, Field(ge=0)] | None = None
    alpha: FiniteFloat = 7.0
    grid: Annotated[int, Field(ge=2, le=64)] = 8
    masks: Annotated[int, Field(ge=4)] = 64
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    top: Annotated[float, Field(gt=0, le=1)] = 0.25
    penalty: Annotated[float, Field(ge=0, lt=1)] = 0.05
    answer_tokens: Annotated[int, Field(ge=1)] = 32
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _sound(self) -> ASTRA:
        labels = (self.adversarial, self.benign, *((self.masked,) if self.source == "pairs" else ()))
        if len(set(labels)) != len(labels):
            raise ValueError(f"two of the labels {labels} are the same")
        # by value, because a pack names every option, those that were left at their defaults too
        attribution = ("answer_tokens", "grid", "keep", "masks", "penalty", "seed", "top")
        unused = [name for name in attribution if getattr(self, name) != type(self).model_fields[name].default]
        if self.source == "pairs" and unused:
            raise ValueError(f"{unused} apply to source='attribution' only")
        return self

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Every label must occur, and no other; every adversarial anchor needs an image."""
        require_vision(model)
        labels = (self.adversarial, self.benign, *((self.masked,) if self.source == "pairs" else ()))
        require_labels(anchors, *labels)
        require_images([anchors[i] for i in range(len(anchors)) if anchors[i].label == self.adversarial])
        if self.source == "attribution" and not isinstance(model, AnsweringModel):
            raise OptionError(
                f"patches are attributed with a {type(model).__name__}",
                expected="a model that generates and gives likelihoods, such as a VLM",
                fix="pass what sk.load returns, or source='pairs'",
            )
        default = max(model.architecture.layer_count // 2 - 1, 0)
        return Plan(model.check_layers((default if self.layer is None else self.layer,)))

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of each group; adversarial samples are attributed and masked."""
        captured = model.capture(batch, layers=layers)
        if self.source == "pairs":
            groups = by_label(batch, captured, (self.adversarial, self.benign, self.masked))
            return {"shown": groups[self.adversarial], "benign": groups[self.benign], "masked": groups[self.masked]}
        groups = by_label(batch, captured, (self.adversarial, self.benign))
        found = {"shown": groups[self.adversarial], "benign": groups[self.benign]}
        adversarial = [sample for sample in batch if sample.label == self.adversarial]
        if adversarial and isinstance(model, AnsweringModel):
            answers = model.generate(adversarial, max_new_tokens=self.answer_tokens, do_sample=False)
            hidden = [
                with_cells(sample, self._shown_cells(model, sample, answer))
                for sample, answer in zip(adversarial, answers, strict=True)
            ]
            found["masked"] = model.capture(hidden, layers=layers)
        return found

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """The difference of the means, the reference, and the cosine-weighted subtraction."""
        (layer,) = layers
        away = LinearStrength(
            measure=Measure(kind="cosine", reference=StoredDirection(name="reference")),
            slope=-self.alpha,
            minimum=min(-self.alpha, 0.0),
            maximum=max(-self.alpha, 0.0),
        )
        directions: dict[Key, Tensor] = {
            Key(layer): found["shown"][layer].mean - found["masked"][layer].mean,
            Key(layer, name="reference"): found["benign"][layer].mean,
        }
        change = Intervention(operation=Add(relative=True), layers=(layer,), tokens="last", phase="both", strength=away)
        return Fit(directions, (change,))

    def _shown_cells(self, model: AnsweringModel, sample: Sample, answer: str) -> Cells:
        """The cells that are left once those that brought the answer about are masked."""

        def likelihood(shown: Sequence[Cells]) -> np.ndarray:
            hidden = [with_cells(sample, cells) for cells in shown]
            found = model.log_likelihood(hidden, [answer] * len(hidden))
            return torch.stack([values.double().sum() for values in found]).numpy()

        shape = (len(sample.images), self.grid, self.grid)
        generator = np.random.default_rng([self.seed, int(sample.digest()[:16], 16)])
        weights = attribute(likelihood, shape, self.masks, self.keep, self.penalty, generator)
        count = max(1, round(self.top * weights.size))
        chosen = np.argsort(-weights, axis=None, kind="stable")[:count]
        shown = np.ones(weights.size, dtype=bool)
        shown[chosen[weights.flat[chosen] > 0]] = False
        return shown.reshape(shape)


def attribute(
    likelihood: Callable[[Sequence[Cells]], np.ndarray],
    shape: tuple[int, int, int],
    masks: int,
    keep: float,
    penalty: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """The weight of each cell in a linear surrogate of the log-likelihood, fitted on random masks.

    Args:
        likelihood: The log-likelihood of the answer for each of some masks, float64.
        shape: Of a mask: images, rows, columns.
        masks: How many are drawn.
        keep: Probability that a cell is shown.
        penalty: See `ASTRA`.
        generator: Source of the masks.
    """
    shown = generator.random((masks, *shape)) < keep
    return lasso(shown.reshape(masks, -1).astype(float), likelihood(list(shown)), penalty).reshape(shape)


def lasso(x: np.ndarray, y: np.ndarray, penalty: float, sweeps: int = 200) -> np.ndarray:
    """Weights that minimise `|y - x w - b|^2 / 2n + l |w|_1` over w and b, by coordinate descent.

    Args:
        x: `[n, features]`.
        y: `[n]`.
        penalty: l, relative to the smallest one at which every weight is zero.
        sweeps: Passes over the features at most.
    """
    x, y = x - x.mean(0), y - y.mean()
    count, features = x.shape
    square = (x**2).mean(0)
    threshold = penalty * float(np.abs(x.T @ y).max()) / count
    weights, rest = np.zeros(features), y.copy()
    for _ in range(sweeps):
        before = weights.copy()
        for j in np.flatnonzero(square):
            pull = x[:, j] @ rest / count + square[j] * weights[j]
            new = np.sign(pull) * max(abs(pull) - threshold, 0.0) / square[j]
            rest += x[:, j] * (weights[j] - new)
            weights[j] = new
        if np.abs(weights - before).max() <= 1e-9 * max(float(np.abs(weights).max()), 1e-300):
            break
    return weights


def with_cells(sample: Sample, shown: Cells) -> Sample:
    """The sample with the cells of its images that are not shown painted black."""
    images = [_painted(open_image(image), cells) for image, cells in zip(sample.images, shown, strict=True)]
    return replace(sample, images=tuple(images))


def _painted(image: Image.Image, shown: np.ndarray) -> Image.Image:
    pixels = np.array(image)
    rows = np.arange(pixels.shape[0]) * shown.shape[0] // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * shown.shape[1] // pixels.shape[1]
    pixels[~shown[rows][:, columns]] = 0
    return Image.fromarray(pixels)
