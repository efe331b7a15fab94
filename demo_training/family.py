"""What the trainer needs to know of a tiny model, whatever its family.

That is how a prompt looks with and without an image, how images become embeddings, and which parameters belong to the
vision tower, to the connector and to the decoder.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from demo_training import world

PATCHES_PER_SIDE = 4


@dataclass(frozen=True)
class Size:
    """The widths and depths that all families share."""

    layers: int = 8
    hidden: int = 96
    mlp: int = 256
    heads: int = 4
    vision_layers: int = 2
    vision_hidden: int = 64
    vision_mlp: int = 128
    queries: int = 8


class DemoFamily(ABC):
    """A tiny model, its tokenizer, and what training needs to know of them."""

    answer_prefix: ClassVar[str]
    """What stands between the end of a prompt and the first word of an answer."""
    patches_know_their_place: ClassVar[bool]
    """Whether the tower adds absolute positions to its patches, or leaves positions to the decoder."""

    def __init__(self, model: nn.Module, tokenizer: Any, image_token: str) -> None:
        """Hold the parts; `image_token` is the placeholder that image embeddings replace."""
        self.model: Any = model
        self.tokenizer = tokenizer
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(image_token)
        eos, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
        parts: tuple[Any, ...] = (model, getattr(model, "language_model", None))
        for part in parts:
            if getattr(part, "generation_config", None) is not None:
                part.generation_config = transformers.GenerationConfig(
                    eos_token_id=eos, pad_token_id=pad, bos_token_id=bos, do_sample=False, max_new_tokens=32
                )

    @abstractmethod
    def prompt(self, question: str, with_image: bool) -> str:
        """The whole prompt, its image placeholder expanded to one token per embedding."""

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The language model's stack of layers, which takes `inputs_embeds`."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The output embeddings."""

    @abstractmethod
    def vision_parameters(self) -> list[nn.Parameter]:
        """What vision pre-training trains."""

    @abstractmethod
    def connector_parameters(self) -> list[nn.Parameter]:
        """What projector alignment trains."""

    @abstractmethod
    def patch_features(self, images: list[Image.Image]) -> Tensor:
        """The tower's patches, in the image's layout: [images, patches, width]."""

    @abstractmethod
    def query_features(self, images: list[Image.Image]) -> Tensor | None:
        """What a Q-Former's queries hold, where there is one: [images, queries, width]."""

    @abstractmethod
    def image_embeddings(self, images: list[Image.Image], questions: list[str]) -> Tensor:
        """What replaces the image placeholders: [images, tokens, hidden]."""

    @abstractmethod
    def positions(self, ids: Tensor, with_image: bool) -> Tensor | None:
        """Position ids of a right-padded batch, where the decoder does not infer them."""

    @abstractmethod
    def save_processor(self, folder: Path) -> None:
        """Write the processor's files."""

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The language model's parameters, its tied embeddings included."""
        return list(self.decoder.parameters())

    def hidden_states(self, ids: Tensor, images: list[Image.Image] | None, questions: list[str]) -> Tensor:
        """Run the decoder over a right-padded batch; being causal, it needs no mask for padding on the right."""
        embeddings = self.decoder.get_input_embeddings()(ids)
        if images is not None:
            mask = (ids == self.image_token_id).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(mask, self.image_embeddings(images, questions))
        positions = self.positions(ids, images is not None)
        return self.decoder(inputs_embeds=embeddings, position_ids=positions, use_cache=False).last_hidden_state

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' Auto classes load: float16 weights that load as float32.

        The tokenizer is declared under the name that both major versions of transformers know.
        """
        self.save_processor(folder)
        self.model.half().save_pretrained(folder)
        self.model.float()
        for path in folder.rglob("tokenizer_config.json"):
            settings = json.loads(path.read_text())
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(settings, indent=2) + "\n")
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if "dtype" in part:
                part["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def pixels_of(images: list[Image.Image]) -> Tensor:
    """What the image processors compute from images of native size: values in [-1, 1]."""
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images]).transpose(0, 3, 1, 2)
    return torch.from_numpy(array / 127.5 - 1.0)


def decoder_config(size: Size, tokenizer: Any) -> dict[str, Any]:
    """Settings of the language model that all families share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


NORMALISE: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": world.IMAGE_SIDE, "width": world.IMAGE_SIDE}
