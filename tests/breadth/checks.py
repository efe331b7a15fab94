"""What is checked of a type, through the public face of steerkit, against the reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import steerkit as sk
from breadth.cases import EQUAL, LONG, MOVED, PADDED, SHORT, Case, CheckError, require, same_state
from breadth.reference import apart
from steerkit.errors import EngineError, SteerKitError
from steerkit.models import Sample
from steerkit.vlm._self_check import check_itself


def same_blocks(case: Case) -> None:
    """The blocks are those that are written down."""
    if case.vlm.architecture.layers != case.plain.path:
        raise CheckError(f"blocks at {case.vlm.architecture.layers}, not {case.plain.path}")


def same_inputs(case: Case) -> None:
    """A prompt with an image is what transformers' own processor makes."""
    found, expected = case.vlm.inputs([case.sample(SHORT, 0)]), case.shown(SHORT, 0)
    for key in sorted(expected.keys() & found.keys()):
        require(apart(found[key], expected[key]), EQUAL, f"{key} and the processor's")
    if missing := {"input_ids", "flattened_patches"} & expected.keys() - found.keys():
        raise CheckError(f"{', '.join(sorted(missing))} is missing")


def capture(case: Case) -> None:
    """Every block's state at the last token of a prompt with an image."""
    _captured(case, [case.sample(SHORT, 0)], [case.shown(SHORT, 0)], EQUAL)


def _captured(case: Case, samples: Sequence[Sample], alone: Sequence[dict[str, Tensor]], limit: float) -> None:
    facts = [case.plain.facts(inputs) for inputs in alone]
    layers = sorted(set(facts[0].order))
    found = case.captured(samples, layers=layers)
    for index, own in enumerate(facts):
        for layer in layers:
            same_state(found[layer][index], own.states[layer], limit, f"prompt {index}, block {layer}")


def steering(case: Case) -> None:
    """A direction behind each block by itself, on a prompt with an image."""
    _steered(case, case.shown(SHORT, 0), case.sample(SHORT, 0))


def _steered(case: Case, inputs: dict[str, Tensor], sample: Sample) -> None:
    before = case.before(inputs)
    for layer, direction in case.directions(inputs).items():
        with sk.steer(case.vlm, case.vector({layer: direction}), policy="off"):
            found = case.chances([sample])[0]
        with case.plain.adding({layer: direction}):
            expected = case.plain.logits(inputs).log_softmax(-1)
        require(apart(found, expected), EQUAL, f"steered behind block {layer}")
        if apart(found, before) < MOVED:
            raise CheckError(f"steering behind block {layer} moves nothing")


def image_positions(case: Case) -> None:
    """`tokens="image"` changes the tokens that another image changes, and none that stands for text.

    Where blocks attend to an image that has no position, it is refused.
    """
    inputs = case.shown(SHORT, 0)
    one, other = case.plain.facts(inputs), case.plain.facts(case.shown(SHORT, 1))
    if one.given[0].shape != other.given[0].shape:
        raise CheckError("another image of the same size makes another number of tokens")
    if apart(one.logits, other.logits) < EQUAL:
        raise CheckError("another image changes nothing")
    holds = (one.given[0] - other.given[0]).abs().amax(-1) > 0
    direction = torch.ones(case.plain.width) * float(one.given[0].std())
    vector = case.vector({0: direction}, tokens="image", phase="prompt")
    seen: list[Tensor] = []
    handle = case.plain.watch(1, seen)
    try:
        with sk.steer(case.vlm, vector, policy="off"):
            case.chances([case.sample(SHORT, 0)])
    finally:
        handle.remove()
    changed = (seen[-1] - one.given[1]).abs().amax(-1) > EQUAL * float(one.given[1].std())
    if missed := int((holds & ~changed).sum()):
        raise CheckError(f"{missed} of {int(holds.sum())} tokens of the image are not steered")
    ids = inputs.get("input_ids")
    if ids is not None and ids.shape[1] == len(holds):  # parts of an image may be the same for every image
        stray = changed & ~torch.isin(ids[0], ids[0][holds].unique())
    else:
        stray = changed & ~holds
    if stray.any():
        raise CheckError(f"{int(stray.sum())} tokens are steered that stand for no image")


def padding(case: Case) -> None:
    """Two prompts of different lengths with images in one batch, read and steered, each as alone."""
    samples = [case.sample(SHORT, 0), case.sample(LONG, 1)]
    alone = [case.shown(SHORT, 0), case.shown(LONG, 1)]
    _captured(case, samples, alone, PADDED)
    _steered_batch(case, samples, alone)


def _steered_batch(case: Case, samples: Sequence[Sample], alone: Sequence[dict[str, Tensor]]) -> None:
    directions = case.directions(alone[0])
    with sk.steer(case.vlm, case.vector(directions), policy="off"):
        found = case.chances(samples)
    for index, inputs in enumerate(alone):
        with case.plain.adding(directions):
            expected = case.plain.logits(inputs).log_softmax(-1)
        require(apart(found[index], expected), PADDED, f"prompt {index} of a batch, steered")
        if apart(found[index], case.before(inputs)) < MOVED:
            raise CheckError(f"steering moves nothing in prompt {index} of a batch")


