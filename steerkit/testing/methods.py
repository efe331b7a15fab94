"""What every method must do, a check each: `check_method`, and `method_checks` for pytest."""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from pydantic import BaseModel

from steerkit.errors import ContractError, EngineError, NothingSteeredError, OptionError
from steerkit.interventions import Intervention
from steerkit.methods import SteeringMethod
from steerkit.models import Sample
from steerkit.policy import Check
from steerkit.steering import steer
from steerkit.testing.contract import ContractCheck, checks_of, run_all
from steerkit.testing.method_case import TOLERANCE, MethodCase, assert_same
from steerkit.testing.method_refusals import (
    _needs_anchors,
    bad_anchors_are_found_first,
    missing_captions_are_refused,
    missing_images_are_refused,
    missing_labels_are_refused,
    no_anchors_are_refused,
)
from steerkit.testing.reference_hooks import answer_logits, difference, traces_left
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

NO_CHANGE = 1e-4
"""Logits that differ by less are the same: rounding. Those of the tiny models lie between -10 and 10."""

_INTERNAL = re.compile(r"__.*__|_abc_.*")
"""Names of what Python and pydantic keep on classes and modules."""

_PURE = "let observe and solve be functions of what they are given"


def method_checks(
    method: type[SteeringMethod],
    *,
    options: Mapping[str, Any] | None = None,
    anchors: Sequence[Sample] | None = None,
    model: VLM | None = None,
) -> list[ContractCheck]:
    """The checks of a method, to be called one by one.

    Args:
        method: The class.
        options: How it is configured; default: as it is without options.
        anchors: What it is fitted on; default: eight with images, captions and the labels that its `plan` requires.
        model: What it is fitted on; default: the tiny LLaVA.

    Returns:
        A check for each demand; nothing runs before it is called.

    Raises:
        ContractError: The method is not a subclass of SteeringMethod.

    Example:
        >>> @pytest.mark.parametrize("check", method_checks(MyMethod), ids=str)
        ... def test_contract(check):
        ...     check()
    """
    if not isinstance(method, type) or not issubclass(method, SteeringMethod):
        raise ContractError(f"{method!r:.80} is not a subclass of SteeringMethod", expected="a class derived from it")
    return checks_of(CHECKS, MethodCase(method, options or {}, anchors, model))


def check_method(
    method: type[SteeringMethod],
    *,
    options: Mapping[str, Any] | None = None,
    anchors: Sequence[Sample] | None = None,
    model: VLM | None = None,
) -> list[Check]:
    """Check that a method does what every method must.

    Args:
        method: The class.
        options: See `method_checks`, as for the rest.
        anchors: What it is fitted on.
        model: What it is fitted on.

    Returns:
        What came of every check; those that do not apply are skipped, with the reason.

    Raises:
        ContractError: Some fail; the message names each and explains it.
    """
    return run_all(method_checks(method, options=options, anchors=anchors, model=model))


def declares_itself(case: MethodCase) -> None:
    """A method is a subclass of SteeringMethod with a name, a paper, and a docstring that describes its options."""
    if missing := sorted(getattr(case.kind, "__abstractmethods__", ())):
        raise ContractError(f"{case.kind.__name__} does not implement {missing}")
    for attribute in ("name", "paper"):
        if not isinstance(getattr(case.kind, attribute, None), str) or not getattr(case.kind, attribute):
            raise ContractError(
                f"{case.kind.__name__}.{attribute} is not a string", fix=f"{attribute}: ClassVar[str] = ..."
            )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", case.kind.name):
        raise ContractError(f"the name is {case.kind.name!r}", fix="lower-case letters, digits and underscores")
    lines = (case.kind.__doc__ or "").splitlines()
    for option in case.kind.model_fields:
        if not any(line.strip().startswith(f"{option}:") for line in lines):
            raise ContractError(
                f"the docstring says nothing about {option!r}", fix=f"'Attributes:' with '{option}: ...'"
            )


def options_survive_json(case: MethodCase) -> None:
    """A method that is made again from its options as JSON, as they stand in a pack, equals the first."""
    method = case.method()
    again = case.kind(**json.loads(json.dumps(method.model_dump(mode="json"), allow_nan=False)))
    if again != method:
        raise ContractError(f"{method!r} comes back as {again!r}", fix="options that JSON can hold")


def unknown_options_are_refused(case: MethodCase) -> None:
    """An option that a method does not have is an OptionError, not a silence."""
    try:
        case.kind(**case.options, no_such_option=1)
    except OptionError:
        return
    raise ContractError("the option 'no_such_option' was taken", fix="leave model_config as SteeringMethod has it")


def holds_no_fitted_state(case: MethodCase) -> None:
    """A method is frozen and remembers nothing of a fit: not on itself, nor on its classes, nor in their modules."""
    if not case.kind.model_config.get("frozen"):
        raise ContractError("its options can be changed", fix="leave model_config as SteeringMethod has it")
    method = case.method()
    before = _held(method)
    method.fit(case.vlm, _others(case), engine="hooks")
    if changed := sorted(name for name, value in _held(method).items() if before.get(name, value) != value):
        raise ContractError(f"a fit changed {changed}", fix=_PURE)
    if added := sorted(_held(method).keys() - before.keys()):
        raise ContractError(f"a fit left {added} behind", fix=_PURE)
    again = method.fit(case.vlm, case.anchors, engine="hooks")
    assert_same(again, case.fit(), "a method that was fitted before fits something else")


