"""InstructBLIP with a Vicuna (Llama) or a Flan-T5 language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from steerkit.errors import ProcessorError, SampleError, UnsupportedModelError
from steerkit.models import Architecture, Inputs, ModelAdapter, Sample
from steerkit_adapters import shared

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn


@final
class InstructBlipAdapter(ModelAdapter):
    """A Q-Former reads image and question, and its queries stand in front of the bare prompt; there is no template."""

    name = "instructblip"
    model_types = ("instructblip",)

    def architecture(self, model: nn.Module) -> Architecture:
        """The outer forward pass demands pixels, so a prompt without an image goes to the language model itself."""
        config: Any = model.config
        text = config.text_config
        common: dict[str, Any] = {
            "image_token_ids": frozenset({shared.image_token(config)}),
            "placeholder": r"(?:<image>)+",
            "text_module": "language_model",
            "prepends_images": True,
        }
        if text.model_type == "t5":
            declared = Architecture(
                layers="language_model.decoder.block",
                layer_count=text.num_decoder_layers,
                hidden_size=text.d_model,
                mlp="layer.2.DenseReluDense",
                attention="layer.0.SelfAttention",
                encoder_decoder=True,
                **common,
            )
        elif text.model_type == "llama":
            declared = Architecture(
                layers="language_model.model.layers",
                layer_count=text.num_hidden_layers,
                hidden_size=text.hidden_size,
                **common,
            )
        else:
            raise UnsupportedModelError(
                f"this instructblip model has a language model of type {text.model_type!r}", expected="llama or t5"
            )
        declared = shared.checked(declared, model)
        tower = shared.vision_tower(
            model,
            ("vision_model.encoder.layers",),
            layer_count=config.vision_config.num_hidden_layers,
            hidden_size=config.vision_config.hidden_size,
            class_tokens=1,
        )
        heads = None if declared.encoder_decoder else shared.equal_heads(declared, model, text)
        return replace(declared, heads=heads, vision=tower)

    def load_processor(self, source: str, **options: Any) -> Any:
        """Its own class; early repositories that do not tell the number of queries are refused."""
        from transformers import InstructBlipProcessor

        # Revisions of Salesforce's repositories name InstructBlipVideoProcessor, which has no image processor.
        processor = shared.load_processor(source, options, InstructBlipProcessor)
        if processor.num_query_tokens is None:
            raise ProcessorError(
                f"the processor of {source!r} does not know how many queries the Q-Former has",
                expected="num_query_tokens",
                fix="use a newer revision of the repository, or set processor.num_query_tokens",
            )
        return processor

    def render(self, processor: Any, sample: Sample, image_count: int) -> str:
        """The bare text, with or without an image; earlier turns come before it, each on lines of its own."""
        _check_count(image_count)
        shared.check_text(sample, [_image_token(processor)])
        sample.template_options(None)
        return "\n".join(text for _, text in sample.plain_turns("InstructBLIP"))

    def encode(self, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """The layout of the processor for one prompt, `<image> * n, text`, with all padding in front of it.

        The processor itself pads between the image and the text, where rotary positions would count the padding, and
        pads the Q-Former's text on the same side, whose absolute positions would shift.
        """
        shared.check_images(texts, images)
        _check_count(max(map(len, images), default=0))
        tokenizer = processor.tokenizer
        queries = [tokenizer.convert_tokens_to_ids(_image_token(processor))] * processor.num_query_tokens
        with_image = any(images)
        rows = [(queries if with_image else []) + list(ids) for ids in tokenizer(list(texts))["input_ids"]]
        padded = shared.pad_left(rows, tokenizer.pad_token_id)
        if not with_image:
            return padded
        question = processor.qformer_tokenizer(
            list(texts), padding=True, padding_side="right", truncation=True, return_tensors="pt"
        )
        pixels = processor.image_processor([own[0] for own in images], return_tensors="pt")
        return {
            **padded,
            "qformer_input_ids": question["input_ids"],
            "qformer_attention_mask": question["attention_mask"],
            "pixel_values": pixels["pixel_values"],
        }

    def image_sizes(self, processor: Any, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
        """The size of the processed image."""
        return shared.pixel_sizes(inputs)


def _check_count(images: int) -> None:
    if images > 1:
        raise SampleError(
            f"a prompt has {images} images",
            expected="at most one: InstructBLIP was trained on one",
            fix="leave the others out, or put them together in one image",
        )


def _image_token(processor: Any) -> str:
    # The processor keeps a token object when it added the token itself, and a string when the tokenizer had it.
    return str(processor.image_token)
