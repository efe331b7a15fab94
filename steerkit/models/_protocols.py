"""What a method may ask of a model: protocols that `steerkit.VLM` meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from steerkit.interventions import CapturePool, Site, Tower
from steerkit.models._architecture import Architecture, Images, Inputs
from steerkit.models._samples import Sample
from steerkit.vectors import Fingerprint, ModelRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from steerkit.models._format import PromptFormat


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
        pool: CapturePool = "last",
        seed: int = 0,
    ) -> dict[int, Tensor]:
        """`{layer: [batch, hidden]}` at the last prompt token, or the mean over tokens; see `VLM.capture`."""
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

    @property
    def format(self) -> PromptFormat | None:
        """Its prompts; None where there is no processor."""
        ...

    def placed(self, inputs: Inputs) -> Inputs:
        """Inputs where the model is, in its type."""
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
