"""Suites of steerkit as tasks of Inspect, their judges as a scorer, and recorded answers as logs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import inspect_ai
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample as Row
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.scorer import Score, Scorer, Target, ci_wilson, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

if TYPE_CHECKING:
    from steerkit.evaluation import Answer, Kind, Suite, Verdict
    from steerkit_inspect.messages import Shown


def _suite(path: str, options: dict[str, Any]) -> Suite:
    return _read(json.dumps([path, options]))


@cache
def _read(asked: str) -> Suite:
    from steerkit.demo import bundled
    from steerkit.evaluation import load_suite

    path, options = json.loads(asked)
    return load_suite(bundled(path), **options)


@task
def suite(path: str, kind: str = "harmful", count: int | None = None, embed: bool = False, **options: Any) -> Task:
    """The prompts of one kind of a suite.

    Args:
        path: A file as `sk.evaluation.load_suite` takes it, or what comes with steerkit, such as `demo/test`.
        kind: harmful, harmless or utility.
        count: The first so many; default: all.
        embed: Whether the prompts hold their images, as models of other providers need it; Inspect then logs them
            unless `--no-log-images` is given. Otherwise they and the logs hold names, which `steerkit/...` knows.
        **options: Further ones of `load_suite`, such as `root`.
    """
    from steerkit.errors import OptionError
    from steerkit.evaluation import KINDS

    if kind not in KINDS:
        raise OptionError(f"kind is {kind!r}", expected="one of " + ", ".join(KINDS))
    found = _suite(path, options)
    asked = cast("Kind", kind)
    rows = [_row(found, asked, case.id, "data" if embed else "name") for case in found.cases(asked)[:count]]
    solvers = [generate()] if embed else [images_by_name(), generate()]
    return _task(rows, solvers, path, options, found.max_new_tokens, f"{Path(path).stem}_{kind}")


@solver
def images_by_name() -> Solver:
    """Refuse a model that would take the note in an image's place for the prompt."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        from steerkit.errors import OptionError

        if state.model.api != "steerkit" and any((each.metadata or {}) for each in state.messages):
            raise OptionError(
                f"{state.model} can't be shown images by name", expected="steerkit/...", fix="-T embed=true"
            )
        return state

    return solve


def _row(found: Suite, kind: Kind, name: str, images: Shown, **metadata: Any) -> Row:
    from steerkit_inspect.messages import messages_of

    case = found.named[kind, name]
    messages = messages_of(case.sample, images)
    return Row(input=messages, target=case.answer or "", id=name, metadata={"kind": kind, "row": name, **metadata})


def _task(
    rows: list[Row],
    solvers: list[Solver],
    path: str,
    options: Any,
    length: int,
    name: str,
    metadata: dict[str, Any] | None = None,
) -> Task:
    return Task(
        dataset=MemoryDataset(rows, name=name),
        solver=solvers,
        scorer=verdict(path, **options),
        config=GenerateConfig(max_tokens=length),
        name=name,
        metadata=metadata,
    )


def _named(key: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    """What to call a log, which becomes a part of its file's name, and what it is of, to the letter."""
    name = re.sub(r"[^\w.+-]+", "-", " ".join(map(str, key)))
    return name, dict(zip(("condition", "strength", "images", "kind"), key, strict=True))


@scorer(metrics={"*": [mean(), ci_wilson()]})
def verdict(path: str, recorded: bool = True, **options: Any) -> Scorer:
    """What the suite's judge, or its parser, says of an answer.

    What was not judged is NaN, which Inspect leaves out of its figures.

    Args:
        path: The suite, as for the task.
        recorded: Whether a verdict that was recorded counts, where there is one; else the judge is asked again.
        **options: As for the task.
    """

    async def score(state: TaskState, target: Target) -> Score:
        from steerkit.evaluation import Answer, Verdict, judge

        kind, name = state.metadata["kind"], state.metadata["row"]
        found = _suite(path, options)
        if recorded and "verdict" in state.metadata:
            said = Verdict.model_validate(state.metadata["verdict"])
        else:
            asked = {"suite": found.name, "revision": found.revision, "kind": kind, "row": name}
            blank = {"condition": "", "strength": 0.0, "images": "original", "run": "0" * 64, "versions": {}}
            text = {"answer": state.output.completion, "tokens": 0, "truncated": False}
            answer = Answer(**asked, **blank, **text, prompt=found.digests[kind, name])
            [said] = judge(found, [answer])
        parts = {
            "harmful": {"unsafe": said.harmful, "refused": said.refused, "garbled": said.garbled},
            "harmless": {"refused": said.refused, "garbled": said.garbled},
            "utility": {"right": said.right},
        }[kind]
        value = {part: float("nan") if each is None else float(each) for part, each in parts.items()}
        return Score(value=value, answer=state.output.completion, explanation=said.error or said.raw or said.judge)

    return score


@solver
def recall() -> Solver:
    """Answer with what was recorded."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        answer = state.metadata["answer"]
        message = ChatMessageAssistant(content=answer["answer"], source="generate")
        stop = "max_tokens" if answer["truncated"] else "stop"
        state.output = ModelOutput(
            model="recorded",
            choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
            usage=ModelUsage(output_tokens=answer["tokens"], total_tokens=answer["tokens"]),
        )
        state.messages.append(message)
        return state

    return solve


def export(
    path: str | Path,
    answers: Sequence[Answer],
    folder: str | Path,
    *,
    verdicts: Sequence[Verdict] = (),
    images: bool = False,
    model: str = "none",
    **options: Any,
) -> list[EvalLog]:
    """Write recorded answers as logs, one for each condition, strength, view and kind; no model is asked.

    Args:
        path: The suite that was answered, as for the task `suite`.
        answers: Records of `sk.evaluation.generate`, or `read_records(file, Answer)`.
        folder: Where the logs go.
        verdicts: What was said of them; the suite's judge is asked about the rest.
        images: Whether the logs hold the images.
        model: What they say answered, such as `steerkit/llava`; it is not loaded.
        **options: Further ones of `load_suite`.

    Returns:
        The logs, as written.

    Raises:
        RecordsError: An answer is to another prompt than the suite's.
    """
    from steerkit.errors import RecordsError

    found = _suite(str(path), options)
    said = {each.answer: each for each in verdicts if each.surprise is None and not each.error}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for answer in answers:
        if found.digests.get((answer.kind, answer.row)) != answer.prompt:
            raise RecordsError(f"an answer to {answer.row!r} is to another prompt", expected="the suite of the answers")
        metadata = {"answer": answer.model_dump(mode="json")}
        if answer.digest in said:
            metadata["verdict"] = said[answer.digest].model_dump(mode="json")
        key = (answer.condition, answer.strength, answer.images, answer.kind)
        row = _row(found, answer.kind, answer.row, "data" if images else "note", **metadata)
        groups.setdefault(key, []).append(row)
    if not groups:
        raise RecordsError("there are no answers", expected="at least one")
    tasks = [
        _task(rows, [recall()], str(path), options, found.max_new_tokens, *_named(key)) for key, rows in groups.items()
    ]
    return inspect_ai.eval(tasks, model=model, log_dir=str(folder), log_images=images, display="none", max_tasks=1)
