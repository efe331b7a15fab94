"""Methods that are wrong in one way each, and the sound one that they are made from."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from steerkit.interventions import Intervention
from steerkit.methods import Fit, Groups, Observations, Plan, SteeringMethod, by_label, require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key

LABELS = ("target", "background")
counter = itertools.count()


class Sound(SteeringMethod):
    """The difference of two means.

    Attributes:
        strength: Of the addition.
    """

    name: ClassVar[str] = "sound"
    paper: ClassVar[str] = "none"

    strength: float = 3.0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        require_labels(anchors, *LABELS)
        return Plan([1, 2])

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        return by_label(batch, model.capture(batch, layers=layers), LABELS)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        means = [found[label] for label in LABELS]
        directions = {Key(layer): means[0][layer].mean - means[1][layer].mean for layer in layers}
        return Fit(directions, (Intervention(layers=tuple(layers), strength=self.strength),))


class Undescribed(Sound):
    """Says nothing of its option."""


class Badly_Named(Sound):
    __doc__ = Sound.__doc__
    name: ClassVar[str] = "Badly Named"


class Forgetful(Sound):
    """An option that is not what JSON makes of it."""

    when: Any = (1, 2)


class Permissive(Sound):
    """Takes any option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{key: value for key, value in options.items() if key in type(self).model_fields})


class Unchecked(Sound):
    """Falls over on no anchors."""

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        return Plan([1, 2]) if anchors[0].label else Plan([1])


class Blind(Sound):
    """Needs images and does not say so."""

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        assert all(sample.images[0] for sample in batch)
        return super().observe(model, batch, layers)


class Captioned(Sound):
    """Needs captions and finds out when they are shown."""

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        super().observe(model, batch, layers)
        return by_label(batch, model.capture(batch, images="caption", layers=layers), LABELS)


class Unlabelled(Sound):
    """Needs labels and finds out in the end."""

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        return Plan([1, 2], shown=(True,) if len(anchors) else ())

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        labels = sorted({str(sample.label) for sample in batch})
        return by_label(batch, model.capture(batch, layers=layers), labels)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        means = [found[label] for label in ("harmful", "harmless")]
        directions = {Key(layer): means[0][layer].mean - means[1][layer].mean for layer in layers}
        return Fit(directions, (Intervention(layers=tuple(layers), strength=self.strength),))


class Hasty(Sound):
    """Does not say how anchors are shown."""

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        return super().plan(model, anchors)._replace(shown=())


class Meddling(Sound):
    """Leaves a hook on the model."""

    def solve(self, model: Any, found: Groups, layers: Sequence[int]) -> Fit:
        model.model.get_submodule(model.architecture.site(0, "mlp_out")).register_forward_hook(lambda *_: None)
        return super().solve(model, found, layers)


class Heavy(Sound):
    """Changes a weight."""

    def solve(self, model: Any, found: Groups, layers: Sequence[int]) -> Fit:
        with torch.no_grad():
            next(model.model.parameters()).add_(0.01)
        return super().solve(model, found, layers)


class Remembering(Sound):
    """Keeps the first mean that it ever saw, on its class."""

    kept: ClassVar[Any] = None

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        if type(self).kept is None:
            type(self).kept = super().solve(model, found, layers)
        return type(self).kept


class Stashing(Sound):
    """Keeps a mean on itself."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        object.__setattr__(self, "fitted", fitted)
        return fitted


class Mutable(Sound):
    """Can be changed."""

    model_config = {"frozen": False}


class Listing(Sound):
    """Counts its batches in a list of its class."""

    seen: ClassVar[list[int]] = []

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        self.seen.append(len(batch))
        return super().observe(model, batch, layers)


class _Memory:
    total: ClassVar[dict[str, list[torch.Tensor]]] = {"sum": [torch.zeros(())]}


class Inheriting(Sound, _Memory):
    """Sums up what it saw in a tensor that lies deep in a base of its class."""

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        self.total["sum"][0] += len(batch)
        return super().observe(model, batch, layers)


_seen: dict[int, Fit] = {}
_last = torch.zeros(48)


class Caching(Sound):
    """Answers from a dictionary of its module, by the object that asks."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        return _seen.setdefault(id(self), super().solve(model, found, layers))


class Smoothing(Sound):
    """Writes what it found into a tensor of its module."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        _last.copy_(fitted.directions[Key(1)])
        return fitted


class Leaving(Sound):
    """Makes a global of what it found."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        global _found
        _found = super().solve(model, found, layers)
        return _found


@functools.cache
def _answers(asker: int) -> list[Fit]:
    return []


class Hiding(Sound):
    """Answers from where nobody looks, by the object that asks."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        _answers(id(self)).append(super().solve(model, found, layers))
        return _answers(id(self))[0]


class Reseeding(Sound):
    """Seeds everything, to be reproducible."""

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return super().observe(model, batch, layers)


class Deaf(Sound):
    """Measures its anchors, and adds what it likes."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        return fitted._replace(directions={key: torch.ones(len(d)) for key, d in fitted.directions.items()})


