"""InstructBLIP at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from demo_training import tokenizers, world
from demo_training.family import NORMALISE, PATCHES_PER_SIDE, SQUARE, DemoFamily, Size, decoder_config, pixels_of


class InstructBlipDemo(DemoFamily):
    """InstructBLIP: a vision tower, a Q-Former that reads the question, a projection, a Llama decoder."""

    answer_prefix = " "
    patches_know_their_place = True

    def __init__(self, size: Size) -> None:
        """Build it with random weights."""
        tokenizer: Any = tokenizers.llama_tokenizer(None)
        self._tokens = size.queries
        shared = {
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_mlp,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "initializer_range": 0.06,
        }
        vision = transformers.InstructBlipVisionConfig(
            **shared,
            image_size=world.IMAGE_SIDE,
            patch_size=world.IMAGE_SIDE // PATCHES_PER_SIDE,
        )
        qformer = transformers.InstructBlipQFormerConfig(
            **shared,
            vocab_size=len(tokenizer),
            encoder_hidden_size=size.vision_hidden,
            cross_attention_frequency=1,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        config = transformers.InstructBlipConfig(
            vision_config=vision.to_dict(),
            qformer_config=qformer.to_dict(),
            text_config=transformers.LlamaConfig(**decoder_config(size, tokenizer)).to_dict(),
            num_query_tokens=size.queries,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
        model = transformers.InstructBlipForConditionalGeneration(config)
        embeddings = model.vision_model.embeddings
        for parameter in (model.query_tokens, embeddings.position_embedding, embeddings.class_embedding):
            nn.init.normal_(parameter, std=0.5)
        nn.init.xavier_uniform_(model.language_projection.weight)
        super().__init__(model, tokenizer, "<image>")

    @property
    def decoder(self) -> Any:
        """The Llama decoder."""
        return self.model.language_model.model

    @property
    def head(self) -> nn.Module:
        """The output embeddings."""
        return self.model.language_model.lm_head

    def prompt(self, question: str, with_image: bool) -> str:
        """No chat template: image tokens first, before `<s>`, then the bare question."""
        return "<image>" * self._tokens * with_image + question

    def vision_parameters(self) -> list[nn.Parameter]:
        """The tower and, as in BLIP-2's first stage, the Q-Former."""
        return [*self.model.vision_model.parameters(), *self.model.qformer.parameters(), self.model.query_tokens]

    def connector_parameters(self) -> list[nn.Parameter]:
        """The Q-Former, its queries and the projection."""
        projection = self.model.language_projection.parameters()
        return [*self.model.qformer.parameters(), self.model.query_tokens, *projection]

    def _queries(self, images: list[Image.Image], questions: list[str]) -> Any:
        encoded = self.tokenizer(questions, padding=True, padding_side="right", return_tensors="pt")
        return self.model.get_image_features(
            pixel_values=pixels_of(images),
            qformer_input_ids=encoded["input_ids"],
            qformer_attention_mask=encoded["attention_mask"],
            return_dict=True,
        )

    def patch_features(self, images: list[Image.Image]) -> Tensor:
        """The tower's patches, without its class token."""
        return self.model.vision_model(pixel_values=pixels_of(images)).last_hidden_state[:, 1:]

    def query_features(self, images: list[Image.Image]) -> Tensor:
        """The Q-Former's queries, asked for a description."""
        outputs = self._queries(images, ["Describe the image."] * len(images)).qformer_outputs
        return outputs[0][:, : self._tokens]

    def image_embeddings(self, images: list[Image.Image], questions: list[str]) -> Tensor:
        """The projected queries."""
        return self._queries(images, questions).pooler_output

    def positions(self, ids: Tensor, with_image: bool) -> None:
        """Left to the decoder."""
        return

    def save_processor(self, folder: Path) -> None:
        """Write an `InstructBlipProcessor`; its Q-Former reads with the same tokenizer."""
        transformers.InstructBlipProcessor(
            image_processor=BlipImageProcessorPil(size=SQUARE, **NORMALISE),
            tokenizer=self.tokenizer,
            qformer_tokenizer=self.tokenizer,
            num_query_tokens=self._tokens,
        ).save_pretrained(folder)
