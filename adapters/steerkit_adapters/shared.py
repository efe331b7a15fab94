"""What the families have in common: finding the blocks, loading a processor, chat prompts, and batches of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steerkit.errors import ProcessorError, SampleError, UnsupportedModelError
from steerkit.models import Architecture, Heads, Inputs, Sample, VisionTower

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn


def checked(architecture: Architecture, model: nn.Module) -> Architecture:
    """The declaration, once the model is known to have what it declares.

    Raises:
        UnsupportedModelError: A module is elsewhere; it is never looked for, because a list of blocks that only looks
            right may belong to the vision tower.
    """
    name, path = type(model).__name__, architecture.layers
    try:
        blocks: Any = model.get_submodule(path)
        found = len(blocks)
    except (AttributeError, TypeError):
        raise UnsupportedModelError(
            f"{name} has no list of decoder blocks at {path!r}",
            expected="a language model of the kinds that this family's adapter declares",
            fix="if this module only holds the model, pass the Hugging Face model inside; otherwise "
            "write an adapter and register it under the entry-point group 'steerkit.adapters'",
        ) from None
    if found != architecture.layer_count:
        raise UnsupportedModelError(
            f"{name} has {found} blocks at {path!r}", expected=f"{architecture.layer_count} as its config says"
        )
    for layer in range(found):
        for site in (architecture.site(layer, "mlp_out"), architecture.site(layer, "attn_out")):
            try:
                model.get_submodule(site)
            except AttributeError:
                raise UnsupportedModelError(
                    f"{name} has no module {site!r}",
                    expected=f"{architecture.mlp!r} and {architecture.attention!r} in every block",
                ) from None
    return architecture


def equal_heads(architecture: Architecture, model: nn.Module, text: Any, projection: str = "o_proj") -> Heads | None:
    """The heads of a decoder whose every block ends its attention in a projection of the same width; None for others.

    Args:
        architecture: Where the blocks are.
        model: The model.
        text: The config of its decoder.
        projection: What the family calls the projection.
    """
    count = int(text.num_attention_heads)
    heads = Heads(count, int(getattr(text, "head_dim", None) or text.hidden_size // count), projection)
    if not isinstance(architecture.attention, str):
        return None
    for layer in range(architecture.layer_count):
        attention: Any = model.get_submodule(architecture.site(layer, "attn_out"))
        last = getattr(attention, projection, None)
        if getattr(last, "in_features", getattr(last, "nx", None)) != heads.count * heads.size:  # nx: GPT-2's Conv1D
            return None
    return heads


def vision_tower(model: nn.Module, paths: Sequence[str], **sizes: Any) -> VisionTower | None:
    """The tower at the first of the declared paths, which changed between releases of transformers.

    None, and so no steering of the tower, where what is there is not what is declared.
    """
    for path in paths:
        tower = VisionTower(layers=path, **sizes)
        try:
            blocks: Any = model.get_submodule(path)
            for block in blocks:
                block.get_submodule(tower.mlp)
                block.get_submodule(tower.attention)
        except (AttributeError, TypeError):
            continue
        return tower if len(blocks) == tower.layer_count else None
    return None


def image_token(config: Any) -> int:
    """The id that stands for image content.

    Raises:
        UnsupportedModelError: The config names none, as those of some early conversions.
    """
    token = getattr(config, "image_token_id", None)
    if token is None:
        raise UnsupportedModelError(
            f"the config of this {config.model_type} model names no image token",
            expected="an image_token_id",
            fix="use a newer revision of the repository, or set config.image_token_id",
        )
    return int(token)


def visual_tokens(config: Any) -> frozenset[int]:
    """The ids that stand for images and, where the model takes them, videos.

    Raises:
        UnsupportedModelError: See `image_token`.
    """
    video = getattr(config, "video_token_id", None)
    return frozenset({image_token(config)} | (set() if video is None else {int(video)}))


@contextmanager
def loading(what: str, source: str) -> Iterator[None]:
    """Name the repository or folder, and what was looked for in it, in the errors of transformers inside.

    Raises:
        ProcessorError: Nothing of the kind is there, or not all of it.
    """
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise ProcessorError(
            f"the {what} of {source!r} can't be loaded ({error})",
            expected=f"a repository or folder with the files of a {what}",
            fix=f"check the name, or save one there with {what}.save_pretrained(folder)",
        ) from error


def load_processor(source: str, options: Mapping[str, Any], kind: Any = None) -> Any:
    """The processor of a repository or folder; without its video part where torchvision is missing.

    Args:
        source: Repository id or folder.
        options: Keyword arguments of `from_pretrained`.
        kind: Class of the processor, where what a repository says of it can't be relied on.

    Raises:
        ProcessorError: There is none, or what is there is not a whole processor.
    """
    from transformers import AutoProcessor, ProcessorMixin

    with loading("processor", source):
        try:
            processor: Any = (kind or AutoProcessor).from_pretrained(source, **options)
        except ImportError:
            # Video processors need torchvision, image processors don't.
            processor = _without_video(source, options)
    # A folder without a config of its own yields whatever part is found first.
    if not isinstance(processor, ProcessorMixin):
        raise ProcessorError(
            f"{source!r} holds a {type(processor).__name__} only",
            expected="a processor: tokenizer, image processor and chat template",
            fix="add the model's config.json and preprocessor_config.json, or use processor.save_pretrained(folder)",
        )
    return processor


def _without_video(source: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(source, **options))]
    parts = [part for part in kind.get_attributes() if "video" not in part]
    waived: Any = type(
        kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: list(parts)), "__module__": kind.__module__}
    )
    return waived.from_pretrained(source, **options)


def render_chat(
    processor: Any, sample: Sample, image_count: int, placeholder: str, published: str | None = None
) -> str:
    """The sample through the processor's own chat template, with a prompt for the answer.

    Args:
        processor: The processor.
        sample: The sample.
        image_count: How many images the prompt is shown with; 0 for the same prompt without them.
        placeholder: What stands for the images in the text.
        published: The template to use where the processor has none.

    Raises:
        ProcessorError: There is no chat template, or it does not place the images.
        SampleError: A text contains the image token.
    """
    token: str = processor.image_token
    check_text(sample, processor.all_special_multimodal_tokens)
    check_bare(sample, processor.tokenizer)
    # None: the processor's own, which it finds itself.
    template = None if processor.chat_template else published or processor.tokenizer.chat_template
    if template is None and not processor.chat_template:
        raise ProcessorError(
            f"this {type(processor).__name__} has no chat template",
            expected="the template that the model was trained with",
            fix="set processor.chat_template, or use a revision of the repository that has a chat_template file",
        )
    # A prompt without an image is the one with an image, less the placeholder: whatever else a template does about
    # images then stays the same, and the two differ in the image alone.
    shown = image_count or sample.places or 1

    def written(messages: list[dict[str, Any]]) -> str:
        return processor.apply_chat_template(
            messages,
            **{"chat_template": template, **sample.template_options(template or processor.chat_template)},
            tokenize=False,
            add_generation_prompt=not sample.continues,
            continue_final_message=sample.continues,
        )

    messages = sample.messages(shown)
    prompt = written(messages)
    if prompt.count(token) != shown:
        raise ProcessorError(
            f"the chat template of this {type(processor).__name__} writes {token!r} {prompt.count(token)} times",
            expected=f"{shown}, once for each image",
            fix="set processor.chat_template to the template of the vision-language model, not of its language model",
        )
    asked = next(message for message in reversed(messages) if message["role"] == "user")
    parts = [part for part in asked["content"] if part["type"] == "text" and part["text"].strip()]
    if any(part["text"].strip() not in prompt for part in parts):
        for part in parts:  # changed by the template, or left out: then another text makes no difference
            part["text"] += " and more"
        if written(messages) == prompt:
            raise ProcessorError(
                f"the chat template of this {type(processor).__name__} leaves out the text of the user's turn",
                expected="a template that writes it into the prompt",
                fix="set processor.chat_template to the template that the model was trained with",
            )
    return prompt if image_count else re.sub(placeholder, "", prompt)


def check_text(sample: Sample, reserved: Sequence[str]) -> None:
    """No text of the sample contains a token that stands for an image or a video.

    Raises:
        SampleError: One does.
    """
    for token in reserved:
        if any(token in text for _, text in sample.turns):
            raise SampleError(
                f"the text of a sample contains {token!r}",
                expected="text only: placeholders are put there by the adapter",
                fix=f"remove {token!r} from the text and pass the images as images",
            )


def check_bare(sample: Sample, tokenizer: Any) -> None:
    """No turn is a prompt that was rendered already: the chat template would put it into a turn once more.

    Raises:
        SampleError: One begins with a special token of the tokenizer.
    """
    for _, text in sample.turns:
        token = next((each for each in tokenizer.all_special_tokens if text.lstrip().startswith(each)), None)
        if token is not None:
            raise SampleError(
                f"a text begins with {token!r}, as a prompt that a chat template has made",
                expected="what the turn says: the chat template writes the tokens around it",
                fix="pass the turns as (role, text) pairs; the answer goes on in a last one of the assistant",
            )


def encode_chat(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
    """Rendered chat prompts and their images as one left-padded batch.

    Raises:
        SampleError: Prompts and images do not match.
    """
    check_images(texts, images)
    for text, own in zip(texts, images, strict=True):
        if text.count(processor.image_token) != len(own):
            raise SampleError(
                f"a prompt has {text.count(processor.image_token)} image placeholders and {len(own)} images",
                expected="as many placeholders as images",
                fix="render the prompt with the number of its images",
            )
    begin = processor.tokenizer.bos_token
    batch = processor(
        text=list(texts),
        images=[list(own) for own in images] if any(images) else None,
        padding=False,  # a processor pads only with a token for it, which some tokenizers lack
        # Some templates write the token that begins a text, which the tokenizer would add again.
        add_special_tokens=begin is None or not all(text.startswith(begin) for text in texts),
        images_kwargs={"return_tensors": "pt"},
    )
    rows = batch["input_ids"]
    padded: dict[str, Any] = dict(pad_left(rows, processor.tokenizer.pad_token_id))
    for key, value in batch.items():
        if key not in (*padded, "token_type_ids"):
            of_tokens = isinstance(value, list) and [len(row) for row in value] == [len(row) for row in rows]
            padded[key] = pad_left(value, 0)["input_ids"] if of_tokens else value
    return tensors(padded)


def check_images(texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> None:
    """Every prompt has its images, or none has any.

    Raises:
        SampleError: It is not so.
    """
    if len(texts) != len(images):
        raise SampleError(
            f"{len(texts)} prompts and {len(images)} lists of images", expected="one list for each prompt"
        )
    if any(images) and not all(images):
        raise SampleError(
            "a batch mixes prompts with and without images",
            expected="all of one kind",
            fix="encode the prompts without images in a batch of their own",
        )


def pad_left(rows: Sequence[Sequence[int]], padding: int | None) -> Inputs:
    """Rows of token ids as one batch, padded in front with any id, since padding is masked."""
    import torch

    filler = padding or 0
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def tensors(batch: Mapping[str, Any]) -> Inputs:
    """The tensors of a batch; token types, which none of these models takes, are left out."""
    import torch

    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor) and key != "token_type_ids"}


def pixel_sizes(inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
    """`(height, width)` of every image of a `[images, channels, height, width]` batch, in one group."""
    images, _, height, width = inputs["pixel_values"].shape
    return [[(height, width)] * images]


def row_sizes(sizes: Tensor, scale: int = 1) -> list[tuple[int, int]]:
    """Rows `(height, width)` of a tensor, times a scale, as integers."""
    return [(int(height) * scale, int(width) * scale) for height, width in sizes.tolist()]
