"""How a `VLM` comes to be: `load` and `wrap`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

from steerkit._internal.validation import PATH, expect
from steerkit._text import first_line, one_line
from steerkit.errors import OptionError, SteerKitError, UnsupportedModelError
from steerkit.models import Family, as_tested, check_dtype, commit_of, family_of, load_processor, tested
from steerkit.vlm._self_check import check_itself
from steerkit.vlm._vlm import VLM

_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def load(
    source: str,
    *,
    family: Family | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    check: bool | None = None,
    **options: Any,
) -> VLM:
    """Load a model with its processor, from the Hugging Face hub or a folder.

    Args:
        source: Repository id or folder.
        family: What is declared of the model's family. Default: the record that is registered for its type.
        chat_template_kwargs: Options of the chat template, such as `{"enable_thinking": False}`: of every prompt that
            is made of a sample, unless the sample sets them itself.
        check: Whether the model is tried, in less than two forward passes of one of half a billion weights or more:
            steered, padded, shown two images. None: where its type was never tested, its config differs from the tested
            one in more than numbers, its class is not one of transformers', or a record is given.
        **options: What `from_pretrained` takes: `dtype`, `device_map`, `revision`, `token`, `cache_dir`,
            `trust_remote_code` ...

    Returns:
        The model in evaluation mode.

    Raises:
        UnsupportedModelError: There is no model, or its type is not served; raised before any weight is read. Or its
            weights can't be loaded, or it is tried and does something else than what was asked or declared.
        ProcessorError: The processor can't be built.
        OptionError: The source is no text, torch has no such dtype, or `from_pretrained` takes no such option.
        SampleError: The chat template does not read such an option.

    Example:
        >>> vlm = sk.load("llava-hf/llava-1.5-7b-hf", device_map="auto", dtype="bfloat16")
    """
    import transformers

    expect(PATH, "a repository id or a folder", source=source)
    _expect_check(check)
    source = os.fsdecode(os.path.expanduser(source))  # noqa: PTH111 - a name of the hub is no path
    for name in {"dtype", "torch_dtype"} & options.keys():
        check_dtype(name, options[name])
    shared = {k: v for k, v in options.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
    trusted = {k: v for k, v in options.items() if k == "trust_remote_code"}
    expect(Family | None, "a record of the model's family", family=family)
    given, family = family, family_of(source, family=family, **shared, **trusted)
    if (commit := commit_of(source, shared)) is not None:  # all the rest is of the same one, should a branch move on
        shared["revision"] = options["revision"] = commit
    processor = load_processor(source, family, **shared, **trusted)
    try:
        _check_installed(source, family, shared)
        model = getattr(transformers, family.auto_class).from_pretrained(source, **options)
    except ImportError as error:  # before any weight is read
        raise UnsupportedModelError(
            f"{source!r} needs what is not installed: {one_line(error).strip()[:200]}",
            expected="the packages that transformers names",
        ) from error
    except (SteerKitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many libraries: weights that are missing, torn or of another model
        if isinstance(error, TypeError) and (unknown := _UNEXPECTED.search(str(error))):
            raise OptionError(
                f"the model {source!r} is loaded with {unknown[1]}=, which from_pretrained does not take",
                expected="its options, such as dtype, device_map, quantization_config=BitsAndBytesConfig(...)",
                fix="check the spelling; a processor that you have goes into sk.wrap(model, processor)",
            ) from error
        raise UnsupportedModelError(
            f"the model {source!r} can't be loaded ({first_line(error)[:300]})",
            expected="whole weights, and options that this machine can follow",
            fix="see the reason in parentheses; for files that are missing check the revision, `hf auth login` for a "
            "gated repository",
        ) from error
    vlm = VLM(model.eval(), processor, family, revision=commit, chat_template_kwargs=chat_template_kwargs)
    return _tried(vlm, check, declared=given is not None)


def _check_installed(source: str, family: Family, options: Mapping[str, Any]) -> None:
    """Let transformers name what the model itself needs, before its weights are fetched.

    Raises:
        ImportError: It is not installed.
    """
    import transformers

    # torchvision is for processors, and named when one is loaded
    needed = {name for kind in family.types for name in tested().get(kind, {}).get("needs", ())} - {"torchvision"}
    if not all(map(find_spec, needed)):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        with torch.device("meta"):
            getattr(transformers, family.auto_class).from_config(config)


def wrap(
    model: nn.Module,
    processor: Any = None,
    *,
    family: Family | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    check: bool | None = None,
) -> VLM:
    """Use a model that is already loaded.

    Args:
        model: The Hugging Face model, or a PEFT model around it; it is neither copied nor changed.
        processor: Its processor (of a language model, its tokenizer). Without one, only raw inputs can be used:
            `steer(model, vector)` and `model.generate(**inputs)`.
        family: As for `load`.
        chat_template_kwargs: As for `load`.
        check: As for `load`. Without a processor nothing can be tried.

    Raises:
        UnsupportedModelError: This model type is not served, or PEFT puts tokens of its own in front of prompts. Or the
            model is tried, and does something else than what was asked or declared.
        SampleError: The chat template does not read such an option.
        OptionError: A VLM is wrapped again.
        ProcessorError: `check` is True, and there is no processor.
    """
    _expect_check(check)
    if isinstance(model, VLM):
        raise OptionError("a VLM is wrapped again", expected="the Hugging Face model", fix="use the VLM as it is")
    vlm = VLM(model, processor, family, chat_template_kwargs=chat_template_kwargs)
    return _tried(vlm, check, declared=family is not None)


def _expect_check(check: object) -> None:
    expect(bool | None, "True, False, or None", "leave it out: what was never tested is tried", check=check)


def _tried(vlm: VLM, check: bool | None = None, *, declared: bool = False) -> VLM:
    """A model, once it has been tried, where that is asked for; by default where it may differ from what was tested."""
    # FSDP makes a class of its own in front of that of the model
    kind = next(kind for kind in type(vlm.model).__mro__ if not kind.__module__.startswith("torch."))
    if check is None and vlm.processor is not None and vlm.device.type != "meta":
        ours = not declared and kind.__module__.startswith("transformers.")
        check = not (ours and as_tested(cast("Any", vlm.model).config))
    if check:
        vlm.require_processor("trying a model")
        check_itself(vlm)
    return vlm
