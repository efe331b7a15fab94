"""What is checked of types that take videos or audio: calls of the model itself, with what its processor makes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

import steerkit as sk
from breadth import films, prompts
from breadth.cases import EQUAL, LONG, MOVED, PADDED, SHORT, Case, CheckError, require, same_state
from breadth.checks import generated
from breadth.reference import apart
from steerkit.errors import EngineError, SteerKitError
from steerkit.models import Sample


class Untried(Exception):
    """The type takes no such thing (`none`), or what is needed for it is not installed (`untried`)."""


def _prompts(case: Case, medium: films.Medium) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same prompt with two videos, or with two sounds."""
    taken = films.takes(case.name, case.plain.processor, medium)
    if medium == "audio" and getattr(case.plain.model.config, "audio_config", True) is None:
        taken = False  # this one was built without
    if not taken:
        raise Untried("untried" if taken is None else "none")
    one, other = (_made(case, medium, [SHORT], [seed]) for seed in (0, 1))
    return one, other


def _made(case: Case, medium: films.Medium, texts: list[str], seeds: list[int | None]) -> dict[str, Tensor]:
    return films.encoded(case.name, case.plain.processor, medium, texts, seeds)


def _steered(case: Case, inputs: dict[str, Tensor], vector: Any) -> Tensor:
    """`[rows, vocabulary]` after the prompts of a raw call."""
    case.plain.forget()
    target = case.plain.target(inputs)
    with torch.no_grad(), sk.steer(case.vlm, vector, policy="off"):
        return target(**case.plain.completed(inputs, target)).logits[:, -1]


def _changed(case: Case, inputs: dict[str, Tensor], **where: Any) -> Tensor:
    """Which tokens of a prompt a direction behind the first block reaches."""
    given = case.plain.facts(inputs).given
    direction = torch.ones(case.plain.width) * float(given[0].std())
    seen: list[Tensor] = []
    handle = case.plain.watch(1, seen)
    try:
        _steered(case, inputs, case.vector({0: direction}, phase="prompt", **where))
    finally:
        handle.remove()
    return (seen[-1] - given[1]).abs().amax(-1) > EQUAL * float(given[1].std())


def _same_tokens(case: Case, one: dict[str, Tensor], other: dict[str, Tensor], tokens: str) -> None:
    """What is selected are the tokens that another video changes."""
    first, second = case.plain.facts(one), case.plain.facts(other)
    holds = (first.given[0] - second.given[0]).abs().amax(-1) > 0
    changed, ids = _changed(case, one, tokens=tokens), one["input_ids"][0]
    if not holds.any():  # tiny weights may make the same of any: then whatever is not a token's own embedding
        own = case.plain.model.get_input_embeddings()(ids)
        holds = (first.given[0] - own).abs().amax(-1) > EQUAL * float(own.std())
    if not holds.any():
        raise CheckError("it has no place in the prompt")
    stray = changed & ~torch.isin(ids, ids[holds].unique())
    if (missed := int((holds & ~changed).sum())) or stray.any():
        raise CheckError(f"tokens={tokens!r}: {missed} of {int(holds.sum())} missed, {int(stray.sum())} others steered")
    if bool((_changed(case, one, tokens="text") & changed).any()):
        raise CheckError(f"tokens='text' reaches what tokens={tokens!r} does")


def _as_plain(case: Case, inputs: dict[str, Tensor], **where: Any) -> None:
    """Steered at its last token, and in three tokens of an answer, as plain hooks steer it."""
    directions = case.directions(inputs)
    vector = case.vector(directions, **where)
    with case.plain.adding(directions):
        expected = case.plain.logits(inputs)
    require(apart(_steered(case, inputs, vector)[0], expected), EQUAL, "steered")
    if apart(expected, case.plain.facts(inputs).logits) < MOVED:
        raise CheckError("steering moves nothing")
    model = case.plain.model
    known = inspect.signature(model.forward).parameters
    # some processors make what `generate` of their model refuses
    given = {k: v for k, v in case.plain.completed(inputs, model).items() if k in known or k != "mm_token_type_ids"}

    def ours(**options: Any) -> None:
        with sk.steer(case.vlm, vector, policy="off"):
            model.generate(**given, **options)

    generated(case, ours, given, directions)


