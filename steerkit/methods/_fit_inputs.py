"""What a fit is given and what it notes: the model, the engine that reads it, and the anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from steerkit._internal.validation import PATH, expect, expect_one_of, expect_whole
from steerkit.engines.calls import CallTracker
from steerkit.errors import EngineError, OptionError
from steerkit.methods._state import State
from steerkit.models import (
    Images,
    LoadedModel,
    Sample,
    SteerableModel,
    anchor_digest,
    hides_images,
    named,
    numbered_from,
)
from steerkit.vectors import AnchorRecord


def check_measuring(batch_size: Any, checkpoint: Any, progress: Any, engine: Any) -> None:
    """Refuse impossible arguments of `fit` and `measure`."""
    expect_whole(batch_size=batch_size)
    expect(PATH | None, "a file", checkpoint=checkpoint)
    expect(Callable | None, "a function of (done, total)", progress=progress)
    expect_one_of(("nnsight", "hooks"), engine=engine)


class Read:
    """A model that is read by one engine, whoever asks."""

    def __init__(self, model: SteerableModel, engine: str) -> None:
        self._model = model
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def capture(self, *given: Any, **options: Any) -> dict[int, Tensor]:
        """As the model's own."""
        return self._model.capture(*given, **{"engine": self._engine, **options})


def model_and_anchors(
    model: SteerableModel | nn.Module, processor: Any, anchors: Sequence[Sample] | None, engine: str
) -> tuple[SteerableModel, Sequence[Sample]]:
    """What `fit` was given, whichever way; the model is read by the engine.

    Raises:
        OptionError: It is not a model, or the processor is missing or given twice.
    """
    if isinstance(model, SteerableModel):
        if anchors is not None and processor is not None:
            raise OptionError(
                "a VLM is fitted with another processor",
                expected="fit(vlm, anchors), or fit(model, processor, anchors)",
            )
        if engine != "nnsight":
            model = cast("SteerableModel", Read(model, engine))
        return model, (() if processor is None else processor) if anchors is None else anchors
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"the model is a {type(model).__name__}",
            expected="a VLM, which is a model with its processor, or a Hugging Face model and its processor",
            fix="pass sk.wrap(model, processor), or what sk.load returns",
        )
    if processor is None or isinstance(processor, (list, tuple)):
        raise OptionError(
            f"a {type(model).__name__} is fitted without its processor",
            expected="fit(model, processor, anchors)",
            fix="AutoProcessor.from_pretrained(name); of a language model, AutoTokenizer",
        )
    from steerkit.vlm import wrap

    return model_and_anchors(wrap(model, processor), None, () if anchors is None else anchors, engine)


def check_unsteered(model: SteerableModel) -> None:
    """Refuse to measure a model inside a block that steers it: nothing of the vector would tell.

    Raises:
        EngineError: A block is open here.
    """
    model = model._model if isinstance(model, Read) else model
    if not isinstance(model, LoadedModel):
        return
    with CallTracker.of(model.model, model.architecture) as tracker:
        call = tracker.prompt()
    if call is not None and call.owners:
        names = ", ".join(block.name for block in call.owners)
        raise EngineError(
            f"a vector is fitted inside a steering block ({names}), and would be measured on steered states",
            expected="fit outside of every block that steers this model",
            fix="vlm.unnoticed() around fit measures the model as it is; vlm.capture reads steered states",
        )


def anchor_record(state: State, name: str, license_: str | None) -> AnchorRecord:
    measured = [state.samples[index] for index in range(len(state))]
    labels = Counter(each.label for each in measured if each.label)
    return AnchorRecord(
        name=name,
        sha256=anchor_digest(each.digest for each in measured),
        size=len(measured),
        license=license_,
        labels=dict(sorted(labels.items())),
        chat_template_kwargs=dict(sorted(Counter(each.options for each in measured if each.options).items())),
    )


def check_anchors(
    model: SteerableModel, anchors: Sequence[Sample], shown: Sequence[Images], numbers: Iterable[int]
) -> None:
    """Find what is wrong with any of these anchors before the model runs on the first."""
    for index in numbers:
        with numbered_from(index):
            for images in shown:
                model.check_prompt(anchors[index], images)
            if all(map(hides_images, shown)):  # they are read all the same, for the digest of the anchor set
                with named(0, anchors[index]):
                    anchors[index].loaded()
