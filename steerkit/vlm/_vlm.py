"""A vision-language model and its processor, as one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from steerkit._internal.validation import expect, expect_one_of
from steerkit._text import one_line
from steerkit.analysis import fingerprint
from steerkit.engines import capturing
from steerkit.errors import SampleError
from steerkit.interventions import CapturePool, Site, Tower
from steerkit.models import Images, Sample, as_samples, weights_digest
from steerkit.vectors import Fingerprint
from steerkit.vlm._answers import AnsweringModel


class VLM(AnsweringModel):
    """A loaded model that methods can measure and that answers samples.

    Build one with `steerkit.load` or `steerkit.wrap`. `revision` is the commit of the hub that a model came from, where
    the model's config does not say so: since transformers 5.24, none does.

    Attributes:
        model: The Hugging Face model, untouched; of a PEFT model, the one inside, whose layers hold the adapters.
        processor: Its processor; None where only raw inputs will be used.
        family: What is declared of its family.
        architecture: Where the model's blocks are.
        record: What the model is, as written into packs.
    """

    def capture(
        self,
        samples: Sequence[Sample],
        *,
        images: Images = True,
        layers: Sequence[int] | None = None,
        site: Site = "resid_post",
        tower: Tower = "language",
        pool: CapturePool = "last",
        batch_size: int = 8,
        engine: Literal["nnsight", "hooks"] = "nnsight",
        seed: int = 0,
    ) -> dict[int, Tensor]:
        """The hidden state that stands for each sample: that of its last prompt token, unless `pool` says otherwise.

        Args:
            samples: The samples.
            images: As for `inputs`.
            layers: 0-based blocks; default: all.
            site: Where in the block.
            tower: The decoder, or the vision tower: there the mean over all tokens of the sample's images is read, in
                one pass for each sample.
            pool: `last` token of the prompt, the `mean` over its tokens, or that over those of the `answer` which it
                begins: the assistant's turn that the chat ends with, without what the template writes in front of it.
            batch_size: Prompts per forward pass.
            engine: `nnsight` traces the model; `hooks` is the one to use from several threads. Both give equal numbers.
            seed: Seed of noise images.

        Returns:
            `{layer: [batch, hidden]}` on the model's device, in the model's type; a mean in float32.

        Raises:
            OptionError: A site, tower, pool or engine is unknown, or an argument is of another type.
            LayerRangeError: A layer lies outside the model.
            EngineError: The model has no such site or tower.
            SampleError: There are no samples, or one can't be a prompt of this model; found before the model runs.
            MissingImageError: An image file is missing, or is not an image; found before the model runs.
        """
        expect_one_of(get_args(Site), site=site)
        expect_one_of(get_args(Tower), tower=tower)
        expect_one_of(get_args(CapturePool), pool=pool)
        expect_one_of(("nnsight", "hooks"), engine=engine)
        self.architecture.check_site(site, tower)
        wanted = self.check_layers(layers, tower)
        if tower == "vision":
            batch_size = 1  # where patches are packed, their images can't be told apart
            self._check_seen(samples, images)
        if not len(as_samples(samples)):
            raise SampleError("there are no samples", expected="at least one")
        if pool == "answer":
            self._check_begun(samples, tower)
        if engine == "nnsight":
            from steerkit.engines import nnsight

            read = nnsight.capture
        else:
            read = capturing.capture
        parts: list[tuple[Sequence[int], dict[int, Tensor]]] = []
        for made in self._all(samples, images, batch_size, seed):
            over = self._answer_lengths(made) if pool == "answer" else pool
            with self._asking(samples, images, made) as inputs:
                parts.append((made.indices, read(self.model, inputs, self.architecture, wanted, site, tower, over)))
        order = torch.tensor([index for batch, _ in parts for index in batch], device="cpu").argsort()
        return {
            layer: torch.cat([found[layer] for _, found in parts])[order.to(parts[0][1][layer].device)]
            for layer in wanted
        }

    def fingerprint(self) -> Fingerprint:
        """How the model responds, unsteered, to a few fixed prompts: three short passes, once until it changes.

        Raises:
            ProcessorError: The VLM was wrapped without a processor.
            OptionError: The model has no weights, or is in training mode.
            NonFiniteError: The hidden states hold NaN or infinity.
        """
        return fingerprint(self)

    def weights_digest(self) -> str:
        """Digest of the type and of a few values of every weight.

        It differs for a model that was trained further, quantised, or loaded in another type. Weights that are
        offloaded, or spread over devices, count by their type alone.
        """
        return weights_digest(self.model)

    def __repr__(self) -> str:
        """Class and sizes of the model."""
        found = self.architecture
        return one_line(f"VLM({self._recorded.architecture}, {found.layer_count} layers of {found.hidden_size})")


def check_vlm(given: object) -> None:
    """Refuse what is no VLM, where a model is needed with its processor.

    Raises:
        OptionError: It is something else.
    """
    expect(VLM, "a VLM: a model with its processor", "sk.wrap(model, processor), or what sk.load returns", vlm=given)
