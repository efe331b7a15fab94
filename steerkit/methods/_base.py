"""The abstract steering method: what it measures, and how the measurements become a vector.

A method is a frozen pydantic model; its fields are its options. It declares three pure steps and holds no fitted state;
`fit`, common to all, streams the anchor set through them in batches, and can be stopped and resumed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from steerkit._internal.faults import faults
from steerkit._internal.validation import PATH, expect, expect_one_of, expect_whole
from steerkit._text import near
from steerkit.errors import (
    CheckpointError,
    EmptyAnchorSetError,
    NonFiniteError,
    OptionError,
)
from steerkit.interventions import Frozen, Intervention
from steerkit.methods._checkpoint import Progressed, check_place, load_checkpoint, save_checkpoint
from steerkit.methods._moments import Groups, Moments, merge_groups
from steerkit.models import (
    Images,
    Sample,
    SteerableModel,
    anchor_digest,
    as_samples,
    hides_images,
    named,
    numbered_from,
)
from steerkit.vectors import AnchorRecord, Fingerprint, Key, MethodRecord, PackMetadata, SteeringVector

Observations = Mapping[str, Mapping[int, Tensor]]
"""`{group: {layer: [rows, hidden]}}`: what one batch of samples contributes."""

SAVE_EVERY = 2.0
"""Seconds between two writes of a checkpoint."""


class Plan(NamedTuple):
    """What a fit is going to do.

    Attributes:
        layers: The decoder blocks to measure, 0-based.
        second_moments: Whether `solve` needs more of the observations than their mean.
        measures: Whether anchors are measured at all.
        shown: How `observe` shows the anchors; each prompt is built so, as text, before the model runs.
        together: So many neighbours in the anchor set belong together: batches never part them.
        rows: Whether `solve` needs the observations themselves. They are then all kept: 8 bytes for each number.
    """

    layers: list[int]
    second_moments: bool = False
    measures: bool = True
    shown: tuple[Images, ...] = (True,)
    together: int = 1
    rows: bool = False


class Fit(NamedTuple):
    """What a method finds: its directions, and the interventions that use them."""

    directions: Mapping[Key, Tensor]
    interventions: tuple[Intervention, ...]


class SteeringMethod(Frozen, ABC):
    """Base of all methods. Subclasses are final: they add options as fields and implement the three steps.

    Register one through the entry-point group `steerkit.methods`, `name = "package.module:Class"`.

    Attributes:
        name: The method's name, as in the entry point.
        paper: Where it was published.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        if unknown := [option for option in options if option not in type(self).model_fields]:
            raise OptionError(
                f"{type(self).__name__} has no option {unknown[0]!r}.{near(unknown[0], type(self).model_fields)}",
                expected="one of " + (", ".join(type(self).model_fields) or "none"),
                fix="`steerkit methods` lists the options of every method",
            )
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise OptionError(
                f"{type(self).__name__} can't be configured so ({faults(error, 'options')})",
                expected="options " + ", ".join(type(self).model_fields),
            ) from error

    @abstractmethod
    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Check the options against the model and the anchors, before any model time is spent.

        Raises:
            SteerKitError: Something does not fit.
        """

    @abstractmethod
    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """Measure one batch of samples."""

    @abstractmethod
    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Turn the statistics of all observations into directions and interventions."""

    def fit(
        self,
        model: SteerableModel | nn.Module,
        processor: Any = None,
        anchors: Sequence[Sample] | None = None,
        *,
        engine: Literal["nnsight", "hooks"] = "nnsight",
        batch_size: int = 8,
        checkpoint: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        anchor_name: str = "",
        anchor_license: str | None = None,
    ) -> SteeringVector:
        """Extract a steering vector: `fit(vlm, anchors)`, or `fit(model, processor, anchors)` of a raw model.

        Args:
            model: A VLM, or a Hugging Face model.
            processor: The processor of a Hugging Face model. A VLM has its own: there, the anchors come here.
            anchors: The anchor set; any sequence, read one batch at a time.
            engine: How the model is read. `nnsight` traces it; `hooks` is about a tenth faster, and the one for several
                threads. Both give equal numbers.
            batch_size: Samples per batch.
            checkpoint: A file that keeps the state: written every two seconds, on interruption and at the end, read at
                the start. A fit that is run again with the same file goes on where the last one stopped. Delete it once
                the vector is saved.
            progress: Called with (done, total) samples after each batch.
            anchor_name: Name of the anchor set, for the metadata.
            anchor_license: Its licence, for the metadata.

        Returns:
            The vector, with complete metadata.

        Raises:
            OptionError: The model is none, the processor is missing or a second one, or another argument is impossible.
            EmptyAnchorSetError: There are no anchors and the method needs some.
            SampleError: An anchor can't be a prompt of this model; found before the model runs.
            MissingImageError: An image file is missing, or is not an image; found before the model runs.
            CheckpointError: The checkpoint belongs to another extraction, or the anchors changed, or it can't be
                written.
            NonFiniteError: The model produced NaN or infinity.
            OptionError: The model is in training mode, or has no weights.
            SteerKitError: Whatever the method's `plan` finds wrong.
        """
        expect_whole(batch_size=batch_size)
        expect(PATH | None, "a file", checkpoint=checkpoint)
        expect(Callable | None, "a function of (done, total)", progress=progress)
        expect(str, "a text", anchor_name=anchor_name)
        expect(str | None, "a text, or None", anchor_license=anchor_license)
        expect_one_of(("nnsight", "hooks"), engine=engine)
        model, anchors = _model_and_anchors(model, processor, anchors)
        if engine != "nnsight":
            model = cast("SteerableModel", _Read(model, engine))
        plan = self.plan(model, as_samples(anchors))
        state = Progressed("")
        record: AnchorRecord | None = None
        if plan.measures:
            state, fingerprint = self._measure(model, anchors, plan, batch_size, checkpoint, progress)
            labels = Counter(anchors[index].label or "" for index in range(len(anchors)))
            options = Counter(_options(anchors[index]) for index in range(len(anchors)))
            record = AnchorRecord(
                name=anchor_name,
                sha256=anchor_digest(state.digests),
                size=len(anchors),
                license=anchor_license,
                labels={label: count for label, count in sorted(labels.items()) if label},
                chat_template_kwargs={text: count for text, count in sorted(options.items()) if text},
            )
        else:
            fingerprint = model.fingerprint()
        directions, interventions = self.solve(model, state.groups, plan.layers)
        return SteeringVector(
            {key: tensor.float() for key, tensor in directions.items()},
            PackMetadata(
                method=MethodRecord(name=self.name, config=self.model_dump(mode="json"), paper=self.paper),
                interventions=interventions,
                model=model.record,
                fingerprint=fingerprint,
                anchors=record,
                versions=_versions(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )

    def _measure(
        self,
        model: SteerableModel,
        anchors: Sequence[Sample],
        plan: Plan,
        batch_size: int,
        checkpoint: str | Path | None,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[Progressed, Fingerprint]:
        total = len(anchors)
        if total == 0:
            raise EmptyAnchorSetError("the anchor set is empty", expected="at least one sample")
        path = None if checkpoint is None else Path(checkpoint)
        identity = "" if path is None else self._identity(model, plan, total)
        state = Progressed(identity) if path is None else load_checkpoint(path, identity)
        if path is not None:
            check_place(path)
        _check_resumed(state, anchors)
        _check_anchors(model, anchors, plan.shown, start=len(state.digests))
        fingerprint = model.fingerprint()  # a model that can't give it is found out before the work
        batch_size = max(batch_size // plan.together, 1) * plan.together
        written = time.monotonic()
        unsaved = False
        try:
            for start in range(len(state.digests), total, batch_size):
                batch = [anchors[index].loaded() for index in range(start, min(start + batch_size, total))]
                with numbered_from(start):
                    groups = merge_groups(state.groups, self._moments(model, batch, plan))
                digests = state.digests + [sample.digest() for sample in batch]
                # one assignment: an interrupt can't fall between a batch and the note that it is done
                state = Progressed(identity, digests, groups)
                unsaved = True
                if path is not None and time.monotonic() - written > SAVE_EVERY:
                    save_checkpoint(path, state)
                    written, unsaved = time.monotonic(), False
                if progress is not None:
                    progress(len(state.digests), total)
        finally:
            if path is not None and unsaved:
                save_checkpoint(path, state)
        return state, fingerprint

    def _moments(self, model: SteerableModel, batch: Sequence[Sample], plan: Plan) -> Groups:
        groups: Groups = {}
        for name, by_layer in self.observe(model, batch, plan.layers).items():
            for layer, rows in by_layer.items():
                if rows.shape[0] == 0:
                    continue
                if not torch.isfinite(rows).all():
                    raise NonFiniteError(
                        f"the model's hidden states at layer {layer} hold NaN or infinity ({name})",
                        expected="finite values",
                        fix="load the model in bfloat16 or float32: float16 may overflow",
                    )
                groups.setdefault(name, {})[layer] = Moments.of(
                    rows, second=plan.second_moments or plan.rows, keep=plan.rows
                )
        return groups

    def _identity(self, model: SteerableModel, plan: Plan, total: int) -> str:
        record = model.record.model_dump(mode="json")
        parts = [self.name, self.model_dump(mode="json"), record, model.weights_digest(), plan.layers, total]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _options(sample: Sample) -> str:
    """What a sample tells the chat template, as JSON; a template of its own by its digest."""
    options = dict(sample.chat_template_kwargs)
    if "chat_template" in options:
        options["chat_template"] = f"sha256 {hashlib.sha256(str(options['chat_template']).encode()).hexdigest()}"
    return json.dumps(options, sort_keys=True, ensure_ascii=False) if options else ""


class _Read:
    """A model that is read by one engine, whoever asks."""

    def __init__(self, model: SteerableModel, engine: str) -> None:
        self._model = model
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def capture(self, *given: Any, **options: Any) -> dict[int, Tensor]:
        """As the model's own."""
        return self._model.capture(*given, **{"engine": self._engine, **options})


def _model_and_anchors(
    model: SteerableModel | nn.Module, processor: Any, anchors: Sequence[Sample] | None
) -> tuple[SteerableModel, Sequence[Sample]]:
    """What `fit` was given, whichever way.

    Raises:
        OptionError: It is no model, or there is no processor, or one too many.
    """
    if isinstance(model, SteerableModel):
        if anchors is not None and processor is not None:
            raise OptionError(
                "a VLM is fitted with another processor",
                expected="fit(vlm, anchors), or fit(model, processor, anchors)",
            )
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

    return wrap(model, processor), () if anchors is None else anchors


def by_label(batch: Sequence[Sample], captured: Mapping[int, Tensor], labels: Sequence[str]) -> Observations:
    """Split captured rows into one group per label."""
    groups: dict[str, dict[int, Tensor]] = {}
    for label in labels:
        chosen = [index for index, sample in enumerate(batch) if sample.label == label]
        groups[label] = {layer: rows[chosen] for layer, rows in captured.items()}
    return groups


def _check_resumed(state: Progressed, anchors: Sequence[Sample]) -> None:
    """The samples that are done must be those that the anchor set still holds."""
    for index, digest in enumerate(state.digests):
        if anchors[index].digest() != digest:
            raise CheckpointError(
                f"anchor {index} is no longer the sample that the checkpoint was made with",
                expected="the same anchor set in the same order",
                fix="delete the checkpoint to start again",
            )


def _check_anchors(model: SteerableModel, anchors: Sequence[Sample], shown: Sequence[Images], start: int) -> None:
    """Find what is wrong with any anchor before the model runs on the first."""
    for index in range(start, len(anchors)):
        with numbered_from(index):
            for images in shown:
                model.check_prompt(anchors[index], images)
            if all(map(hides_images, shown)):  # they are read all the same, for the digest of the anchor set
                with named(0, anchors[index]):
                    anchors[index].loaded()


@functools.cache  # importlib.metadata parses a file for each
def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _versions() -> dict[str, str]:
    names = ("steerkit-vlm", "torch", "transformers", "nnsight")
    return {name: _version(name) for name in names}