def several_images(case: Case) -> None:
    """A prompt with two images, in either order."""
    last = len(case.plain.blocks) - 1
    rows = []
    for order in ((0, 1), (1, 0)):
        found = case.captured([case.sample(SHORT, *order)], layers=[last])[last][0]
        same_state(found, case.plain.facts(case.shown(SHORT, *order)).states[last], EQUAL, f"images {order}")
        rows.append(found)
    if apart(rows[0], rows[1]) < EQUAL:
        raise CheckError("exchanging the images changes nothing")


def same_prompt(case: Case) -> None:
    """The text-only counterpart is the prompt with its image cut out, and nothing else."""
    for text in (SHORT, LONG):
        bare = case.text_ids(text)
        shown = case.shown(text, 0)["input_ids"][0].tolist()
        start = next((n for n, (a, b) in enumerate(zip(shown, bare, strict=False)) if a != b), len(bare))
        if not any(shown[:n] + shown[n + len(shown) - len(bare) :] == bare for n in range(start + 1)):
            tokens = case.plain.processor.tokenizer.convert_ids_to_tokens
            raise CheckError(f"without an image the prompt is {' '.join(tokens(bare))[:120]}")
    words = re.sub(r"\s", "", case.plain.processor.tokenizer.decode(case.text_ids(SHORT)))
    if re.sub(r"\s", "", SHORT) not in words:
        raise CheckError(f"without an image the prompt is {words[:80]!r}")


def text_only(case: Case) -> None:
    """The counterpart is read and steered as plain hooks read and steer it, and padding does not count."""
    samples, alone = [Sample(SHORT), Sample(LONG)], [case.bare(SHORT), case.bare(LONG)]
    _captured(case, samples, alone, PADDED)
    _steered(case, alone[0], samples[0])
    _steered_batch(case, samples, alone)


def mixed_batch(case: Case) -> None:
    """Prompts with and without an image together; one that is for images leaves the others alone."""
    samples = [case.sample(LONG, 1), Sample(SHORT)]
    shown, bare = case.shown(LONG, 1), case.bare(SHORT)
    directions = case.directions(bare)
    with sk.steer(case.vlm, case.vector(directions, prompts="with_image"), policy="off"):
        found = case.chances(samples)
    with case.plain.adding(directions):
        expected = case.plain.logits(shown).log_softmax(-1)
    require(apart(found[0], expected), PADDED, "the prompt with an image")
    require(apart(found[1], case.before(bare)), PADDED, "the prompt without one")


class Recorder(LogitsProcessor):
    """The logits of every step of an answer, and what the head gives, for a `generate` that asks no processor."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []
        self.given: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        self.asked.append(scores.detach().clone())
        return scores

    def head(self, module: Any, args: Any, output: Tensor) -> None:
        self.given.append(output[:, -1].detach().clone())

    @property
    def steps(self) -> list[Tensor]:
        return self.asked or self.given


def generation(case: Case) -> None:
    """Three tokens, steered in the prompt's last token and in every generated one."""
    inputs, sample = case.shown(SHORT, 0), case.sample(SHORT, 0)
    directions = case.directions(inputs)
    given = {k: v.float() if v.is_floating_point() else v for k, v in case.vlm.inputs([sample]).items()}

    def ours(**options: Any) -> None:
        with sk.steer(case.vlm, case.vector(directions), policy="off"):
            case.vlm.generate([sample], **options)

    generated(case, ours, given, directions)


def generated(case: Case, ours: Callable[..., None], given: dict[str, Tensor], directions: dict[int, Tensor]) -> None:
    """Three tokens of an answer: steerkit's way to them beside that of plain hooks."""
    model = case.plain.model

    def theirs(**options: Any) -> None:
        with case.plain.adding(directions):
            model.generate(**given, **options)

    def unsteered(**options: Any) -> None:
        model.generate(**given, **options)

    found: list[list[Tensor]] = []
    for answer in (ours, theirs, unsteered):
        recorder, head = Recorder(), model.get_output_embeddings()
        handle = None if head is None else head.register_forward_hook(recorder.head)
        case.plain.forget()
        try:
            with torch.no_grad():
                answer(
                    max_new_tokens=3,
                    min_new_tokens=3,
                    do_sample=False,
                    use_cache=True,
                    logits_processor=LogitsProcessorList([recorder]),
                )
        finally:
            if handle is not None:
                handle.remove()
        found.append(recorder.steps)
    case.plain.forget()
    for step, (one, other) in enumerate(zip(found[0], found[1], strict=True)):
        require(apart(one, other), PADDED, f"step {step}")
    if len(found[0]) < 3 or apart(found[0][0], found[2][0]) < MOVED:
        raise CheckError(f"steering moves nothing in {len(found[0])} steps")


