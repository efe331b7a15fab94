"""LLaVA-1.5 at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo_training import tokenizers, world
from demo_training.family import NORMALISE, PATCHES_PER_SIDE, SQUARE, DemoFamily, Size, decoder_config, pixels_of


class LlavaDemo(DemoFamily):
    """LLaVA-1.5: a CLIP tower, a two-layer projector, a Llama decoder."""

    answer_prefix = " "
    patches_know_their_place = True

    def __init__(self, size: Size) -> None:
        """Build it with random weights."""
        tokenizer: Any = tokenizers.llama_tokenizer(tokenizers.LLAVA_TEMPLATE)
        self._tokens = PATCHES_PER_SIDE**2
        vision = transformers.CLIPVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=size.vision_mlp,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=4,
            image_size=world.IMAGE_SIDE,
            patch_size=world.IMAGE_SIDE // PATCHES_PER_SIDE,
            projection_dim=size.vision_hidden,
        )
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=transformers.LlamaConfig(**decoder_config(size, tokenizer)),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=self._tokens,
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
        model = transformers.LlavaForConditionalGeneration(config)
        for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            nn.init.xavier_uniform_(layer.weight)
        super().__init__(model, tokenizer, "<image>")

    @property
    def decoder(self) -> Any:
        """The Llama decoder."""
        return self.model.model.language_model

    @property
    def head(self) -> nn.Module:
        """The output embeddings."""
        return self.model.lm_head

    def prompt(self, question: str, with_image: bool) -> str:
        """The layout of LLaVA-1.5."""
        return f"USER: {'<image>' * self._tokens + chr(10) if with_image else ''}{question}\nASSISTANT:"

    def vision_parameters(self) -> list[nn.Parameter]:
        """The CLIP tower."""
        return list(self.model.model.vision_tower.parameters())

    def connector_parameters(self) -> list[nn.Parameter]:
        """The projector."""
        return list(self.model.model.multi_modal_projector.parameters())

    def patch_features(self, images: list[Image.Image]) -> Tensor:
        """The tower's patches, without its class token."""
        return self.model.model.vision_tower(pixel_values=pixels_of(images)).last_hidden_state[:, 1:]

    def query_features(self, images: list[Image.Image]) -> None:
        """There is no Q-Former."""
        return

    def image_embeddings(self, images: list[Image.Image], questions: list[str]) -> Tensor:
        """The projected patches."""
        with torch.no_grad():
            features = self.patch_features(images)
        return self.model.model.multi_modal_projector(features)

    def positions(self, ids: Tensor, with_image: bool) -> None:
        """Left to the decoder."""
        return

    def save_processor(self, folder: Path) -> None:
        """Write a `LlavaProcessor`."""
        images = CLIPImageProcessorPil(size={"shortest_edge": world.IMAGE_SIDE}, crop_size=SQUARE, **NORMALISE)
        transformers.LlavaProcessor(
            image_processor=images,
            tokenizer=self.tokenizer,
            patch_size=world.IMAGE_SIDE // PATCHES_PER_SIDE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=tokenizers.LLAVA_TEMPLATE,
        ).save_pretrained(folder)
