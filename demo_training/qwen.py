"""Qwen2.5-VL at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from demo_training import tokenizers, world
from demo_training.family import NORMALISE, PATCHES_PER_SIDE, DemoFamily, Size, decoder_config, pixels_of


class QwenDemo(DemoFamily):
    """Qwen2.5-VL: its windowed vision tower with a patch merger, and a decoder with three-part positions."""

    answer_prefix = ""
    patches_know_their_place = False

    def __init__(self, size: Size) -> None:
        """Build it with random weights."""
        tokenizer: Any = tokenizers.qwen_tokenizer()
        number = tokenizer.convert_tokens_to_ids
        self._tokens = PATCHES_PER_SIDE**2
        self._patch = world.IMAGE_SIDE // PATCHES_PER_SIDE // 2
        head_width = size.hidden // size.heads
        text = decoder_config(size, tokenizer) | {
            "rope_parameters": {
                "rope_type": "default",
                # The columns of an image turn the slowest frequencies: at 10000 four columns would look the same.
                "rope_theta": 20.0,
                "mrope_section": [head_width // 6] * 3,
            }
        }
        vision = {
            "depth": size.vision_layers,
            "initializer_range": 0.06,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_mlp,
            "out_hidden_size": size.hidden,
            "num_heads": 4,
            "patch_size": self._patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": world.IMAGE_SIDE,
            "fullatt_block_indexes": [size.vision_layers - 1],
        }
        config = transformers.Qwen2_5_VLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=number("<|image_pad|>"),
            video_token_id=number("<|video_pad|>"),
            vision_start_token_id=number("<|vision_start|>"),
            vision_end_token_id=number("<|vision_end|>"),
            tie_word_embeddings=True,
        )
        super().__init__(transformers.Qwen2_5_VLForConditionalGeneration(config), tokenizer, "<|image_pad|>")

    @property
    def decoder(self) -> Any:
        """The Qwen decoder."""
        return self.model.model.language_model

    @property
    def head(self) -> nn.Module:
        """The output embeddings."""
        return self.model.lm_head

    def prompt(self, question: str, with_image: bool) -> str:
        """ChatML, with the default system turn."""
        image = "<|vision_start|>" + "<|image_pad|>" * self._tokens + "<|vision_end|>" if with_image else ""
        return (
            f"<|im_start|>system\n{tokenizers.SYSTEM_TURN}<|im_end|>\n"
            f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"
        )

    def vision_parameters(self) -> list[nn.Parameter]:
        """The tower and its merger."""
        return list(self.model.model.visual.parameters())

    def connector_parameters(self) -> list[nn.Parameter]:
        """The merger."""
        return list(self.model.model.visual.merger.parameters())

    def patch_features(self, images: list[Image.Image]) -> Tensor:
        """The merged patches."""
        return self.image_embeddings(images, [])

    def query_features(self, images: list[Image.Image]) -> None:
        """There is no Q-Former."""
        return

    def image_embeddings(self, images: list[Image.Image], questions: list[str]) -> Tensor:
        """The merged patches, which are the decoder's inputs."""
        grid = 2 * PATCHES_PER_SIDE
        # [images, time, channel, row of merged patches, row in it, y, column of merged patches, column in it, x]
        pixels = pixels_of(images).unsqueeze(1).expand(-1, 2, -1, -1, -1)
        pixels = pixels.reshape(-1, 2, 3, PATCHES_PER_SIDE, 2, self._patch, PATCHES_PER_SIDE, 2, self._patch)
        pixels = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(len(images) * grid**2, -1)
        grids = torch.tensor([[1, grid, grid]] * len(images))
        merged = self.model.model.visual(pixels, grid_thw=grids).pooler_output
        return merged.reshape(len(images), self._tokens, -1)

    def positions(self, ids: Tensor, with_image: bool) -> Tensor | None:
        """All rows have their image at the same place, so one row's three-part positions serve the batch."""
        self.model.model.rope_deltas = None
        if not with_image:
            return None
        kinds = (ids[:1] == self.image_token_id).int()
        grid = torch.tensor([[1, 2 * PATCHES_PER_SIDE, 2 * PATCHES_PER_SIDE]])
        positions, _ = self.model.model.get_rope_index(ids[:1], mm_token_type_ids=kinds, image_grid_thw=grid)
        return positions.expand(-1, ids.shape[0], -1)

    def save_processor(self, folder: Path) -> None:
        """Write the parts of a `Qwen2_5_VLProcessor`, which itself cannot be built without torchvision."""
        pixels = world.IMAGE_SIDE**2
        images = Qwen2VLImageProcessorPil(
            size={"shortest_edge": pixels, "longest_edge": pixels},
            patch_size=self._patch,
            merge_size=2,
            temporal_patch_size=2,
            **NORMALISE,
        )
        self.tokenizer.save_pretrained(folder)
        images.save_pretrained(folder)
        path = folder / "preprocessor_config.json"
        settings = json.loads(path.read_text())
        settings["processor_class"] = "Qwen2_5_VLProcessor"
        settings["image_processor_type"] = "Qwen2VLImageProcessor"
        path.write_text(json.dumps(settings, indent=2) + "\n")
        video = settings | {"video_processor_type": "Qwen2VLVideoProcessor"}
        del video["image_processor_type"]
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
        (folder / "chat_template.jinja").write_text(tokenizers.QWEN_TEMPLATE)
        (folder / "processor_config.json").write_text('{\n  "processor_class": "Qwen2_5_VLProcessor"\n}\n')
