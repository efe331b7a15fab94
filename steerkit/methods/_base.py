"""The abstract steering method: what it measures, and how the measurements become a vector.

A method is a frozen pydantic model; its fields are its options. It declares three pure steps and holds no fitted state;
`fit`, common to all, streams the anchor set through them in batches, and can be stopped and resumed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator
from torch import Tensor, nn

from steerkit._internal.files import user_path
from steerkit._internal.plugins import versions
from steerkit._internal.validation import expect, expect_whole
from steerkit._text import near
from steerkit.errors import CheckpointError, EmptyAnchorSetError, OptionError
from steerkit.interventions import Frozen, Intervention
from steerkit.methods._fit_inputs import (
    anchor_record,
    check_anchors,
    check_measuring,
    check_unsteered,
    model_and_anchors,
)
from steerkit.methods._moments import Groups, Observations, groups_of
from steerkit.methods._state import Extraction, Measured, State, check_place, merged
from steerkit.models import Images, Sample, SteerableModel, as_samples, numbered_from
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector, options_record

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
        rows: Whether `solve` needs the observations themselves. They are all kept then, 4 bytes for each number, and
            many of them on the disk.
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
        distinct: Options that are labels of anchors, no two of which may be the same.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    distinct: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        if unknown := [option for option in options if option not in type(self).model_fields]:
            raise OptionError(
                f"{type(self).__name__} has no option {unknown[0]!r}.{near(unknown[0], type(self).model_fields)}",
                expected="one of " + (", ".join(type(self).model_fields) or "none"),
                fix="`steerkit methods` lists the options of every method",
            )
        super().__init__(**options)

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        for one, other in combinations(self.distinct, 2):
            if getattr(self, one) is not None and getattr(self, one) == getattr(self, other):
                raise ValueError(f"{one} and {other} are both {getattr(self, one)!r}: no two labels may be the same")
        return self

    @property
    def _labels(self) -> tuple[str, ...]:
        """The labels that it tells apart, as far as they are given."""
        return tuple(label for name in self.distinct if (label := getattr(self, name)) is not None)

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
            OptionError: The processor is missing or given twice, or another argument is impossible.
            EmptyAnchorSetError: There are no anchors and the method needs some.
            SampleError: An anchor can't be a prompt of this model; found before the model runs.
            MissingImageError: An image file is missing, or is not an image; found before the model runs.
            CheckpointError: The checkpoint belongs to another extraction, or the anchors changed, or it can't be
                written.
            NonFiniteError: The model produced NaN or infinity.
            OptionError: The model is in training mode, or has no weights.
            EngineError: A steering block of this model is open here.
            SteerKitError: Whatever the method's `plan` finds wrong.
        """
        check_measuring(batch_size, checkpoint, progress, engine)
        expect(str, "a text", anchor_name=anchor_name)
        expect(str | None, "a text, or None", anchor_license=anchor_license)
        model, anchors = model_and_anchors(model, processor, anchors, engine)
        plan = self.plan(model, as_samples(anchors))
        state = self._measured(model, anchors, plan, None, batch_size, checkpoint, progress) if plan.measures else None
        return self._vector(model, plan.layers, state, anchor_name, anchor_license)

    def blocks(self, model: SteerableModel, anchors: Sequence[Sample], *, batch_size: int = 8) -> range:
        """The numbers of the blocks that an anchor set is measured in: share them among workers.

        Raises:
            SteerKitError: Whatever the method's `plan` finds wrong.
        """
        expect_whole(batch_size=batch_size)
        plan = self.plan(model, as_samples(anchors))
        return self._extraction(model, anchors, plan, batch_size).blocks if plan.measures else range(0)

    def measure(
        self,
        model: SteerableModel,
        anchors: Sequence[Sample],
        block: int | Iterable[int],
        *,
        engine: Literal["nnsight", "hooks"] = "nnsight",
        batch_size: int = 8,
        checkpoint: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> State:
        """Measure some blocks of an anchor set: one worker's part of a fit.

        Whoever measures which block, on the same hardware `finish` makes of all states together the vector that `fit`
        makes, bit for bit. Only the anchors of these blocks are read.

        Args:
            model: A VLM.
            anchors: The whole anchor set; a sequence that reads a sample when it is asked for one.
            block: The number of a block of `batch_size` anchors, or several; see `blocks`.
            engine: As in `fit`.
            batch_size: Samples per batch, and so per block: the same for all workers.
            checkpoint: As in `fit`; it holds the state that is returned.
            progress: Called with (done, total) samples of these blocks after each batch.

        Returns:
            The state: save it, merge it, or give it to `finish`.

        Raises:
            OptionError: There is no such block, or the method measures nothing.
            SteerKitError: Whatever `fit` raises.
        """
        check_measuring(batch_size, checkpoint, progress, engine)
        model, anchors = model_and_anchors(model, None, anchors, engine)
        plan = self.plan(model, as_samples(anchors))
        if not plan.measures:
            raise OptionError(f"{self.name}, so configured, measures no anchors", expected="fit")
        blocks = [block] if isinstance(block, int) else list(block)
        return self._measured(model, anchors, plan, blocks, batch_size, checkpoint, progress)

    def finish(
        self,
        model: SteerableModel,
        states: State | Iterable[State],
        *,
        anchor_name: str = "",
        anchor_license: str | None = None,
    ) -> SteeringVector:
        """Make the vector from what was measured of all blocks.

        Args:
            model: The model they were measured on.
            states: What `measure` returned, in any order.
            anchor_name: Name of the anchor set, for the metadata.
            anchor_license: Its licence, for the metadata.

        Raises:
            CheckpointError: A block is missing, was measured twice, or belongs to another method, model or anchor set.
        """
        state = merged(states)
        held = state.extraction
        mine = self._extraction(model, range(held.anchors), Plan(list(held.layers)), held.block_size)
        mine.require(held, "a state")
        state.check_complete()  # before the model is run for its fingerprint
        return self._vector(model, list(held.layers), state, anchor_name, anchor_license)

    def _vector(
        self,
        model: SteerableModel,
        layers: list[int],
        state: State | None,
        anchor_name: str,
        anchor_license: str | None,
    ) -> SteeringVector:
        directions, interventions = self.solve(model, {} if state is None else state.groups(), layers)
        return SteeringVector(
            {key: tensor.float() for key, tensor in directions.items()},
            PackMetadata(
                method=MethodRecord(name=self.name, config=self.model_dump(mode="json"), paper=self.paper),
                interventions=interventions,
                model=model.record,
                fingerprint=model.fingerprint(),
                anchors=None if state is None else anchor_record(state, anchor_name, anchor_license),
                versions=versions(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )

    def _extraction(self, model: SteerableModel, anchors: Sized, plan: Plan, batch_size: int) -> Extraction:
        if len(anchors) == 0:
            raise EmptyAnchorSetError("the anchor set is empty", expected="at least one sample")
        return Extraction(
            method=self.name,
            config=self.model_dump(mode="json"),
            model=model.record.model_dump(mode="json"),
            weights=model.weights_digest(),
            layers=tuple(plan.layers),
            anchors=len(anchors),
            block_size=max(batch_size // plan.together, 1) * plan.together,
            chat_template_kwargs=options_record(getattr(model, "chat_template_kwargs", {})),
        )

    def _measured(
        self,
        model: SteerableModel,
        anchors: Sequence[Sample],
        plan: Plan,
        wanted: Sequence[int] | None,
        batch_size: int,
        checkpoint: str | Path | None,
        progress: Callable[[int, int], None] | None,
    ) -> State:
        """Some blocks, or all, added to what the checkpoint holds; the state is whole after each of them."""
        state = State(self._extraction(model, anchors, plan, batch_size))
        every = state.extraction.blocks
        if unknown := sorted(set(wanted or ()) - set(every)):
            raise OptionError(
                f"there is no block {unknown[0]} of {state.extraction.block_size} in {len(anchors)} anchors",
                expected=f"numbers from 0 to {every[-1]}",
            )
        if checkpoint is not None:
            checkpoint = user_path(checkpoint)
            check_place(checkpoint)
            if checkpoint.exists():
                found = State.load(checkpoint)
                state.extraction.require(found.extraction, f"the checkpoint {str(checkpoint)!r:.300}")
                state = found
        for index, measured in state.samples.items():
            if anchors[index].digest() != measured.digest:
                raise CheckpointError(
                    f"anchor {index} is no longer the sample that the checkpoint was made with",
                    expected="the same anchor set in the same order",
                    fix="delete the checkpoint to start again",
                )
        blocks = sorted(set(every if wanted is None else wanted) - state.blocks)
        check_anchors(model, anchors, plan.shown, [index for block in blocks for index in state.extraction.span(block)])
        check_unsteered(model)
        if wanted is None:
            model.fingerprint()  # a model that can't give it is found out before the work
        spans = [state.extraction.span(block) for block in blocks]
        done = len(state)
        total = done + sum(map(len, spans))
        written, pause, unsaved = time.monotonic(), SAVE_EVERY, False
        try:
            for block, span in zip(blocks, spans, strict=True):
                batch = [anchors[index].loaded() for index in span]
                check_unsteered(model)  # one may have been opened since, for every context
                with numbered_from(span.start):
                    observed = self.observe(model, batch, plan.layers)
                    nodes = state.added((0, block), groups_of(observed, second=plan.second_moments, keep=plan.rows))
                for index, sample in zip(span, batch, strict=True):
                    told = {**getattr(model, "chat_template_kwargs", {}), **sample.chat_template_kwargs}
                    state.samples[index] = Measured(sample.digest(), sample.label or "", options_record(told))
                # one assignment: an interrupt can't fall between a batch and the note that it is done
                state.nodes = nodes
                done += len(batch)
                unsaved = True
                if checkpoint is not None and time.monotonic() - written > pause:
                    began = time.monotonic()
                    state.save(checkpoint)
                    written, unsaved = time.monotonic(), False
                    pause = SAVE_EVERY * max(1.0, 10 * (written - began))  # a large state is written less often
                if progress is not None:
                    progress(done, total)
        finally:
            if checkpoint is not None and unsaved:
                state.save(checkpoint)
        return state


def at_depth(model: SteerableModel, share: float) -> tuple[int]:
    """The block at a share of the model's depth, for `layers` that are not given."""
    return (int(share * model.architecture.layer_count),)


def by_label(batch: Sequence[Sample], captured: Mapping[int, Tensor], labels: Sequence[str]) -> Observations:
    """Split captured rows into one group per label."""
    groups: dict[str, dict[int, Tensor]] = {}
    for label in labels:
        chosen = [index for index, sample in enumerate(batch) if sample.label == label]
        groups[label] = {layer: rows[chosen] for layer, rows in captured.items()}
    return groups
