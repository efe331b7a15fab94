"""A family under test: a tiny model of its family, that model's processor, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from PIL import Image
from torch import Tensor

from steerkit.engines.capturing import call_target, forward_inputs
from steerkit.errors import ContractError
from steerkit.models import Architecture, Family, Inputs, PromptFormat, Sample, tokenizer_of
from steerkit.testing.reference_hooks import Place, outputs
from steerkit.testing.samples import picture
from steerkit.vlm import VLM

Make = Callable[[], tuple[Any, Any]]
"""Makes a model of the family and its processor; the same ones at every call."""

Save = Callable[[Path], object]
"""Writes the model and its processor to a folder, as a repository holds them."""

SHORT = "What is this?"
LONG = "How do I bake a cake for the neighbour, and what do I say when I bring it over?"
SYSTEM = "Be brief."
SITES = ("resid_post", "mlp_out", "attn_out")


class AdapterCase:
    """One family and one model; both are made when a check first needs them."""

    def __init__(self, family: Family, make: Make, save: Save | None = None, size: tuple[int, int] = (48, 32)) -> None:
        self.family = family
        self.size = size
        self.make = make
        self._save = save

    def fresh(self) -> VLM:
        """A model that no check has used."""
        model, processor = self.make()
        return VLM(model, processor, self.family)

    @cached_property
    def vlm(self) -> VLM:
        """The model and its processor."""
        return self.fresh()

    def save(self, folder: Path) -> None:
        """Write what `load_processor` reads."""
        if self._save is not None:
            self._save(folder)
        else:
            model, processor = self.make()
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)

    @property
    def architecture(self) -> Architecture:
        """What is known of the model."""
        return self.vlm.architecture

    @property
    def format(self) -> PromptFormat:
        """What is known of its prompts."""
        assert self.vlm.format is not None
        return self.vlm.format

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return tokenizer_of(self.vlm.processor)

    @property
    def takes_images(self) -> bool:
        """Whether the family takes images at all."""
        return self.architecture.takes_images

    def needs_images(self) -> None:
        """Leave a check that is about images.

        Raises:
            SkipTest: The family takes none.
        """
        if not self.takes_images:
            raise SkipTest("the family takes no images")

    def needs_text(self) -> None:
        """Leave a check that is about prompts without an image.

        Raises:
            SkipTest: The family has none.
        """
        if self.family.prompt == "decoder":
            raise SkipTest("the family has no prompt without an image")

    def encode(self, *prompts: Sample) -> Inputs:
        """Samples as they are rendered and encoded."""
        texts = [self.format.render(sample, len(sample.images)) for sample in prompts]
        images = [[image for image in sample.images if isinstance(image, Image.Image)] for sample in prompts]
        return self.vlm.placed(self.format.encode(texts, images))

    def answer(self, inputs: Inputs) -> Tensor:
        """`[rows, vocabulary]` after the prompts."""
        self.vlm.reset()
        return outputs(self.vlm.model, inputs, self.architecture, [])[1].logits[:, -1]

    def used_once(self, model: Any, sample: Sample) -> None:
        """Let a model run without steerkit, for what transformers itself leaves on it; then empty its caches."""
        inputs = forward_inputs(model, self.encode(sample), self.architecture)
        with torch.no_grad():
            call_target(model, inputs, self.architecture)(**inputs)
        for path in self.architecture.transient:
            owner, _, name = path.rpartition(".")
            if isinstance(getattr(model.get_submodule(owner), name), Tensor):
                setattr(model.get_submodule(owner), name, None)

    @property
    def kinds(self) -> list[list[Sample]]:
        """Two prompts of different lengths with images, where the family takes them, and the same two without."""
        width, height = self.size
        shown = [Sample(SHORT, (picture(1, width, height),)), Sample(chat(LONG), (picture(2, height, width + 8),))]
        bare = [Sample(SHORT), Sample(chat(LONG))]
        return [*([shown] if self.takes_images else []), *([bare] if self.family.prompt != "decoder" else [])]

    @property
    def batches(self) -> list[list[Sample]]:
        """The same, as batches that the family takes."""
        return [[sample] for batch in self.kinds for sample in batch] if self.architecture.alone else self.kinds

    @property
    def places(self) -> list[Place]:
        """Every site that a block has, of every block."""
        found = self.architecture
        inner = {"mlp_out": found.mlp, "attn_out": found.attention}
        return [
            (layer, site)
            for layer in range(found.layer_count)
            for site in SITES
            if site == "resid_post" or inner[site][layer] is not None
        ]

    def runs(self, layer: int, batch: Sequence[Sample]) -> bool:
        """Whether a block runs for prompts such as these."""
        return layer not in self.architecture.only_with_image or bool(batch[0].images)

    def image_places(self, ids: Tensor) -> Tensor:
        """Where image tokens are."""
        return torch.isin(ids, torch.tensor(sorted(self.architecture.image_token_ids), device=ids.device))


def chat(question: str) -> tuple[tuple[str, str], ...]:
    """A question after a system turn and an earlier exchange."""
    return (("system", SYSTEM), ("user", "Are you there?"), ("assistant", "Yes."), ("user", question))


def assert_near(found: Tensor, expected: Tensor, difference: str, tolerance: float) -> None:
    """Two tensors agree to a tolerance, relative to the largest entry.

    Raises:
        ContractError: They do not.
    """
    if found.shape != expected.shape:
        raise ContractError(f"{difference}: shapes {tuple(found.shape)} and {tuple(expected.shape)}")
    gap = float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-12))
    if not gap <= tolerance:
        raise ContractError(f"{difference}: hidden states differ by {gap:.3g} of their size")