def _mixed(case: Case, medium: films.Medium, **where: Any) -> None:
    """Beside a prompt of text, which an intervention for what is visual leaves alone."""
    if case.alone:
        return
    try:
        both = _made(case, medium, [LONG, SHORT], [1, None])
    except (ValueError, TypeError, IndexError):  # the processor takes one prompt at a time
        return
    shown, bare = _made(case, medium, [LONG], [1]), _made(case, medium, [SHORT], [None])
    directions = case.directions(shown)
    found = _steered(case, both, case.vector(directions, **where))
    with case.plain.adding(directions):
        expected = case.plain.logits(shown)
        beside = case.plain.logits(bare)
    require(apart(found[0], expected), PADDED, "beside text")
    alone = case.plain.facts(bare).logits if where.get("prompts") == "with_image" else beside
    require(apart(found[1], alone), PADDED, "the text beside it")


def video(case: Case) -> None:
    """Prompts with a video are steered as those with an image, and a video's tokens are told from an image's."""
    one, other = _prompts(case, "video")
    _same_tokens(case, one, other, "image")
    _as_plain(case, one, prompts="with_image")
    _mixed(case, "video", prompts="with_image")
    try:
        told = bool(_changed(case, one, tokens="video").any())
    except EngineError:
        return  # the model reads it as so many images
    if not told:
        raise CheckError("tokens='video' reaches nothing of a video")
    _same_tokens(case, one, other, "video")
    try:
        stray = bool(_changed(case, case.shown(SHORT, 0), tokens="video").any())
    except SteerKitError:
        return  # it says that nothing was steered
    if stray:
        raise CheckError("tokens='video' reaches an image")


def video_counterpart(case: Case) -> None:
    """The text of a prompt with a video is the prompt with the video cut out, and nothing else."""
    one, _ = _prompts(case, "video")
    found = case.vlm.view("text", one)["input_ids"][0].tolist()
    expected = films.without(case.name, case.plain.processor, SHORT)
    if found != expected:
        decode = case.plain.processor.tokenizer.decode
        raise CheckError(f"without the video the prompt is {decode(found)!r:.90}, not {decode(expected)!r:.90}")


def video_sample(case: Case) -> None:
    """A sample with a video, as messages write it, is what transformers' processor makes of these messages."""
    _prompts(case, "video")
    texts, seeds = [SHORT, LONG], [0, 1]
    side = prompts.SIDES.get(case.name, 56)
    samples = [
        Sample(({"role": "user", "content": [{"type": "video", "video": films.clip(seed, side)}, _text(text)]},))
        for text, seed in zip(texts, seeds, strict=True)
    ]
    try:
        rows = [
            films.encoded(case.name, case.plain.processor, "video", [text], [seed], timed=False)
            for text, seed in zip(texts, seeds, strict=True)
        ]
    except ValueError:  # some want to know the time of each frame, which a file says
        try:
            case.vlm.inputs(samples[:1])
        except SteerKitError:
            return
        raise CheckError("a video is taken that transformers refuses") from None
    for sample, expected in zip(samples, rows, strict=True):
        found = case.vlm.inputs([sample])
        for key in sorted(expected.keys() & found.keys()):
            require(apart(found[key], expected[key]), EQUAL, f"{key} and the processor's")
        if missing := {key for key in expected.keys() - found.keys() if "video" in key or "grid" in key}:
            raise CheckError(f"{', '.join(sorted(missing))} is missing")
    try:
        captured = case.captured(samples, layers=[0])[0]
    except SteerKitError:  # some processors take one prompt with a video at a time
        captured = case.captured(samples, layers=[0], batch_size=1)[0]
    for at, expected in enumerate(rows):
        same_state(captured[at], case.plain.facts(expected).states[0], PADDED, f"prompt {at} of a batch")
    bare = case.vlm.inputs([samples[0]], images=False)["input_ids"][0].tolist()
    if bare != films.without(case.name, case.plain.processor, SHORT):
        raise CheckError("without its video it is another prompt")


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def audio(case: Case) -> None:
    """Prompts with audio are steered; whether an intervention for images is for them is refused, never guessed."""
    one, other = _prompts(case, "audio")
    _same_tokens(case, one, other, "audio")
    _as_plain(case, one)
    _mixed(case, "audio")
    for where in ("with_image", "without_image"):
        try:
            _steered(case, one, case.vector(case.directions(one), prompts=where))
        except EngineError:
            continue
        raise CheckError(f"a prompt with audio is taken for one {where.replace('_', ' ')}")
    try:
        case.vlm.view("text", one)
    except EngineError:
        return
    raise CheckError("audio is left out of a prompt in silence")


CHECKS = {
    "video": video,
    "text of a video": video_counterpart,
    "sample with a video": video_sample,
    "audio": audio,
}
