"""The provider `steerkit`: `inspect eval task.py --model steerkit/ID -M vector=REF -M strength=1`."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import anyio
from inspect_ai.hooks import Hooks, TaskStart, hooks
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentImage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from pydantic import BeforeValidator, Field

from steerkit.errors import OptionError
from steerkit.interventions import FiniteFloat, Frozen, View
from steerkit.models import tokenizer_of
from steerkit.policy import Policy
from steerkit_inspect.batches import Answered, Steering, worker
from steerkit_inspect.messages import options_of, sample_of

POLL = 0.02
"""Seconds between looks for an answer: it comes from a thread, and either of Inspect's event loops may wait for it."""


@hooks("steerkit-images", "says when a log will hold the images of its prompts")
class _Images(Hooks):
    """Inspect decides what its logs hold, without asking a provider, and keeps images unless it is told not to."""

    unsaid = False

    async def on_task_start(self, data: TaskStart) -> None:
        _Images.unsaid = data.spec.model.startswith("steerkit/") and data.spec.config.log_images is not False

    @staticmethod
    def look(messages: list[ChatMessage]) -> None:
        """Say it, once, when the first image of a task comes."""
        parts = [part for each in messages if not isinstance(each.content, str) for part in each.content]
        if _Images.unsaid and any(isinstance(each, ContentImage) and each.image[:5] == "data:" for each in parts):
            _Images.unsaid = False
            logging.getLogger(__name__).warning("this log holds the images of its prompts: --no-log-images omits them")


def _several(given: Any) -> Any:
    return given if isinstance(given, (list, tuple)) else (given,)


class Arguments(Frozen):
    """What `-M` takes.

    Attributes:
        vector: A pack, or several: whatever `sk.load_vector` takes.
        strength: Of all of them, or of each; default: as recommended.
        policy: As for `sk.steer`.
        images: With which view of their images prompts are shown.
        batch_size: Requests that the model answers at once, at most.
        dtype: As for `sk.load`, as are `device_map` and `revision`.
        device_map: Where the model goes.
        revision: Of the model.
        download: Whether a model or pack that is not on this machine is fetched.
    """

    vector: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    strength: Annotated[tuple[FiniteFloat, ...] | None, BeforeValidator(_several)] = None
    policy: Policy = "strict"
    images: View = "original"
    batch_size: Annotated[int, Field(ge=1)] = 16
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None
    download: bool = False


class Steerkit(ModelAPI):
    """Answers with a model of steerkit; nothing is loaded before the first request.

    Inspect makes a second instance to ask about the model, and one for each condition: they share the model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (as Inspect declares it)
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if base_url is not None:
            raise OptionError("a base_url is given", expected="none: the model runs in this process")
        try:
            given = Arguments(**model_args)
        except OptionError as error:
            raise OptionError(
                f"the arguments of the model {model_name!r} are wrong: {error.problem}",
                expected=f"-M with some of {', '.join(Arguments.model_fields)}",
            ) from error
        if given.strength and not given.vector:
            raise OptionError("a strength is given without a vector", expected="-M vector=REF")
        self.given = given
        self.steering = Steering(given.vector, given.strength, given.policy, given.images, given.download)
        options = {name: getattr(given, name) for name in ("dtype", "device_map", "revision")}
        options = {name: value for name, value in options.items() if value is not None}
        self.options = tuple(sorted({**options, "local_files_only": not given.download}.items()))

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one chat, in a batch with others that wait.

        Raises:
            OptionError: There are tools, or an option has no counterpart.
            SteerKitError: As `steer` and `VLM.generate` do.
        """
        if tools:
            raise OptionError("the provider steerkit has no tools", expected="a task that calls none")
        _Images.look(input)
        options = options_of(config, self.given.batch_size)
        asked = worker(self.model_name, self.options).ask(
            sample_of(input), self.steering, options, self.given.batch_size
        )
        try:
            while not asked.done():
                await anyio.sleep(POLL)
        finally:
            asked.cancel()
        return self._output(asked.result(), options.get("stop_strings", ()))

    def _output(self, answered: Answered, stops: tuple[str, ...]) -> ModelOutput:
        made = answered.made
        ends = [place for stop in stops if (place := made.text.find(stop)) >= 0]  # transformers keeps what it stops at
        text = made.text[: min(ends)] if ends else made.text
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        usage = ModelUsage(input_tokens=made.prompt, output_tokens=made.tokens, total_tokens=made.prompt + made.tokens)
        choice = ChatCompletionChoice(message=message, stop_reason="stop" if ends or made.ended else "max_tokens")
        return ModelOutput(
            model=self.model_name,
            choices=[choice],
            usage=usage,
            time=answered.seconds,
            metadata={"steerkit": answered.record},
        )

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer; Inspect's would download one."""

        def count() -> int:
            vlm = worker(self.model_name, self.options).vlm
            return len(tokenizer_of(vlm.processor)(text, add_special_tokens=False)["input_ids"])

        return await anyio.to_thread.run_sync(count)

    def max_tokens(self) -> int:
        """Of an answer, where a task does not say."""
        return 2048

    def max_connections(self) -> int:
        """As many requests as the model answers at once, where Inspect does not adapt their number."""
        return self.given.batch_size

    def connection_key(self) -> str:
        """Conditions that share a model share its requests."""
        return f"{self.model_name} {self.options}"
