"""Language models without images: Llama, Mistral, Qwen, Gemma, Phi, GPT-2 and more; the tokenizer is the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

from steerkit.errors import ProcessorError, SampleError
from steerkit.models import Architecture, Inputs, ModelAdapter, Sample
from steerkit_adapters import shared

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

_NOTHING = r"(?!)"
"""Matches nowhere: no text stands for an image."""


class _Layout(NamedTuple):
    """Where the blocks of a model are, and what they call their attention and the projection at its end."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    projection: str = "o_proj"
    learned_positions: bool = False


_USUAL = _Layout()
_LAYOUTS: dict[str, _Layout] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "ministral",
            "mixtral",
            "qwen2",
            "qwen2_moe",
            "qwen3",
            "qwen3_moe",
            "gemma",
            "gemma2",
            "gemma3_text",
            "phi3",
            "olmo",
            "olmo2",
            "smollm3",
            "granite",
            "stablelm",
            "starcoder2",
            "cohere",
            "cohere2",
            "glm4",
        ),
        _USUAL,
    ),
    "phi": _Layout(projection="dense"),
    "gpt2": _Layout("transformer.h", "attn", "c_proj", learned_positions=True),
    "gpt_neox": _Layout("gpt_neox.layers", "attention", "dense"),
    "falcon": _Layout("transformer.h", "self_attention", "dense"),
}


@final
class DecoderAdapter(ModelAdapter):
    """Decoder-only language models, as `AutoModelForCausalLM` loads them; their `processor` is the tokenizer."""

    name = "decoder"
    model_types = tuple(_LAYOUTS)
    auto_class = "AutoModelForCausalLM"

    def architecture(self, model: nn.Module) -> Architecture:
        """Nothing stands for an image, so methods that measure images refuse the model."""
        config: Any = model.config
        layout = _LAYOUTS[config.model_type]
        declared = shared.checked(
            Architecture(
                layers=layout.layers,
                layer_count=config.num_hidden_layers,
                hidden_size=config.hidden_size,
                image_token_ids=frozenset(),
                placeholder=_NOTHING,
                attention=layout.attention,
                counts_padding=layout.learned_positions,
            ),
            model,
        )
        return replace(declared, heads=shared.equal_heads(declared, model, config, layout.projection))

    def load_processor(self, source: str, **options: Any) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        with shared.loading("tokenizer", source):
            return AutoTokenizer.from_pretrained(source, **options)

    def render(self, processor: Any, sample: Sample, image_count: int) -> str:
        """The tokenizer's chat template; without one, as for a base model, the text of a single turn as it is."""
        if image_count:
            raise SampleError(
                f"a sample shows {image_count} images to a language model",
                expected="text only",
                fix="use a vision-language model, or leave the images out: images=False",
            )
        turns = sample.plain_turns("a language model")
        options = sample.template_options(processor.chat_template)
        if processor.chat_template or "chat_template" in options:
            shared.check_bare(sample, processor)
            return processor.apply_chat_template(
                [{"role": role, "content": text} for role, text in turns],
                **options,
                tokenize=False,
                add_generation_prompt=not sample.continues,
                continue_final_message=sample.continues,
            )
        if len(turns) != 1:
            raise ProcessorError(
                f"a chat of {len(turns)} turns, and this {type(processor).__name__} has no chat template",
                expected="the template that the model was trained with, or a sample of one text",
                fix="set tokenizer.chat_template, or write the prompt as one text",
            )
        return turns[0][1]

    def encode(self, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """Left padded; a template that begins with the begin-of-text token does not get another one."""
        begin = processor.bos_token
        rows = [
            processor(text, add_special_tokens=begin is None or not text.startswith(begin))["input_ids"]
            for text in texts
        ]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise SampleError(f"the prompt {text!r} has no tokens", expected="a text")
        padding = processor.eos_token_id if processor.pad_token_id is None else processor.pad_token_id
        return shared.pad_left(rows, padding)

    def image_sizes(self, processor: Any, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
        """There are no images."""
        return []
