"""What every method must refuse, and when: demands of the kit for methods."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import SkipTest

from steerkit.errors import ContractError, SteerKitError
from steerkit.testing.method_case import MethodCase
from steerkit.testing.reference_hooks import counted_passes


def no_anchors_are_refused(case: MethodCase) -> None:
    """A method that needs anchors refuses an empty set before the model runs; another one fits without."""
    fitted = case.refused_or_fitted([], "no anchors", "call require_anchors or require_labels in plan")
    if fitted is case.measures:
        raise ContractError("a fit on no anchors works" if fitted else "no anchors are refused, and none are needed")


def missing_images_are_refused(case: MethodCase) -> None:
    """Anchors without images work, or are refused before the model runs."""
    bare = [replace(sample, images=()) for sample in case.anchors]
    for anchors in (bare, [*case.anchors[:-1], bare[-1]]):
        case.refused_or_fitted(anchors, "anchors without images", "call require_images in plan")


def missing_captions_are_refused(case: MethodCase) -> None:
    """Anchors without captions work, or are refused before the model runs."""
    bare = [replace(sample, caption=None) for sample in case.anchors]
    for anchors in (bare, [*case.anchors[:-1], bare[-1]]):
        case.refused_or_fitted(anchors, "anchors without captions", "call require_captions in plan")


def missing_labels_are_refused(case: MethodCase) -> None:
    """Anchors without labels, of one label only or of an unknown one work, or are refused before the model runs."""
    first = case.anchors[0].label
    fix = "call require_labels in plan"
    bare = [replace(sample, label=None) for sample in case.anchors]
    case.refused_or_fitted(bare, "anchors without labels", fix)
    case.refused_or_fitted([replace(sample, label=first) for sample in bare], f"anchors that are all {first!r}", fix)
    odd = [*case.anchors, replace(case.anchors[0], label="no such label")]
    case.refused_or_fitted(odd, "anchors with an unknown label", fix)


def bad_anchors_are_found_first(case: MethodCase) -> None:
    """An anchor that can't be a prompt, at the very end of the set, is found before the model runs on the first."""
    _needs_anchors(case)
    bad = {"a missing image file": replace(case.anchors[-1], images=(Path("no-such-image.png"),))}
    if token := getattr(case.vlm.processor, "image_token", None):
        bad["the image token in a text"] = replace(case.anchors[-1], text=f"What is {token}?")
    for what, sample in bad.items():
        with counted_passes(case.vlm.model) as ran, suppress(SteerKitError):
            case.fit([*case.anchors[:-1], sample], batch_size=2)
        if ran:
            raise ContractError(f"the model ran before {what} was found", fix="Plan(shown=...): how anchors are shown")


def _needs_anchors(case: MethodCase) -> None:
    if not case.measures:
        raise SkipTest("the method measures no anchors")
