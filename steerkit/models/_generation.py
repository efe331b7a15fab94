"""What `generate` is asked to do, once options and generation configs are merged as transformers merges them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerkit._internal.validation import expect_whole
from steerkit._text import described
from steerkit.errors import OptionError, SampleError
from steerkit.models._preparing import Prepared, numbers


def generation_settings(model: Any, options: Mapping[str, Any]) -> Any:
    """The `GenerationConfig` that a call uses: its options, over a config that is passed, over the model's own.

    Args:
        model: The model whose `generate` is called.
        options: Keyword arguments of the call.

    Raises:
        OptionError: transformers refuses them.
    """
    named = {key: value for key, value in options.items() if key != "generation_config"}
    try:
        # the name is private, the merge is not: nothing else says what generate will do
        return model._prepare_generation_config(options.get("generation_config"), **named)[0]
    except (TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"generate does not take these options ({described(error)})",
            expected="options of transformers' generate, or a generation_config",
        ) from error


def check_one_answer(settings: Any, options: Mapping[str, Any]) -> None:
    """Refuse settings under which a prompt has no answer, several, or something else than ids.

    Args:
        settings: The merged settings.
        options: The keyword arguments, for what a merge does not check.

    Raises:
        OptionError: They are such.
    """
    if options.get("max_new_tokens") is not None:
        expect_whole(max_new_tokens=options["max_new_tokens"])
    if settings.num_beams is not None:
        expect_whole(num_beams=settings.num_beams)
    if (settings.num_return_sequences or 1) != 1:
        raise OptionError(
            f"num_return_sequences is {settings.num_return_sequences}, not 1",
            expected="one answer per sample, in the options and in the generation_config",
            fix="repeat the sample",
        )
    if settings.return_dict_in_generate:
        raise OptionError(
            "return_dict_in_generate is set",
            expected="options, and a generation_config, under which generate returns ids",
            fix="for scores call model.generate(**vlm.inputs(samples), ...)",
        )


def check_room(settings: Any, options: Mapping[str, Any], own: Any, prepared: Prepared) -> None:
    """Refuse a `max_length` that a batch of prompts fills before anything is generated.

    Args:
        settings: The merged settings.
        options: The keyword arguments.
        own: The model's own generation config.
        prepared: The batch.

    Raises:
        SampleError: It does.
    """
    given = (options.get("max_length"), getattr(options.get("generation_config"), "max_length", None), own.max_length)
    limit = next((value for value in given if value is not None), None)
    width = prepared.inputs["input_ids"].shape[1]
    if limit is None or settings.max_new_tokens is not None or width < limit:
        return
    mask = prepared.inputs["attention_mask"].sum(dim=1)
    longest = prepared.indices[int(mask.argmax())]
    raise SampleError(
        f"the prompt of {numbers([longest])} has {width} tokens, and max_length is {limit}, prompt and answer together",
        expected="room for an answer",
        fix="max_new_tokens=... counts the answer alone",
    )
