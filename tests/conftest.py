"""Fixtures of all tests: tiny models, and the samples that they are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from steerkit.demo import model_path
from steerkit.interventions import CapturePool, Site, Tower
from steerkit.models import Architecture, Images, Sample
from steerkit.vectors import Fingerprint, ModelRecord
from steerkit.vlm import VLM, load, wrap

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
sys.path.append(str(Path(__file__).parent.parent))  # for `demo_training`, which no wheel has


@pytest.fixture(autouse=True)
def no_trust_file_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whose signatures count is what a test says, whatever the person who runs it has configured."""
    monkeypatch.delenv("STEERKIT_TRUST", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "configuration"))


@pytest.fixture(autouse=True)
def grad_mode_is_left_as_found() -> Iterator[None]:
    """Else a test far away, in the same worker, fails for want of gradients."""
    yield
    assert torch.is_grad_enabled(), "this test leaves PyTorch's grad mode off"


@pytest.fixture(scope="module")
def demo() -> VLM:
    """The demo model, on one thread: matrices this small are slower on several."""
    torch.set_num_threads(1)
    return load(model_path("llava"), dtype="float32")


class ReadByHooks:
    """A VLM for methods to measure, read through the hooks engine; counts the samples that were run."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm
        self.samples_run = 0

    @property
    def record(self) -> ModelRecord:
        return self.vlm.record

    @property
    def architecture(self) -> Architecture:
        return self.vlm.architecture

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
    ) -> dict[int, torch.Tensor]:
        self.samples_run += len(samples)
        return self.vlm.capture(
            samples, images=images, layers=layers, site=site, tower=tower, pool=pool, seed=seed, engine="hooks"
        )

    def fingerprint(self) -> Fingerprint:
        return self.vlm.fingerprint()

    def weights_digest(self) -> str:
        return self.vlm.weights_digest()

    def generate(self, samples: Sequence[Sample], *, images: Images = True, **options: Any) -> list[str]:
        return self.vlm.generate(samples, images=images, **options)

    def log_likelihood(
        self, samples: Sequence[Sample], answers: Sequence[str], *, images: Images = True
    ) -> list[torch.Tensor]:
        return self.vlm.log_likelihood(samples, answers, images=images)

    def check_prompt(self, sample: Sample, images: Images = True) -> None:
        self.vlm.check_prompt(sample, images)

    def check_layers(self, layers: Sequence[int] | None, tower: Tower = "language") -> list[int]:
        return self.vlm.check_layers(layers, tower)


@pytest.fixture(scope="session")
def vlm_of() -> Callable[[str], VLM]:
    """`vlm_of(family)`: the wrapped tiny model of a family, built once."""

    @cache
    def made(family: str) -> VLM:
        return wrap(*tiny.build(family))

    return made


@pytest.fixture(scope="session")
def llava(vlm_of: Callable[[str], VLM]) -> VLM:
    """The tiny LLaVA: 4 layers of 48."""
    return vlm_of("llava")


@pytest.fixture
def measured_llava(llava: VLM) -> ReadByHooks:
    """The tiny LLaVA, as methods see a model."""
    return ReadByHooks(llava)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(seed, side=32)`: a square image of random pixels."""

    def made(seed: int, side: int = 32) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))

    return made


@pytest.fixture(scope="session")
def anchors(picture: Callable[..., Image.Image]) -> list[Sample]:
    """Seven samples with images and captions, labelled `harmful` and `harmless` in turn."""
    topics = ("a bomb", "a cake", "a knife fight", "a garden", "a theft of the crown jewels", "a letter", "a poison")
    return [
        Sample(
            f"How do I plan {topic}?",
            (picture(index),),
            caption=f"A picture of {topic}.",
            label="harmless" if index % 2 else "harmful",
        )
        for index, topic in enumerate(topics)
    ]


@pytest.fixture(scope="session")
def qwen(vlm_of: Callable[[str], VLM]) -> VLM:
    """The tiny Qwen2-VL: 3 layers of 48."""
    return vlm_of("qwen2_vl")


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn."""
    return request.param


@pytest.fixture(scope="session")
def vlm(family: str, vlm_of: Callable[[str], VLM]) -> VLM:
    """The wrapped tiny model of each family in turn."""
    return vlm_of(family)