def fitting_leaves_the_model_alone(case: MethodCase) -> None:
    """After a fit the model has the weights, attributes and hooks that it had before."""
    model = case.vlm.model
    _unsteered(case)  # what transformers itself leaves on a model at its first call
    case.vlm.reset()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    left = traces_left(model)
    case.fit()
    case.vlm.reset()
    after = model.state_dict()
    if changed := [name for name, tensor in before.items() if not torch.equal(after[name], tensor)]:
        raise ContractError(f"a fit changed the weights {changed[:3]}")
    if changed := [one[0] for one, other in zip(left, traces_left(model), strict=True) if one != other]:
        raise ContractError(f"a fit left hooks or attributes on {changed[:3]}", fix="measure with model.capture")


def other_anchors_other_vector(case: MethodCase) -> None:
    """What a method measures on its anchors is in its vector: other anchors give other directions."""
    _needs_anchors(case)
    one, other = (case.fit(anchors) for anchors in (case.anchors, _others(case)))
    if one.tensors and one.tensors.keys() == other.tensors.keys():
        if all(torch.equal(each, other.tensors[key]) for key, each in one.tensors.items()):
            raise ContractError("other anchors give the same directions", fix="let solve use what observe has found")


def same_seed_same_vector(case: MethodCase) -> None:
    """Two fits alike give the same vector whatever the global random state is, and leave that state as it was."""
    found: list[SteeringVector] = []
    changed: set[str] = set()
    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        for seed in (1, 2):  # two, because a fit that seeds with the one leaves the state of it as it was
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            before = _random_states()
            found.append(case.fit())
            changed |= {name for name, value in _random_states().items() if value != before[name]}
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.random.set_rng_state(state[2])
    assert_same(found[1], found[0], "another global seed")
    if changed:
        raise ContractError(
            f"a fit changes the global random state of {sorted(changed)}", fix="draw from a generator of your own"
        )


def batch_size_does_not_matter(case: MethodCase) -> None:
    """The anchors may come in batches of any size: `observe` returns a row for each sample, whatever came with it."""
    _needs_anchors(case)
    whole = case.fit(batch_size=len(case.anchors))
    for size in (1, 3):
        assert_same(case.fit(batch_size=size), whole, f"batches of {size}", TOLERANCE)


