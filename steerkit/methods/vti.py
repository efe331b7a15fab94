"""VTI: visual and textual intervention against hallucination (arXiv 2410.15778)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError
from steerkit.interventions import Add, FiniteFloat, Intervention, Site, Tower
from steerkit.methods._base import Fit, Plan, SteeringMethod
from steerkit.methods._differences import neighbour_differences, require_neighbours, require_shift
from steerkit.methods._moments import Groups, Moments, Observations
from steerkit.methods._requirements import require_images, require_labels, require_vision
from steerkit.models import Sample, SteerableModel, open_image
from steerkit.vectors import Key

RATE = 0.1
"""What the authors multiply alpha with."""


class VTI(SteeringMethod):
    """Turn what the MLPs write, in the decoder and in the vision tower, towards stable features.

    Textual part, for pairs of one image and question with a true and with a hallucinated caption, at the last token:

        D(i) = h(true caption i) - h(hallucinated caption i)

    Visual part, for each image, in every block of the vision tower, with m copies of which most cells are blotted out:

        D(i) = 1/m sum_k h(masked copy k of image i) - h(image i)

    Of both, per layer, the direction is d = mean(D) + PC1(D), PC1 being the first principal component of the centred
    D(i), of length 1. At the output of every MLP, at every token x:

        x' = |x| * normalise(x / |x| + 0.1 * alpha * d / |d|)

    Where the paper leaves a choice, or we differ from it:

    * The public code subtracts the clean image from the mean of the masked ones, and so moves towards the average; its
      prose can be read the other way round. We do as the code does; a negative alpha_image turns it around.
    * The code takes one component over all layers at once and, in the tower, one direction for each position. We take
      one for each layer, of the mean over the tokens: it streams, and fits towers whose images differ in size. Its PC1
      has length 1 over all layers together, and so weighs less beside the mean than here.
    * PC1 has no sign: it follows the mean. The code's has that of the largest loading of a demonstration.
    * Directions are read at the output of the block and applied to that of its MLP, as in the code (whose last one is
      read behind the final norm). `read="mlp_out"` reads where it applies.
    * A caption stands at the end of the anchor's text, within the user's turn; the template's end follows it.
    * Patches are masked in the image, as cells of a grid, by its mean colour, before it is resized.

    Attributes:
        parts: `both`, the `text` part or the `vision` part, which needs no labels.
        positive: Label of the anchors with a true caption.
        negative: Label of those with a hallucinated one; the two of a pair stand next to each other.
        layers: 0-based decoder blocks of the textual part; None for all. The visual part takes all of the tower.
        read: Site at which the directions are read.
        alpha_text: Dose of the textual part.
        alpha_image: Dose of the visual part.
        masks: The paper's m.
        mask_ratio: Share of the cells that a mask blots out.
        grid: Cells along each side of the image.
        seed: Seed of the masks.
    """

    name: ClassVar[str] = "vti"
    paper: ClassVar[str] = "arXiv 2410.15778"
    distinct: ClassVar = ("positive", "negative")

    parts: Literal["both", "text", "vision"] = "both"
    positive: str = "truthful"
    negative: str = "hallucinated"
    layers: tuple[int, ...] | None = None
    read: Site = "resid_post"
    alpha_text: FiniteFloat = 0.9
    alpha_image: FiniteFloat = 0.9
    masks: Annotated[int, Field(ge=1)] = 50
    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.99
    grid: Annotated[int, Field(ge=1)] = 24
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _possible(self) -> VTI:
        if self.read == "head_out":
            raise ValueError("read='head_out' has another width than the MLP's output")
        if int(self.mask_ratio * self.grid**2) < 1:
            raise ValueError(f"mask_ratio {self.mask_ratio} of {self.grid**2} cells blots out none")
        return self

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Images everywhere, pairs for the textual part, a vision tower for the visual one."""
        require_vision(model)
        require_images(anchors)
        images = len(anchors)
        if self.parts != "vision":
            require_labels(anchors, *self._labels)
            require_neighbours(anchors)
            images = images // 2
        if images < 2:
            raise EmptyAnchorSetError(
                f"{images} image has no principal component once its mean is subtracted", expected="at least two"
            )
        if self.parts != "text":
            model.architecture.check_site("mlp_out", "vision")
        together = 1 if self.parts == "vision" else 2
        return Plan(model.check_layers(self.layers), second_moments=True, together=together)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """What a true caption changes, and what masking changes."""
        found: dict[str, dict[int, Tensor]] = {}
        if self.parts != "vision":
            captured = model.capture(batch, layers=layers, site=self.read)
            found["text"] = neighbour_differences(batch, captured, self.positive)
        if self.parts != "text":
            seen = batch if self.parts == "vision" else [sample for sample in batch if sample.label == self.positive]
            clean = model.capture(seen, site=self.read, tower="vision")
            total = {layer: torch.zeros_like(rows, dtype=torch.float32) for layer, rows in clean.items()}
            for number in range(self.masks):
                masked = model.capture(seen, images=self._masks(number), site=self.read, tower="vision")
                total = {layer: rows + masked[layer].float() for layer, rows in total.items()}
            found["vision"] = {layer: rows / self.masks - clean[layer].float() for layer, rows in total.items()}
        return found

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Mean and first component of each layer, and a turn by them that keeps the norm."""
        directions: dict[Key, Tensor] = {}
        interventions: list[Intervention] = []
        parts: tuple[tuple[Tower, str, float], ...] = (
            ("language", "text", self.alpha_text),
            ("vision", "vision", self.alpha_image),
        )
        for tower, group, alpha in parts:
            if group not in found:
                continue
            for layer, moments in found[group].items():
                directions[Key(layer, "mlp_out", tower=tower)] = _direction(moments)
            interventions.append(
                Intervention(
                    operation=Add(relative=True),
                    layers=tuple(found[group]),
                    site="mlp_out",
                    tower=tower,
                    tokens="all",
                    phase="both" if tower == "language" else "prompt",
                    strength=RATE * alpha,
                    norm_preserving=True,
                )
            )
        return Fit(directions, tuple(interventions))

    def _masks(self, number: int) -> Callable[[Sample], list[Image.Image]]:
        def masked(sample: Sample) -> list[Image.Image]:
            generator = np.random.default_rng((self.seed, number))
            return [blotted(open_image(image), self.grid, self.mask_ratio, generator) for image in sample.images]

        return masked


def blotted(image: Image.Image, grid: int, ratio: float, generator: np.random.Generator) -> Image.Image:
    """The image with a share of the cells of a grid, chosen at random, in its mean colour."""
    pixels = np.array(image)
    color = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows, columns = (np.linspace(0, side, grid + 1).astype(int) for side in pixels.shape[:2])
    for cell in generator.permutation(grid**2)[: int(ratio * grid**2)]:
        row, column = divmod(int(cell), grid)
        pixels[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = color
    return Image.fromarray(pixels)


def _direction(shift: Moments) -> Tensor:
    require_shift(shift.mean)
    return shift.mean + shift.principal(center=True)[0]
