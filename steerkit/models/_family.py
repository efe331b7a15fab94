"""What must be said of a model family that transformers does not declare: a frozen record, mostly of defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter

from steerkit._internal.faults import refused_as
from steerkit.errors import OptionError, UnsupportedModelError

State = Literal["plain", "streams_first", "streams_third", "streams_flat"]
"""What a block returns: `[batch, tokens, hidden]`, or several residual streams: `[streams, batch, tokens, hidden]`,
`[batch, tokens, streams, hidden]` or `[batch, tokens, streams * hidden]`."""

_Some = Annotated[int, Field(ge=1)]
_Marks = Annotated[str, Field(pattern=r"^(ids|ids:\S+|mask:\S+|prefix|none|)$")]

IMAGES = ("image_token_id", "image_token_index", "image_patch_id")
"""What configs call the token that stands for an image."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family: every field that is not given is asked of transformers, of the model or of its processor.

    Register a record, or a tuple of them, through the entry-point group `steerkit.adapters`, `name = "package:RECORD"`.

    Attributes:
        types: The `config.model_type` values that it is for.
        auto_class: The class of transformers that loads these models. Of a repository that brings its own code, the
            one that it brings it for counts.
        processor_class: The class of the processor, where a repository can't be relied on to name it.
        called_as: The base of the processor's class whose call is the one to use.
        needs: Settings without which the processor can't count image tokens.
        refused: Why the types can't be served.
        layers: Path of the list of decoder blocks, from the model that `from_pretrained` returns.
        attention: The attention inside a block.
        mlp: The MLP inside a block.
        state: What a block returns.
        loop: The entries of the text config that say from which block to which, and how often, blocks run in one pass.
        only_with_image: The entry of the text config that lists the blocks which run for prompts with an image alone.
        text_module: The submodule that answers a prompt without an image; empty for the model itself.
        prompt: `chat`: the processor's chat template; `bare`: the text itself, in front of which the processor puts the
            image; `decoder`: the text itself, which the decoder reads behind its start token, while the encoder reads
            the image alone.
        frame: What stands in front of a bare prompt without an image, where `{bos}` is the token that begins one, and
            behind it.
        template: The published chat template, for repositories that came before templates.
        image: A regular expression of everything that stands for the images of a prompt once it is tokenised, with
            `{image}` for the token; asked of template and processor where it is None.
        user_marker: What opens the user's turn; asked of the template where it is None.
        marks: What says where the image is: `ids`, those of the config's image token, or `ids:NAME` where the config
            calls it something else; `mask:NAME` for an input that marks the positions, `prefix` where
            features are put in front of the ids, or `none` where blocks attend to an image that has no position; empty
            for a model that takes none.
        positions: `told`: those without padding, as `generate` tells them; `own` where a model counts them itself.
        padding: The side that is padded.
        batch: `one` where prompts of different lengths can't share a batch.
        max_images: How many images a prompt may hold.
        flat_images: Whether the processor takes the images of a batch in one list.
        frames: How many frames the clip has that the processor takes for the images of a prompt.
        boxes: Whether the processor wants a box for each word; each is given the whole page.
        call: Further options of the tokenizer inside the processor, for one that pads by itself.

    Raises:
        OptionError: A field is of another type, or has an impossible value.
    """

    types: Annotated[tuple[str, ...], Field(min_length=1)]
    auto_class: str = "AutoModelForImageTextToText"
    processor_class: str | None = None
    called_as: str | None = None
    needs: tuple[str, ...] = ()
    refused: str | None = None
    layers: str | None = None
    attention: str | None = None
    mlp: str | None = None
    state: State = "plain"
    loop: tuple[str, str, str] | None = None
    only_with_image: str | None = None
    text_module: str = ""
    prompt: Literal["chat", "bare", "decoder"] = "chat"
    frame: tuple[str, str] = ("", "")
    template: str | None = None
    image: str | None = None
    user_marker: str | None = None
    marks: _Marks = "ids"
    positions: Literal["told", "own"] = "told"
    padding: Literal["left", "right"] = "left"
    batch: Literal["any", "one"] = "any"
    max_images: _Some | None = None
    flat_images: bool = False
    frames: _Some | None = None
    boxes: bool = False
    call: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, kind in _kinds().items():
            with refused_as(OptionError, f"the field {name} of a Family", expected="what its docstring says"):
                kind.validate_python(getattr(self, name), strict=True)
        try:
            re.compile((self.image or "").replace("{image}", "x"))
        except re.error as error:
            raise OptionError(f"image={self.image!r} of a Family ({error})", expected="a regular expression") from error

    def check_served(self, model_type: object) -> None:
        """Refuse a type that can't be served, or that the record is not for.

        Raises:
            UnsupportedModelError: It can't; the message says why.
        """
        if model_type not in self.types:
            raise UnsupportedModelError(
                f"the Family record is for {', '.join(self.types)}, and the model's type is {model_type!r:.80}",
                expected="config.model_type among its types",
            )
        if self.refused is not None:
            raise UnsupportedModelError(
                f"models of type {model_type!r} can't be steered: {self.refused}",
                expected="a model that answers prompts with text, one token after the other",
            )

    @property
    def takes_images(self) -> bool:
        """Whether the models do: what loads as a language model must say what marks an image."""
        return bool(self.marks) and (self.marks != "ids" or self.auto_class != "AutoModelForCausalLM")

    @property
    def declared(self) -> list[str]:
        """The fields that say something else than their defaults, apart from what the record is for."""
        bare = Family(types=self.types, auto_class=self.auto_class)
        return [each.name for each in fields(self) if getattr(self, each.name) != getattr(bare, each.name)]

    @property
    def asked(self) -> list[str]:
        """What is asked of transformers, of the model's config and of its processor."""
        chat = ("image", "user_marker") if self.prompt == "chat" else ()
        return [name for name in ("layers", *chat) if getattr(self, name) is None] + ["image_token_id"] * (
            self.marks == "ids"
        )

    @property
    def probed(self) -> list[str]:
        """What is looked up in the model."""
        return [name for name in ("attention", "mlp") if getattr(self, name) is None] + ["heads", "vision"]


@cache
def _kinds() -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(Family, include_extras=True).items()}