def parts_merge(case: MethodCase) -> None:
    """Workers that measure some blocks each make the vector of one worker, bit for bit, in whatever order they end."""
    _needs_anchors(case)
    method = case.method()
    size = max(len(case.anchors) // (3 * case.together), 1) * case.together
    states = [
        method.measure(case.vlm, case.anchors, block, engine="hooks", batch_size=size)
        for block in method.blocks(case.vlm, case.anchors, batch_size=size)
    ]
    whole = case.fit(batch_size=size)
    for order in (states, states[::-1]):
        assert_same(method.finish(case.vlm, order), whole, "what several workers measured")


def interrupted_fit_goes_on(case: MethodCase) -> None:
    """A fit that is interrupted goes on from its checkpoint, and ends as if it had not been."""
    _needs_anchors(case)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    half = len(case.anchors) // 2  # at least two batches, or there is nothing to go on with
    batch = case.together * max(min(2, half) // case.together, 1)
    whole = case.fit(batch_size=batch)
    told: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.checkpoint"
        with suppress(KeyboardInterrupt):
            case.fit(batch_size=batch, checkpoint=path, progress=interrupt)
        resumed = case.fit(batch_size=batch, checkpoint=path, progress=lambda done, total: told.append(done))
    if told[:1] != [min(2 * batch, len(case.anchors))]:
        raise ContractError(f"it went on at sample {told[0] if told else 'none'} instead of behind the first batch")
    assert_same(resumed, whole, "a fit that was interrupted")


def pack_says_all(case: MethodCase) -> None:
    """A pack that is saved and loaded is the same vector bit for bit, names its method, and steers the same."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = SteeringVector.load(case.vector.save(Path(folder) / "vector.safetensors"))
    assert_same(loaded, case.vector, "a pack")
    record = loaded.metadata.method
    if (record.name, record.paper) != (case.kind.name, case.kind.paper):
        raise ContractError(f"the pack names {record.name!r}, {record.paper!r}")
    if case.kind(**record.config) != case.method():
        raise ContractError(f"the options in the pack, {record.config}, make another method")
    if difference(_steered(case, loaded), _steered(case, case.vector)):
        raise ContractError("the loaded vector steers differently")


def interventions_are_data(case: MethodCase) -> None:
    """Interventions are those of steerkit, hold no code, and come back from JSON as they were."""
    for intervention in case.vector.interventions:
        for part in _parts(intervention):
            if not type(part).__module__.startswith("steerkit.interventions."):
                raise ContractError(
                    f"{type(part).__name__} of {type(part).__module__} is part of an intervention",
                    fix="a pack holds no code: express the method by the operations of steerkit.interventions",
                )
        again = Intervention.model_validate_json(intervention.model_dump_json())
        if again != intervention:
            raise ContractError(f"{intervention!r} comes back as {again!r}")


def engines_fit_alike(case: MethodCase) -> None:
    """A fit that reads through nnsight gives what one that reads through hooks gives."""
    expected = case.vector  # before nnsight has had the model in hand
    assert_same(case.fit(engine="nnsight"), expected, "reading through nnsight", TOLERANCE)


def engines_steer_alike(case: MethodCase) -> None:
    """The vector steers by nnsight as it does by hooks."""
    try:
        traced = _steered(case, case.vector, engine="nnsight")
    except EngineError as error:
        raise SkipTest(f"the nnsight engine refuses it: {error.problem}") from error
    gap = difference(_steered(case, case.vector), traced)
    if not gap < NO_CHANGE:
        raise ContractError(f"the logits differ by {gap:.3g}", fix="interventions must be data; see that check")


def strength_zero_changes_nothing(case: MethodCase) -> None:
    """At strength 0 the model answers as it does unsteered."""
    gap = difference(_steered(case, case.vector, strength=0.0), _unsteered(case))
    if not gap < NO_CHANGE:
        raise ContractError(f"at strength 0 the logits change by {gap:.3g}")


def steering_changes_answers(case: MethodCase) -> None:
    """At strength 1 the logits of some prompt change by more than rounding, and afterwards they are what they were."""
    before = _unsteered(case)
    gap = difference(_steered(case, case.vector), before)
    if not gap > NO_CHANGE:
        raise ContractError(
            f"no logit of {len(case.prompts)} prompts changes by more than {gap:.3g}",
            fix="check strength, gate and tokens of the interventions; for a method that is gated, give method_checks "
            "options or anchors under which it steers",
        )
    if difference(_unsteered(case), before):
        raise ContractError("after the block the model answers differently than before it")


CHECKS: tuple[Callable[[MethodCase], None], ...] = (
    declares_itself,
    options_survive_json,
    unknown_options_are_refused,
    no_anchors_are_refused,
    missing_images_are_refused,
    missing_captions_are_refused,
    missing_labels_are_refused,
    bad_anchors_are_found_first,
    fitting_leaves_the_model_alone,
    holds_no_fitted_state,
    other_anchors_other_vector,
    same_seed_same_vector,
    batch_size_does_not_matter,
    parts_merge,
    interrupted_fit_goes_on,
    interventions_are_data,
    pack_says_all,
    steering_changes_answers,
    strength_zero_changes_nothing,
    engines_fit_alike,
    engines_steer_alike,
)
"""Every demand on a method, the cheap ones first."""


def _others(case: MethodCase) -> list[Sample]:
    """The anchors with other texts."""
    return [replace(sample, text=f"{sample.text} Quickly!") for sample in case.anchors]


def _unsteered(case: MethodCase) -> list[torch.Tensor]:
    return answer_logits(case.vlm, case.prompts)


def _steered(case: MethodCase, vector: SteeringVector, **options: Any) -> list[torch.Tensor]:
    try:
        # a dose that is right for a trained model may be large for a random one: its size is not judged here
        with steer(case.vlm, vector, policy="off", **options):
            return answer_logits(case.vlm, case.prompts)
    except NothingSteeredError as error:
        raise ContractError("it steers nothing: no token of a prompt or of an answer is selected") from error


def _random_states() -> dict[str, object]:
    """The global random state of each library, by its name."""
    states = {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.random.get_rng_state()}
    return {name: _content(state) for name, state in states.items()}


def _held(method: SteeringMethod) -> dict[str, object]:
    """What an object, its classes and their modules hold, by name, so that a changed value is seen."""
    held = {f"self.{name}": value for name, value in (vars(method) | (method.__pydantic_private__ or {})).items()}
    for kind in type(method).__mro__:
        if kind in SteeringMethod.__mro__:
            continue
        module = sys.modules.get(kind.__module__)  # None of one that was run and not imported
        for place, names in ((kind.__name__, vars(kind)), (kind.__module__, vars(module) if module else {})):
            held |= {f"{place}.{name}": value for name, value in names.items() if not _INTERNAL.fullmatch(name)}
    # a module that is imported when it is first needed is no state
    return {name: _content(value) for name, value in held.items() if not isinstance(value, ModuleType)}


def _content(value: Any, within: frozenset[int] = frozenset()) -> object:
    """What a value holds, numbers included, in a form that does not change with it."""
    if id(value) in within:
        return "itself"
    within |= {id(value)}
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return value.dtype, _content(value.detach().cpu().reshape(-1).view(torch.uint8).numpy()), value.shape
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _content(each, within) for key, each in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_content(each, within) for each in value]
    return repr(value)


def _parts(model: BaseModel) -> list[BaseModel]:
    """A pydantic model and all that it is made of."""
    found = [model]
    for value in vars(model).values():
        found += _parts(value) if isinstance(value, BaseModel) else []
    return found