class Random(Sound):
    """Draws from the global random state."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        return fitted._replace(directions={key: d + torch.randn(len(d)) for key, d in fitted.directions.items()})


class Centring(Sound):
    """Subtracts the mean of the batch from each of its rows."""

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        rows = model.capture(batch, layers=layers)
        return by_label(batch, {layer: each - 0.5 * each.mean(0) for layer, each in rows.items()}, LABELS)


class Counting(Sound):
    """Weighs a batch by how many came before it in this process."""

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        rows = model.capture(batch, layers=layers)
        weight = 1.0 + 0.1 * next(counter)
        return by_label(batch, {layer: weight * each for layer, each in rows.items()}, LABELS)


class Outlying(Sound):
    """Directions that a pack does not hold."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        scaled = {key: d * (1e30 if key.layer == 2 else 1.0) for key, d in fitted.directions.items()}
        return fitted._replace(directions=scaled)


class _Code(Intervention):
    """An intervention whose strength is code."""

    def strength_at(self, layer: int) -> float:
        return 3.0


class Coded(Sound):
    """Puts code into its interventions."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        return fitted._replace(interventions=(_Code(layers=tuple(layers)),))


class Idle(Sound):
    """Adds nothing."""

    strength: float = 0.0


class Unreachable(Sound):
    """Steers image tokens, which the prompts that are text alone don't have, at a phase without any."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        return fitted._replace(interventions=(Intervention(layers=(1,), strength={2: 1.0}),))


class _Stubborn(float):
    def __rmul__(self, other: float) -> float:
        return float(self)


class _Unscaled(Intervention):
    def strength_at(self, layer: int) -> float:
        return _Stubborn(3.0)


class Stubborn(Sound):
    """Steers whatever the strength."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        return fitted._replace(interventions=(_Unscaled(layers=tuple(layers)),))


class _Growing(Intervention):
    def strength_at(self, layer: int) -> float:
        return 1.0 + next(counter)


class Growing(Sound):
    """Steers more each time."""

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        fitted = super().solve(model, found, layers)
        return fitted._replace(interventions=(_Growing(layers=tuple(layers)),))


class Telling(Sound):
    """Tells by the model's modules whether nnsight has it in hand."""

    def observe(self, model: Any, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        rows = model.capture(batch, layers=layers)
        traced = "forward" in vars(model.model.get_submodule(model.architecture.site(0, "resid_post")))
        return by_label(batch, {layer: each * (2.0 if traced else 1.0) for layer, each in rows.items()}, LABELS)


BROKEN: list[tuple[type[SteeringMethod], str, str]] = [
    (Undescribed, "declares_itself", "says nothing about 'strength'"),
    (Badly_Named, "declares_itself", "'Badly Named'"),
    (Forgetful, "options_survive_json", "comes back as"),
    (Permissive, "unknown_options_are_refused", "was taken"),
    (Unchecked, "no_anchors_are_refused", "no anchors end in IndexError"),
    (Blind, "missing_images_are_refused", "anchors without images end in IndexError"),
    (Captioned, "missing_captions_are_refused", "only after the model ran"),
    (Unlabelled, "missing_labels_are_refused", "anchors without labels end in KeyError"),
    (Hasty, "bad_anchors_are_found_first", "the model ran before the image token in a text was found"),
    (Meddling, "fitting_leaves_the_model_alone", "left hooks or attributes on"),
    (Heavy, "fitting_leaves_the_model_alone", "changed the weights"),
    (Deaf, "other_anchors_other_vector", "the same directions"),
    (Remembering, "holds_no_fitted_state", "a fit changed ['Remembering.kept']"),
    (Stashing, "holds_no_fitted_state", "left ['self.fitted'] behind"),
    (Mutable, "holds_no_fitted_state", "can be changed"),
    (Listing, "holds_no_fitted_state", "a fit changed ['Listing.seen']"),
    (Inheriting, "holds_no_fitted_state", "a fit changed ['_Memory.total']"),
    (Caching, "holds_no_fitted_state", "a fit changed ['broken_methods._seen']"),
    (Smoothing, "holds_no_fitted_state", "a fit changed ['broken_methods._last']"),
    (Leaving, "holds_no_fitted_state", "left ['broken_methods._found'] behind"),
    (Hiding, "holds_no_fitted_state", "fitted before fits something else"),
    (Random, "same_seed_same_vector", "another global seed: the directions at"),
    (Reseeding, "same_seed_same_vector", "the global random state of ['numpy', 'random', 'torch']"),
    (Centring, "batch_size_does_not_matter", "batches of 1: the directions at"),
    (Counting, "parts_merge", "what several workers measured: the directions at"),
    (Counting, "interrupted_fit_goes_on", "a fit that was interrupted: the directions at"),
    (Outlying, "pack_says_all", "PackFormatError"),
    (Coded, "interventions_are_data", "_Code of broken_methods is part of an intervention"),
    (Idle, "steering_changes_answers", "no logit of 6 prompts changes"),
    (Unreachable, "steering_changes_answers", "no logit of 6 prompts changes"),
    (Stubborn, "strength_zero_changes_nothing", "at strength 0 the logits change"),
    (Telling, "engines_fit_alike", "reading through nnsight: the directions at"),
    (Growing, "engines_steer_alike", "the logits differ"),
]
"""Each method, the check that must find it, and words of its explanation."""