def nnsight(case: Case) -> None:
    """nnsight reads what hooks read."""
    samples = [case.sample(SHORT, 0)]
    one, other = (case.captured(samples, engine=engine) for engine in ("nnsight", "hooks"))
    for layer, row in one.items():
        require(apart(row, other[layer]), EQUAL, f"block {layer}")


def _site(site: Any) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        layer = len(case.plain.blocks) - 1
        sample = case.sample(SHORT, 0)
        path = case.vlm.architecture.site(layer, site)
        module, seen = case.plain.model.get_submodule(path), []

        def entering(_: Any, args: Any, options: Any) -> None:
            seen.append(args[0] if args else next(iter(options.values())))

        def leaving(_: Any, args: Any, output: Any) -> None:
            seen.append(output if isinstance(output, Tensor) else output[0])

        heads = site == "head_out"
        handle = (
            module.register_forward_pre_hook(entering, with_kwargs=True)
            if heads
            else module.register_forward_hook(leaving)
        )
        try:  # one pass is seen by the hook and by steerkit; that steering moves it is held below
            found = case.captured([sample], layers=[layer], site=site)[layer][0]
        finally:
            handle.remove()
        state = seen[0]
        expected = state[-1] if state.dim() == 2 else state[0, -1]
        require(apart(found, expected), EQUAL, f"{site} of block {layer}")
        direction = (
            torch.randn(expected.numel(), generator=torch.Generator().manual_seed(2)) * float(expected.std()) * 5
        )
        with sk.steer(case.vlm, case.vector({layer: direction}, site=site), policy="off"):
            steered = case.chances([sample])[0]
        if apart(steered, case.before(case.shown(SHORT, 0))) < MOVED / 10:
            raise CheckError(f"steering at {site} of block {layer} moves nothing")

    check.__name__ = str(site)
    check.__doc__ = f"{site}: captured as a plain hook on the module has it, and steering there moves the answer."
    return check


def vision(case: Case) -> None:
    """A direction on every token of the first block of the vision tower."""
    tower = case.vlm.architecture.vision
    if tower is None:
        raise EngineError("no vision tower", expected="blocks that can be told")
    block: Any = case.plain.model.get_submodule(f"{tower.layers}.0")
    direction = torch.randn(tower.hidden_size, generator=torch.Generator().manual_seed(3))
    inputs, sample = case.shown(SHORT, 0), case.sample(SHORT, 0)

    original = block.forward  # what the tower notes of its blocks it notes of what they return, before any hook

    def forward(*args: Any, **options: Any) -> Any:
        output = original(*args, **options)
        return output + direction if isinstance(output, Tensor) else (output[0] + direction, *output[1:])

    block.forward = forward
    try:
        expected = case.plain.logits(inputs).log_softmax(-1)
    finally:
        del block.forward
    with sk.steer(case.vlm, case.vector({0: direction}, tower="vision", tokens="all"), policy="off"):
        found = case.chances([sample])[0]
    require(apart(found, expected), EQUAL, "the tower, steered")
    if apart(found, case.before(inputs)) < EQUAL:
        raise CheckError("steering the tower moves nothing")


def loading(case: Case) -> None:
    """What is tried at loading, where that is asked for, finds nothing."""
    try:
        check_itself(case.vlm)
    except SteerKitError as error:
        raise CheckError(str(error)) from error


CHECKS: dict[str, Callable[[Case], None]] = {
    "loading": loading,
    "blocks": same_blocks,
    "inputs": same_inputs,
    "capture": capture,
    "steering": steering,
    "padding": padding,
    "image tokens": image_positions,
    "several images": several_images,
    "counterpart": same_prompt,
    "text": text_only,
    "mixed": mixed_batch,
    "generation": generation,
    "nnsight": nnsight,
    "mlp_out": _site("mlp_out"),
    "attn_out": _site("attn_out"),
    "head_out": _site("head_out"),
    "vision": vision,
}
"""Every check; what a level needs is said in `levels`."""


def outcomes(name: str, only: Sequence[str] = (), changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """What came of each check of a type: `ok`, `refused: why` or `fails: how`; of one of a medium also `none`, where
    the type does not take it, or `untried`, without what is needed.
    """
    from breadth import media

    try:
        case = Case(name, changes)
    except (ImportError, sk.SteerKitError, MemoryError) as error:
        kind = "refused" if isinstance(error, sk.SteerKitError) else "not built"
        return {"built": f"{kind}: {_line(error)}"}
    found = {"built": "ok"}
    for key, check in {**CHECKS, **media.CHECKS}.items():
        if only and key not in only:
            continue
        try:
            check(case)
            found[key] = "ok"
        except media.Untried as why:
            found[key] = str(why)
        except sk.SteerKitError as error:
            found[key] = f"refused: {_line(error)}"
        except CheckError as error:
            found[key] = f"fails: {_line(error)}"
        except Exception as error:  # what a model or a processor raises is a result too
            found[key] = f"fails: {type(error).__name__}: {_line(error)}"
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
