"""What steerkit must know of a model family, as one abstract class that is mostly declaration.

An adapter holds no state and no model: it says where the decoder blocks are, how a prompt is built with and without its
image, and which token is what. Everything else (batches, engines, steering) is common to all families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from steerkit.errors import EngineError
from steerkit.interventions import Pool, Site, Tower, View
from steerkit.models._images import ImageLike
from steerkit.models._samples import Sample
from steerkit.vectors import Fingerprint, ModelRecord

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

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
        mlp: The MLP inside a block.
        attention: The attention inside a block.
    """

    layers: str
    layer_count: int
    hidden_size: int
    class_tokens: int = 0
    mlp: str = "mlp"
    attention: str = "self_attn"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where things are in one model. Paths are dotted, from the model that `from_pretrained` returns.

    Attributes:
        layers: The list of decoder blocks; its parent is the decoder, whose forward pass sees the KV cache.
        layer_count: Number of decoder blocks.
        hidden_size: Width of their output.
        image_token_ids: Ids that stand for image or video content in `input_ids`; videos are steered as images are.
        placeholder: Regular expression of everything that stands for the images in the prompt text once tokenised:
            image tokens as often as they repeat, their delimiters and the line break that belongs to them.
        user_marker: Text that opens the user's turn; the real tokens before it are the system's.
        mlp: The MLP inside a block.
        attention: The self-attention inside a block, or one path for each block where they differ.
        text_module: The submodule that answers a prompt without an image; empty for the model itself.
        transient: Attributes that the model caches between calls and that must not survive into the next one.
        encoder_decoder: Whether the prompt goes to an encoder. The decoder's prompt is then its start token.
        prepends_images: Whether image tokens are put in front of the tokenised text as ids. In other models they are
            written into the text, and tokenised with it.
        counts_padding: Whether a bare forward pass counts padding among the positions, as models with learned positions
            do, unless it is told the positions.
        heads: The attention heads; None where blocks have none, or not the same ones, and `head_out` is refused.
        vision: The vision tower; None where it can't be steered.
    """

    layers: str
    layer_count: int
    hidden_size: int
    image_token_ids: frozenset[int]
    placeholder: str
    user_marker: str | None = None
    mlp: str = "mlp"
    attention: str | tuple[str, ...] = "self_attn"
    text_module: str = ""
    transient: tuple[str, ...] = ()
    encoder_decoder: bool = False
    prepends_images: bool = False
    counts_padding: bool = False
    heads: Heads | None = None
    vision: VisionTower | None = None

    @property
    def decoder(self) -> str:
        """Path of the module that owns the blocks."""
        return self.layers.rpartition(".")[0]

    def site(self, layer: int, site: Site, tower: Tower = "language") -> str:
        """Path of the module whose output is the site; of `head_out`, whose input it is."""
        self.check_site(site, tower)
        if tower == "vision":
            assert self.vision is not None
            blocks, mlp, attention = self.vision.layers, self.vision.mlp, self.vision.attention
        else:
            blocks, mlp = self.layers, self.mlp
            attention = self.attention if isinstance(self.attention, str) else self.attention[layer]
        heads = f".{attention}.{self.heads.projection}" if self.heads is not None else ""
        inner = {"resid_post": "", "mlp_out": f".{mlp}", "attn_out": f".{attention}", "head_out": heads}[site]
        return f"{blocks}.{layer}{inner}"

    def count(self, tower: Tower) -> int:
        """Number of blocks of a tower; 0 for a vision tower that is not declared."""
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
                "the vision tower is named, and this model's adapter declares none",
                expected="tower='language'",
                fix="declare the tower in the adapter's Architecture(vision=VisionTower(...))",
            )
        if site == "head_out" and (self.heads is None or tower == "vision"):
            raise EngineError(
                f"site 'head_out' in the {tower} tower of a model without declared heads there",
                expected="resid_post, mlp_out or attn_out; head_out in a decoder whose blocks have equal heads, but "
                "not in an encoder-decoder model",
            )


class ModelAdapter(ABC):
    """One model family. Subclasses are final: they declare and implement, nothing overrides them.

    Register one through the entry-point group `steerkit.adapters`, `name = "package.module:Class"`.

    Attributes:
        name: The family's name, as in the entry point.
        model_types: The `config.model_type` values that it serves.
        auto_class: The class of transformers that loads these models.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    auto_class: ClassVar[str] = "AutoModelForImageTextToText"

    @abstractmethod
    def architecture(self, model: nn.Module) -> Architecture:
        """Where the blocks of this model are, and what its tokens mean."""

    @abstractmethod
    def load_processor(self, source: str, **options: Any) -> Any:
        """The processor of a repository or folder, with or without torchvision.

        Args:
            source: Repository id or folder.
            **options: What `from_pretrained` takes: `revision`, `token`, `cache_dir`, `local_files_only` ...
        """

    @abstractmethod
    def render(self, processor: Any, sample: Sample, image_count: int) -> str:
        """The prompt as text, ready to be answered.

        Args:
            processor: The model's processor.
            sample: The sample; its images are not looked at.
            image_count: Number of image placeholders: in the places that the sample gives them (`sample.messages`), or
                in front of the text of the first user turn; with 0 the prompt is the same one with its images and their
                placeholders removed.

        Raises:
            SampleError: A text contains the image token, or the family takes fewer images in a prompt.
        """

    @abstractmethod
    def encode(self, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """Tokenise rendered prompts, left padded, and process their images.

        Args:
            processor: The model's processor.
            texts: Rendered prompts.
            images: The images of each prompt; either every prompt has some or none has.

        Returns:
            What the model (or its `text_module`, where there are no images) takes.
        """

    @abstractmethod
    def image_sizes(self, processor: Any, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
        """`(height, width)` of an image that processes to the same shapes, for each image in the inputs.

        In the groups that the image processor wants them in: by prompt where it treats prompts with several images
        differently, otherwise all in one.
        """


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; that of a language model is its processor."""
    return getattr(processor, "tokenizer", processor)


@runtime_checkable
class SteerableModel(Protocol):
    """What a method may ask of a model; `steerkit.VLM` is one."""

    @property
    def record(self) -> ModelRecord:
        """What the model is."""
        ...

    @property
    def architecture(self) -> Architecture:
        """Where its blocks are."""
        ...

    def capture(
        self,
        samples: Sequence[Sample],
        *,
        images: Images = True,
        layers: Sequence[int] | None = None,
        site: Site = "resid_post",
        tower: Tower = "language",
        pool: Pool = "last",
        seed: int = 0,
    ) -> dict[int, Tensor]:
        """`{layer: [batch, hidden]}` at the last prompt token, or the mean over the prompt's tokens or the images'."""
        ...

    def check_prompt(self, sample: Sample, images: Images = True) -> None:
        """Build the prompt of a sample as text, without opening its images; an error if that can't be done."""
        ...

    def fingerprint(self) -> Fingerprint:
        """How the model responds, unsteered, to a few fixed prompts."""
        ...

    def weights_digest(self) -> str:
        """Digest of a sample of the model's weights."""
        ...

    def check_layers(self, layers: Sequence[int] | None, tower: Tower = "language") -> list[int]:
        """The layers, sorted; all of them for None; an error for any outside the model."""
        ...


@runtime_checkable
class AnsweringModel(SteerableModel, Protocol):
    """What a method may ask of a model that it lets answer; `steerkit.VLM` is one."""

    def generate(self, samples: Sequence[Sample], *, images: Images = True, **options: Any) -> list[str]:
        """One answer per sample."""
        ...

    def log_likelihood(
        self, samples: Sequence[Sample], answers: Sequence[str], *, images: Images = True
    ) -> list[Tensor]:
        """The log-probability of each token of each answer."""
        ...


@runtime_checkable
class LoadedModel(AnsweringModel, Protocol):
    """A model with its weights and, where it has one, its processor; `steerkit.VLM` is one."""

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        ...

    @property
    def processor(self) -> Any:
        """Its processor, or None."""
        ...

    def require_processor(self, purpose: str) -> Any:
        """The processor; an error where there is none."""
        ...

    def inputs(self, samples: Sequence[Sample], images: Images = True, *, seed: int = 0) -> Inputs:
        """What the model takes for samples."""
        ...

    def reset(self) -> None:
        """Forget what the model caches between calls."""
        ...

    def unnoticed(self) -> AbstractContextManager[None]:
        """Passes inside are neither steered nor counted."""
        ...

    def generating_with(self, generate: Callable[..., Tensor]) -> AbstractContextManager[None]:
        """Let `generate` run through a function of an engine's."""
        ...
