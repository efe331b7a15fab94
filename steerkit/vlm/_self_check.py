"""What is tried of a model that is not as the tested ones: in a pass, and in the first blocks of two others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from steerkit.engines import capturing, hooks
from steerkit.engines.application import Application
from steerkit.engines.blocks import Block
from steerkit.engines.calls import CallTracker
from steerkit.engines.receipt import Receipt
from steerkit.errors import EngineError, SteerKitError, UnsupportedModelError
from steerkit.interventions import Intervention
from steerkit.models import Inputs, Sample, meaningless_image, merged, tokenizer_of, visual_positions
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector
from steerkit.vlm._shortened import Tower

if TYPE_CHECKING:
    from steerkit.vlm._prompted import PromptedModel

_SHORT, _LONG = "What is this?", "What is this, and what is it for? Answer in one word."
_SIDE = 224
_NEAR = 2e-2
"""Relative difference of a prompt padded and alone; float16 makes less, bfloat16 3e-2, a shifted position more."""

_SEAM = 4
"""Tokens that may be others where the image was: texts that now meet are tokenised together."""


class _Seen(NamedTuple):
    """What the blocks of one pass did: the order in which they ran, what each was given and what it returned.

    Of a block that runs more than once it is what it was given first, and returned last, where it is steered. What a
    block returned may be passed on to what stands between the blocks, such as cross-attention.
    """

    order: list[int]
    given: dict[int, Tensor]
    states: dict[int, Tensor]
    passed_on: set[int]


def check_itself(vlm: PromptedModel) -> None:
    """Hold what was asked of an untested model against what it does with two blank images, or with texts alone.

    Raises:
        UnsupportedModelError: It does something else; the message names the field to declare.
    """
    training = [module for module in vlm.model.modules() if module.training]
    try:
        for module in training:  # dropout would make each pass another one
            module.training = False
        _check(vlm)
    finally:
        for module in training:
            module.training = True


def _check(vlm: PromptedModel) -> None:
    shown = [(meaningless_image((_SIDE, _SIDE), seed),) if vlm.architecture.takes_images else () for seed in (None, 0)]
    count, layers = _kinds_end(vlm), vlm.architecture.layer_count
    batch = [Sample(_SHORT, shown[0]), Sample(_SHORT, shown[1])]
    batch += [] if vlm.architecture.alone else [Sample(_LONG, shown[0])]
    # steered behind what is compared unsteered, so in a row of its own where nothing is
    layer, row = (count - 1, 0) if count < layers else (max(0, layers - 2), len(batch))
    batch += batch[:1] if row else []
    rows = tuple(float(index == row) for index in range(len(batch))) if row else None
    tower = Tower(vlm.model, vlm.architecture)
    with _running(vlm), tower.noted():
        first = vlm.inputs(batch[:1])
        alone = _pass(vlm, first, layers)
    _check_blocks(vlm, alone)
    _check_width(vlm, alone, first)
    with _running(vlm), tower.shortened():
        if tower.shortens:  # many images through the whole tower would cost more than the decoder
            alone = _pass(vlm, first, count)
        own = alone.states[layer][0, -1]
        added = own.roll(1)
        with _steered(vlm, added, layer, rows):
            inputs = vlm.inputs(batch)
            together = _pass(vlm, inputs, count)
    _check_positions(vlm, together, inputs)
    _check_text(vlm, inputs)
    for each, state in together.states.items():
        if (each, row) != (layer, 0) and not _near(state[0, -1], alone.states[each][0, -1]):
            raise _padding_counts(vlm, each)
    reached = _next_given(vlm, together, layer)
    reached = (together.states[layer] if reached is None else reached)[row, -1]
    if not _near(reached, own + added):
        if row == 0 and not _near(reached, own):
            raise _padding_counts(vlm, layer)
        what = f"what is added behind block {layer} is not what the next block is given"
        raise _failed(vlm, what, "layers or state")
    _check_padding(vlm, alone.given[0].shape[1])


@contextmanager
def _running(vlm: PromptedModel) -> Iterator[None]:
    try:
        yield
    except EngineError as error:  # of what blocks return: no field says another thing of it
        raise UnsupportedModelError(
            f"the check at loading fails for this {type(vlm.model).__name__}: {error.problem}",
            expected=error.expected,
            fix=error.fix,
        ) from error
    except torch.OutOfMemoryError:
        raise  # says nothing about the model
    except (SteerKitError, RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        shown = " with a blank image" if vlm.architecture.takes_images else ""
        raise _failed(vlm, f"a prompt{shown} does not run ({error})", "prompt, marks or text_module") from error


def _near(one: Tensor, other: Tensor) -> bool:
    near = max(_NEAR, 8 * torch.finfo(one.dtype).eps)
    one, other = one.float(), other.float()
    return float((one - other).abs().max()) <= near * float(other.abs().max())


def _next_given(vlm: PromptedModel, seen: _Seen, layer: int) -> Tensor | None:
    """What the block behind another was given, where it is that which the other returned."""
    return None if vlm.architecture.runs or layer in seen.passed_on else seen.given.get(layer + 1)


@contextmanager
def _steered(vlm: PromptedModel, added: Tensor, layer: int, rows: tuple[float, ...] | None) -> Iterator[None]:
    """Add something behind a block, at the last token of prompts, with what `steerkit.steer` steers with."""
    change = Intervention(layers=(layer,), phase="prompt", rows=rows)
    metadata = PackMetadata(method=MethodRecord(name="check"), interventions=(change,), model=vlm._recorded)
    vector = SteeringVector({Key(layer): added.float().cpu()}, metadata)
    application = Application([vector], [1.0], vlm.architecture, Receipt(), cast("Any", None), vlm.dtype)
    with ExitStack() as stack:
        tracker = stack.enter_context(CallTracker.of(vlm.model, vlm.architecture))
        block = Block(application.begin)
        stack.enter_context(hooks.applied(vlm.model, tracker, application, block))
        stack.enter_context(tracker.follow(block))
        stack.callback(block.end)
        block.enter()
        yield


def _check_blocks(vlm: PromptedModel, seen: _Seen) -> None:
    found = vlm.architecture
    runs = found.runs or (1,) * found.layer_count
    if Counter(seen.order) != dict(enumerate(runs)) or (not found.runs and seen.order != sorted(seen.order)):
        raise _failed(vlm, f"the blocks run in the order {seen.order}", "layers, loop or only_with_image")
    for layer, state in seen.states.items():
        if state.dim() != 3 or state.shape[-1] != found.hidden_size:
            raise _failed(vlm, f"block {layer} returns a state of shape {tuple(state.shape)}", "state")
        follows = _next_given(vlm, seen, layer)
        if follows is not None and not torch.equal(follows[:, -1], state[:, -1]):
            raise _failed(vlm, f"block {layer + 1} is given something else than block {layer} returns", "layers")


def _check_width(vlm: PromptedModel, seen: _Seen, inputs: Any) -> None:
    """A state has as many positions as the prompt has ids: a model that makes several of one moves all behind it."""
    found = vlm.architecture
    if found.encoder_decoder or found.marks == "prefix":
        return
    width, given = seen.states[0].shape[1], inputs["input_ids"].shape[1]
    if width != given:
        what = f"the blocks read {width} positions for {given} ids, and each feature of an image must be one of them"
        raise _failed(vlm, what, "marks")


def _check_positions(vlm: PromptedModel, seen: _Seen, inputs: Any) -> None:
    found, given = vlm.architecture, seen.given[0]
    if found.encoder_decoder or found.marks in ("none", ""):
        return
    changed = (given[0] != given[1]).any(-1)
    marked = visual_positions(inputs, found, given.shape[1])[0].to(changed.device)
    if not bool(changed.any()) or bool((changed & ~marked).any()):
        where = (changed & ~marked).nonzero().flatten().tolist()[:5]
        raise _failed(
            vlm,
            f"another image changes positions {where}, where no image is" if where else "another image changes nothing",
            "marks, or config.image_token_id",
        )


def _check_text(vlm: PromptedModel, inputs: Any) -> None:
    """The prompt without its image is the one with it, less what stands for the image."""
    if not vlm.architecture.takes_images or vlm.family.prompt == "decoder":
        return
    try:
        bare = vlm.inputs([Sample(_SHORT)], images=False)["input_ids"][0].tolist()
    except SteerKitError:
        return  # whoever asks for such a prompt is told
    shown = inputs["input_ids"][0][inputs["attention_mask"][0] != 0].tolist()
    front = _common(shown, bare)
    behind = _common(shown[::-1], bare[: front - 1 : -1] if front else bare[::-1])
    asked, text = ("".join(each.casefold().split()) for each in (_SHORT, tokenizer_of(vlm.processor).decode(bare)))
    if vlm.architecture.image_token_ids & {*bare} or len(bare) - front - behind > _SEAM or asked not in text:
        raise _failed(vlm, "without its image a prompt differs in more than the image", "image, frame or template")


def _check_padding(vlm: PromptedModel, width: int) -> None:
    """What is written where a prompt is padded makes no difference behind any block.

    All blocks can be asked where two prompts without an image are half as long as the one with it, of `width`
    positions; else that would be a whole pass more.
    """
    found = vlm.architecture
    if not found.takes_images or found.alone or found.only_images:
        return
    try:
        given = vlm.inputs([Sample(_SHORT), Sample(_SHORT), Sample(f"{_SHORT} Why?")], images=False)
    except SteerKitError:
        return  # whoever asks for such prompts is told
    if 4 * given["input_ids"].shape[1] > width:
        return
    inputs = {key: value[:2] for key, value in given.items()}
    ids, real = inputs["input_ids"].clone(), inputs["attention_mask"] != 0
    ids[1][~real[1]] = ids[1][real[1]][-1]
    with _running(vlm):
        seen = _pass(vlm, {**inputs, "input_ids": ids}, found.layer_count)
    at = int(capturing.last_index(inputs, found)[0])
    for layer, state in seen.states.items():
        if not _near(state[1, at], state[0, at]):
            raise _padding_counts(vlm, layer)


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _failed(vlm: PromptedModel, what: str, fields: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the check at loading fails for this {type(vlm.model).__name__}: {what}",
        expected="what transformers declares of the model, or its record does",
        fix=f"declare {fields} in a Family record: sk.wrap(model, processor, family=FAMILY); or, if you know that "
        "it is steered right, check=False",
    )


def _padding_counts(vlm: PromptedModel, layer: int) -> UnsupportedModelError:
    what = f"padding changes the state behind block {layer} of {vlm.architecture.layer_count - 1}"
    return _failed(vlm, what, "positions, padding or batch")


class _Enough(Exception):
    """The blocks that are wanted have run."""


def _kinds_end(vlm: PromptedModel) -> int:
    """How many blocks run until each kind has: of a kind, one counts padding as the others do."""
    found = vlm.architecture
    if found.runs or found.only_with_image or capturing.moves_weights(vlm.model):
        return found.layer_count
    blocks = cast("Any", vlm.model.get_submodule(found.layers))
    kinds = [frozenset(map(_kind, block.modules())) for block in blocks]
    return max(map(kinds.index, kinds)) + 1


def _kind(module: torch.nn.Module) -> tuple[Any, ...]:
    """Its class, and what it was told: whether it slides, say, or rotates; numbers are sizes, or its own."""
    told = ((name, value) for name, value in vars(module).items() if value is None or isinstance(value, (bool, str)))
    return type(module), *sorted(told, key=str)


def _pass(vlm: PromptedModel, inputs: Inputs, count: int) -> _Seen:
    """A pass of some prompts through the model, or through its first blocks."""
    found, seen = vlm.architecture, _Seen([], {}, {}, set())
    vlm.reset()
    with torch.no_grad(), suppress(_Enough), _watched(vlm, seen, count):
        capturing.call_target(vlm.model, inputs, found)(**capturing.forward_inputs(vlm.model, inputs, found))
    vlm.reset()
    return seen


@contextmanager
def _watched(vlm: PromptedModel, seen: _Seen, count: int) -> Iterator[None]:
    found = vlm.architecture
    decoder, blocks = (vlm.model.get_submodule(path) for path in (found.decoder, found.layers))
    last: list[Any] = [None]
    owner = threading.get_ident()

    def before(layer: int | None, args: Any, options: Any) -> None:
        if threading.get_ident() != owner:
            return
        given = args[0] if args else options.get("hidden_states")
        if layer is None:
            if given is not None and given is last[0]:
                seen.passed_on.add(seen.order[-1])
        elif isinstance(given, Tensor):
            seen.given.setdefault(layer, merged(given, found))
            if layer == count:
                raise _Enough

    def after(layer: int, output: Any) -> None:
        if threading.get_ident() != owner:
            return
        last[0] = capturing.hidden(output)
        seen.order.append(layer)
        seen.states[layer] = merged(last[0], found)

    def watch(module: torch.nn.Module, layer: int | None) -> Any:
        return module.register_forward_pre_hook(lambda _, args, options: before(layer, args, options), with_kwargs=True)

    inside = {*blocks.modules(), decoder}
    handles = [watch(module, None) for module in decoder.modules() if module not in inside]
    for layer, block in enumerate(cast("Any", blocks)):
        handles.append(watch(block, layer))
        handles.append(block.register_forward_hook(lambda _, args, output, layer=layer: after(layer, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
