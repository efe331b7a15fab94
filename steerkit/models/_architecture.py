"""Where things are in one model, found in what transformers declares of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from steerkit.errors import EngineError
from steerkit.interventions import Site, Tower, View
from steerkit.models._family import State
from steerkit.models._images import ImageLike
from steerkit.models._samples import Sample

if TYPE_CHECKING:
    from torch import Tensor

Inputs: TypeAlias = "dict[str, Tensor]"
"""Keyword arguments of a model's forward pass or `generate`."""

Images: TypeAlias = "bool | View | Callable[[Sample], Sequence[ImageLike]]"
"""Which images a prompt is shown with: True (its own), False (none), a view, or a function of the sample."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention heads of the language model, the same in every block.

    Attributes:
        count: Number of (query) heads.
        size: Width of a head; what enters the projection is `[tokens, count * size]`, one head after the other.
        projection: The projection at the end of the attention, inside it.
    """

    count: int
    size: int
    projection: str = "o_proj"


@dataclass(frozen=True, slots=True)
class VisionTower:
    """The blocks of the vision tower.

    Attributes:
        layers: The list of blocks. Their output is `[images, tokens, hidden]`, or `[tokens, hidden]` where the tower
            packs the patches of all images.
        layer_count: Number of blocks.
        hidden_size: Width of their output.
        class_tokens: Number of tokens in front of each image's patches that stand for no patch.
        class_behind: Whether they stand behind the patches.
        mlp: The MLP inside a block.
        attention: The attention inside a block.
    """

    layers: str
    layer_count: int
    hidden_size: int
    class_tokens: int = 0
    class_behind: bool = False
    mlp: str | None = "mlp"
    attention: str | None = "self_attn"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where things are in one model. Paths are dotted, from the model that `from_pretrained` returns.

    Attributes:
        layers: The list of decoder blocks; its parent is the decoder, whose forward pass sees the KV cache.
        layer_count: Number of decoder blocks.
        hidden_size: Width of a residual stream.
        marks: What says where the image is, see `Family`; empty for a model that takes no images.
        image_token_ids: Ids that stand for image or video content in `input_ids`.
        video_token_ids: Those of them that stand for videos alone.
        video_ends: The ids that open and close a video of image tokens; None where there are none.
        drops_video: Whether the decoder reads fewer positions of a video than the prompt has.
        audio_token_ids: Ids that stand for audio.
        mlp: The MLP inside each block; None where a block has none.
        attention: What mixes the tokens inside each block; None where it is not one module.
        state: What a block returns.
        runs: How often each block runs in one pass of the decoder; empty for once. It is steered in its last run.
        only_with_image: Blocks that run for prompts with an image alone.
        text_module: The submodule that answers a prompt without an image; empty for the model itself.
        transient: Attributes that the model caches between calls and that must not survive into the next one.
        encoder_decoder: Whether the prompt goes to an encoder. The decoder's prompt is then its start token.
        only_images: Whether the encoder reads images alone, so that every prompt has one.
        prepends_images: Whether the processor puts image tokens in front of the text as ids. In other models they are
            written into the text, and tokenised with it.
        alone: Whether prompts of different lengths can't share a batch: padding would count.
        counts_padding: Whether a bare forward pass counts padding among the positions unless it is told the positions.
        heads: The attention heads; None where blocks have none, or not the same ones, and `head_out` is refused.
        vision: The vision tower; None where it can't be steered.
    """

    layers: str
    layer_count: int
    hidden_size: int
    marks: str = ""
    image_token_ids: frozenset[int] = frozenset()
    video_token_ids: frozenset[int] = frozenset()
    video_ends: tuple[int, int] | None = None
    drops_video: bool = False
    audio_token_ids: frozenset[int] = frozenset()
    mlp: tuple[str | None, ...] = ()
    attention: tuple[str | None, ...] = ()
    state: State = "plain"
    runs: tuple[int, ...] = ()
    only_with_image: frozenset[int] = frozenset()
    text_module: str = ""
    transient: tuple[str, ...] = ()
    encoder_decoder: bool = False
    only_images: bool = False
    prepends_images: bool = False
    alone: bool = False
    counts_padding: bool = False
    heads: Heads | None = None
    vision: VisionTower | None = None

    @property
    def takes_images(self) -> bool:
        """Whether prompts may hold images."""
        return bool(self.marks)

    @property
    def decoder(self) -> str:
        """Path of the module that owns the blocks."""
        return self.layers.rpartition(".")[0]

    def site(self, layer: int, site: Site, tower: Tower = "language") -> str:
        """Path of the module whose output is the site; of `head_out`, whose input it is.

        Raises:
            EngineError: There is no such place.
        """
        self.check_site(site, tower)
        if tower == "vision":
            assert self.vision is not None
            blocks, mlp, attention = self.vision.layers, self.vision.mlp, self.vision.attention
        else:
            blocks, mlp, attention = self.layers, self.mlp[layer], self.attention[layer]
        if site == "resid_post":
            return f"{blocks}.{layer}"
        inner = mlp if site == "mlp_out" else attention
        if inner is None:
            raise EngineError(
                f"site {site!r} in block {layer} of the {tower} tower, which has no one module of that kind",
                expected="resid_post, or blocks that have an MLP and an attention",
            )
        heads = f".{self.heads.projection}" if site == "head_out" and self.heads is not None else ""
        return f"{blocks}.{layer}.{inner}{heads}"

    def count(self, tower: Tower) -> int:
        """Number of blocks of a tower; 0 for a vision tower that is not known."""
        if tower == "language":
            return self.layer_count
        return 0 if self.vision is None else self.vision.layer_count

    def check_site(self, site: Site, tower: Tower) -> None:
        """Refuse a place that this model does not have.

        Raises:
            EngineError: There is no such tower, or there are no such heads.
        """
        if tower == "vision" and self.vision is None:
            raise EngineError(
                "the vision tower is named, and this model has none whose blocks are known",
                expected="tower='language'",
            )
        if site == "head_out" and (self.heads is None or tower == "vision"):
            raise EngineError(
                f"site 'head_out' in the {tower} tower of a model without known heads there",
                expected="resid_post, mlp_out or attn_out; head_out in a decoder whose blocks have equal heads, but "
                "not in an encoder-decoder model",
            )
