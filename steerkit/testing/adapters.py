"""What must hold of every model family, a check each: `check_adapter`, and `adapter_checks` for pytest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from steerkit.engines.capturing import call_target
from steerkit.errors import ContractError, EngineError, OptionError
from steerkit.interventions import Intervention, Site
from steerkit.models import Family, Sample, visual_positions
from steerkit.policy import Check
from steerkit.steering import steer
from steerkit.testing import tiny
from steerkit.testing.adapter_case import SHORT, AdapterCase, Make, assert_near
from steerkit.testing.adapter_prompts import (
    _last_states,
    _processed,
    _settings,
    every_part_of_a_chat_counts,
    image_sizes_keep_the_shapes,
    only_the_image_differs,
    processor_loads,
    several_images_work_or_are_refused,
    user_marker_opens_the_users_turn,
)
from steerkit.testing.contract import ContractCheck, checks_of, run_all
from steerkit.testing.reference_hooks import (
    Place,
    added,
    answer_logits,
    difference,
    hidden_states,
    outputs,
    streams,
    traces_left,
)
from steerkit.testing.samples import picture
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector
from steerkit.vlm import VLM

EQUAL = 1e-5
"""Relative difference that another order of the same float32 sums makes. Measured on the tiny models: below 2e-6."""
PADDED = 1e-4
"""The same for passes with other padding. Measured: below 1e-5; a shifted position makes more than 1e-2."""


def adapter_checks(family: Family, make: Make | None = None, size: tuple[int, int] = (48, 32)) -> list[ContractCheck]:
    """The checks of a family, to be called one by one.

    Args:
        family: The record.
        make: Makes a tiny model of the family and its processor, such as `lambda: tiny.seeded(build)`. Default: the
            tiny models that steerkit has for its model types; the name of a check then ends in the model's.
        size: Width and height of the pictures that are shown to it.

    Returns:
        One check for each demand (and model); nothing runs before the first is called.

    Raises:
        ContractError: It is no Family record.
        OptionError: There is no tiny model for the family, and no function that makes one is given.

    Example:
        >>> @pytest.mark.parametrize("check", adapter_checks(FAMILY, make_tiny_model), ids=str)
        ... def test_contract(check):
        ...     check()
    """
    if not isinstance(family, Family):
        raise ContractError(f"{family!r:.80} is not a Family", expected="a steerkit.models.Family record")
    if make is not None:
        return checks_of(CHECKS, AdapterCase(family, make, size=size))
    families = tiny.families_of(family.types)
    if not families:
        raise OptionError(
            f"there is no tiny model of {', '.join(family.types)}",
            expected=f"`make`, or model types of {', '.join((*tiny.FAMILIES, *tiny.TEXT_FAMILIES))}",
            fix="give a function that makes a small model from a config, and its processor",
        )
    return [check for name in families for check in checks_of(CHECKS, _tiny_case(family, name), f"[{name}]")]


def check_adapter(family: Family, make: Make | None = None) -> list[Check]:
    """Check that a record says what is true of its models.

    Args:
        family: The record.
        make: See `adapter_checks`.

    Returns:
        What came of every check; those that do not apply are skipped, with the reason.

    Raises:
        ContractError: Some fail; the message names each and explains it.
    """
    return run_all(adapter_checks(family, make))


def capture_reads_the_decoder_blocks(case: AdapterCase) -> None:
    """Both engines read what plain hooks on the blocks read, which is what the model calls its hidden states."""
    vlm = case.vlm
    for batch in case.kinds:
        for sample in batch:
            inputs = case.encode(sample)
            vlm.reset()
            layers = [layer for layer in range(case.architecture.layer_count) if case.runs(layer, [sample])]
            blocks: list[Place] = [(layer, "resid_post") for layer in layers]
            plain, returned = outputs(vlm.model, inputs, case.architecture, blocks, output_hidden_states=True)
            told = hidden_states(returned)
            if case.architecture.runs or case.architecture.state != "plain":
                told = None  # of every run, and of every stream
            # the last one is told behind the final norm; nothing is told by models without hidden states of their own
            for place, own in zip(blocks[:-1], told[1:-1] if told is not None else (), strict=False):
                assert_near(plain[place], own, f"block {place[0]} and the model's own", EQUAL)
            for engine in ("hooks", "nnsight"):
                captured = vlm.capture([sample], engine=engine, layers=layers)
                for layer, row in captured.items():
                    expected = plain[layer, "resid_post"][:, -1]
                    assert_near(row, expected, f"block {layer} through {engine} and plain hooks", EQUAL)


def image_tokens_hold_the_image(case: AdapterCase) -> None:
    """Image tokens are as many as the model has features for, and where another image changes what the model reads."""
    case.needs_images()
    found = case.architecture
    for size in (case.size, (case.size[0] * 2, case.size[1])):
        one, other = (case.encode(Sample(SHORT, (picture(seed, *size),))) for seed in (4, 5))
        first, second = (_read(case, inputs) for inputs in (one, other))
        if first.shape != second.shape:
            raise ContractError("another image of the same size gives another number of image tokens")
        if found.encoder_decoder or found.marks == "none":  # the image has no position
            if torch.allclose(case.answer(one), case.answer(other), atol=1e-3):
                raise ContractError("another image changes nothing")
            continue
        marked, ids = visual_positions(one, found, len(first))[0], one["input_ids"][0]
        if not marked.any():
            raise ContractError(f"no token of {ids.tolist()} is an image token")
        changed = (first - second).abs().amax(dim=-1) > 0
        if stray := (changed & ~marked).nonzero().flatten().tolist():
            raise ContractError(f"the image enters at positions {stray}, which hold no image token")
        if found.marks != "ids":
            continue
        for token in ids[marked].unique():
            if not changed[ids == token].any():
                raise ContractError(f"no image enters at the tokens {int(token)}, which are called image tokens")
        expected = _processed(case, size)
        if expected is not None and int(marked.sum()) != expected:
            raise ContractError(f"{int(marked.sum())} image tokens, and the processor makes {expected} of that image")
    if found.marks == "ids" and case.image_places(case.encode(Sample(SHORT))["input_ids"]).any():
        raise ContractError("a prompt without an image holds image tokens")


def batch_answers_as_its_prompts_alone(case: AdapterCase) -> None:
    """Prompts of different lengths in one batch have the hidden states that each has alone."""
    if case.architecture.alone:
        raise SkipTest("prompts of different lengths share no batch")
    for batch in case.kinds:
        together = _last_states(case, batch)
        for index, sample in enumerate(batch):
            assert_near(
                together[index], _last_states(case, [sample])[0], f"prompt {index} in a batch and alone", PADDED
            )


def calls_are_independent(case: AdapterCase) -> None:
    """A prompt is answered in the same way whatever the model was asked before."""
    orders = (case.kinds, case.kinds[::-1]) if len(case.kinds) > 1 else (case.kinds, case.kinds * 2)
    answered: list[list[list[Tensor]]] = []
    for order in orders:
        vlm = case.fresh()
        answered.append([answer_logits(vlm, batch) for batch in order])
    for first, second in zip(answered[0], answered[1][::-1], strict=False):
        if not (gap := difference(first, second)) < PADDED:
            raise ContractError(
                f"after another prompt, the logits of an answer differ by {gap:.3g}",
                fix="name what the model caches between calls in `transient`",
            )


def steering_is_that_of_plain_hooks(case: AdapterCase) -> None:
    """Adding a direction at any site by `steer` gives the logits that plain hooks give."""
    vlm = case.vlm
    generator = torch.Generator().manual_seed(0)
    sites: tuple[Site, ...] = ("resid_post", "mlp_out", "attn_out")
    site_of: dict[Site, list[Place]] = {site: [place for place in case.places if place[1] == site] for site in sites}
    for site, places in site_of.items():
        if not places:
            continue
        tensors = {
            place: torch.randn(case.architecture.hidden_size, generator=generator, device="cpu") for place in places
        }
        vector = _vector(case, {Key(*place): tensor for place, tensor in tensors.items()}, site)
        for batch in case.kinds:
            if not _steerable(case, site, places, batch[0]):
                continue
            before = _logits(case, batch[0])
            with steer(vlm, vector, policy="off"):  # the dose may be any
                steered = _logits(case, batch[0])
            with added(vlm.model, case.architecture, tensors):
                plain = _logits(case, batch[0])
            assert_near(steered, plain, f"steering at {site} and plain hooks", EQUAL)
            if torch.allclose(steered, before, atol=1e-3):
                raise ContractError(f"steering at {site} changes no logit")


def model_is_restored(case: AdapterCase) -> None:
    """After a steered block that ends in an error, anywhere, model and processor are what they were before."""
    model, processor = case.make()
    sample = case.kinds[0][0]
    case.used_once(model, sample)
    left, settings = traces_left(model), _settings(processor)
    vlm = VLM(model, processor, case.family)
    inputs = vlm.inputs([sample])
    hidden = case.architecture.hidden_size
    vector = _vector(
        case, {Key(layer): torch.ones(hidden, device="cpu") for layer in range(case.architecture.layer_count)}
    )
    before = _logits(case, sample, vlm)
    last = model.get_submodule(case.architecture.site(case.architecture.layer_count - 1, "resid_post"))
    for where in ("the block", "the model"):
        failing = last.register_forward_hook(_fail) if where == "the model" else nullcontext()
        with suppress(_Expected), failing, steer(vlm, vector, policy="off"):  # the dose may be any
            vlm.reset()
            with torch.no_grad():
                call_target(model, inputs, case.architecture).generate(**inputs, max_new_tokens=2)  # type: ignore[operator]
            raise _Expected
        if not torch.equal(_logits(case, sample, vlm), before):
            raise ContractError(f"after an error in {where} the model answers differently")
    vlm.reset()
    if changed := [one[0] for one, other in zip(left, traces_left(model), strict=True) if one != other]:
        raise ContractError(
            f"hooks or attributes are left on {changed[:3]}", fix="transient is for caches that are None"
        )
    if _settings(processor) != settings:
        raise ContractError("the processor's settings are changed", fix="pass options with each call instead")


def answers_are_generated(case: AdapterCase) -> None:
    """`generate` takes what `encode` makes, with images and without."""
    for batch in case.batches:
        inputs = case.encode(*batch)
        case.vlm.reset()
        target: Any = call_target(case.vlm.model, inputs, case.architecture)
        rows = target.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
        if len(rows) != len(batch):
            raise ContractError(f"{len(rows)} answers to {len(batch)} prompts")


CHECKS: tuple[Callable[[AdapterCase], None], ...] = (
    capture_reads_the_decoder_blocks,
    user_marker_opens_the_users_turn,
    every_part_of_a_chat_counts,
    only_the_image_differs,
    image_tokens_hold_the_image,
    image_sizes_keep_the_shapes,
    several_images_work_or_are_refused,
    batch_answers_as_its_prompts_alone,
    calls_are_independent,
    processor_loads,
    answers_are_generated,
    steering_is_that_of_plain_hooks,
    model_is_restored,
)
"""Every demand on a family, the cheap ones first."""


class _Expected(Exception):
    """Raised by a check, and expected by it."""


def _fail(module: Any, args: Any, output: Any) -> None:
    raise _Expected


def _tiny_case(family: Family, name: str) -> AdapterCase:
    return AdapterCase(family, lambda: tiny.build(name), lambda folder: tiny.save(name, folder))


def _steerable(case: AdapterCase, site: Site, places: list[Place], sample: Sample) -> bool:
    """Whether all places of a site have one state for each position of a prompt; else they are refused.

    Raises:
        ContractError: They are not.
    """
    inputs = case.encode(sample)
    case.vlm.reset()
    found, returned = outputs(case.vlm.model, inputs, case.architecture, places)
    wanted = (1, returned.logits.shape[1], case.architecture.hidden_size)
    strange = [place[0] for place in places if place in found and tuple(found[place].shape) != wanted]
    if strange:
        try:
            case.vlm.capture([sample], site=site, layers=strange[:1])
        except EngineError:
            return False
        raise ContractError(
            f"{case.architecture.site(strange[0], site)!r} gives another shape than {wanted}, and is read"
        )
    return True


def _logits(case: AdapterCase, sample: Sample, vlm: Any = None) -> Tensor:
    """`[1, vocabulary]` after the prompt."""
    vlm = vlm if vlm is not None else case.vlm
    vlm.reset()
    _, returned = outputs(vlm.model, vlm.inputs([sample]), case.architecture, [])
    return returned.logits[:, -1]


def _read(case: AdapterCase, inputs: dict[str, Tensor]) -> Tensor:
    """`[tokens, hidden]`: what the first block reads, embeddings of tokens and features of images."""
    read: list[Tensor] = []

    def keep(module: Any, args: Any, options: Any) -> None:
        given = args[0] if args else options["hidden_states"]
        read.append(torch.cat([stream[0] for stream in streams(given.detach(), case.architecture)], dim=-1))

    block = case.vlm.model.get_submodule(case.architecture.site(0, "resid_post"))
    with block.register_forward_pre_hook(keep, with_kwargs=True):
        case.answer(inputs)
    return read[0]


def _vector(case: AdapterCase, tensors: dict[Key, Tensor], site: Any = "resid_post") -> SteeringVector:
    intervention = Intervention(site=site, phase="prompt")
    metadata = PackMetadata(method=MethodRecord(name="check"), interventions=(intervention,), model=case.vlm.record)
    return SteeringVector(tensors, metadata)
