"""What methods demand of anchors and models, checked before anything is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from steerkit.errors import EmptyAnchorSetError, LabelError, MissingImageError, SampleError, UnsupportedModelError
from steerkit.models import Sample, SteerableModel, check_begun, named


def require_anchors(anchors: Sequence[Sample]) -> None:
    """For `plan`: refuse an empty anchor set."""
    if len(anchors) == 0:
        raise EmptyAnchorSetError(
            "the anchor set is empty", expected="at least one sample", fix="read some with steerkit.read_samples"
        )


def require_vision(model: SteerableModel) -> None:
    """For `plan`: refuse a language model that takes no images."""
    if not model.architecture.takes_images:
        raise UnsupportedModelError(
            f"{model.record.architecture} takes no images, and the method measures what an image does to a model",
            expected="a vision-language model",
            fix="use a method that contrasts texts, such as CAA or RefusalDirection",
        )


def require_images(anchors: Sequence[Sample]) -> None:
    """For `plan`: refuse anchors without images."""
    for index in range(len(anchors)):
        if not anchors[index].images and not anchors[index].videos:
            raise MissingImageError(
                f"anchor {index} ({str(anchors[index].text)[:60]!r}) has no image",
                expected="an image in every anchor",
                fix="give it one (a blank image will do for a method that replaces it), or leave the sample out",
            )


def require_captions(anchors: Sequence[Sample]) -> None:
    """For `plan`: refuse anchors without captions."""
    for index in range(len(anchors)):
        if anchors[index].caption is None:
            raise SampleError(
                f"anchor {index} ({str(anchors[index].text)[:60]!r}) has no caption",
                expected="a caption in every anchor",
                fix="give it one, or leave the sample out",
            )


def require_begun(anchors: Sequence[Sample], *labels: str) -> None:
    """For `plan`: refuse anchors of these labels that begin no answer.

    Raises:
        SampleError: It is so.
    """
    for index in range(len(anchors)):
        if (sample := anchors[index]).label in labels:
            with named(index, sample):
                check_begun(sample)


def require_two_kinds(anchors: Sequence[Sample], *labels: str) -> None:
    """For `plan`: refuse anchors of which none carries one of the labels, or all carry one.

    Raises:
        LabelError: It is so.
    """
    counts = Counter(anchors[index].label for index in range(len(anchors)))
    for label in labels:
        if not counts[label] or sum(counts[each] for each in set(labels)) == counts.total():
            raise LabelError(
                f"{counts[label]} of {counts.total()} anchors are labelled {label!r} (labels: {dict(counts)})",
                labels=labels,
                expected="some with each of " + ", ".join(map(repr, labels)) + " and some without",
                fix="label the samples, or configure the method with labels that some of them carry",
            )


def require_labels(anchors: Sequence[Sample], *labels: str) -> None:
    """For `plan`: refuse anchors that lack one of the labels altogether, or carry another.

    Raises:
        LabelError: It is so. Its `labels` tell `steerkit.testing` what anchors the method needs.
    """
    counts = Counter(anchors[index].label for index in range(len(anchors)))
    for label in labels:
        if not counts[label]:
            raise LabelError(
                f"no anchor is labelled {label!r} (labels: {dict(counts)})",
                labels=labels,
                expected="anchors labelled " + " and ".join(map(repr, labels)),
                fix="label the samples, or configure the method with the labels that they carry",
            )
    if unknown := sorted(str(label) for label in counts if label not in labels):
        raise LabelError(
            f"{sum(counts[label] for label in counts if label not in labels)} anchors are labelled {unknown}",
            labels=labels,
            expected="only " + " and ".join(map(repr, labels)),
            fix="leave them out",
        )
