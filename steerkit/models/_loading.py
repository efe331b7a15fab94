"""What is known of a repository or folder before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerkit._text import one_line
from steerkit.errors import OptionError, UnsupportedModelError
from steerkit.models._family import Family
from steerkit.models._registry import family_for


def family_of(source: str, *, trust_remote_code: bool = False, **options: Any) -> Family:
    """The family of the model in a repository or folder, from its config alone: none of the repository's code is run.

    Args:
        source: Repository id or folder.
        trust_remote_code: Whether it will be, so that the repository may bring a type that transformers does not have.
        **options: What `from_pretrained` takes: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        UnsupportedModelError: There is no config, or its model type is not served.
    """
    from transformers import PretrainedConfig

    try:
        # AutoConfig refuses the types that it does not know, or asks whether to run what the repository brings
        config, _ = PretrainedConfig.get_config_dict(source, **options)
        if not config:
            raise OSError("there is no config.json")
        model_type = str(config.get("model_type", ""))
    except Exception as error:  # a config.json that is a list, a number where a text is meant: any type at all
        raise UnsupportedModelError(
            f"{str(source)!r} has no model config that can be read ({one_line(error).strip()[:300]})",
            expected="a folder with a config.json, or a repository id of the Hugging Face hub that you have access to",
            fix="check the name and the revision; `hf auth login` for a gated repository",
        ) from error
    brought = config.get("auto_map") if trust_remote_code else None
    family = family_for(model_type, brought if isinstance(brought, dict) else ())
    family.check_served(config.get("model_type"))
    return family


def check_dtype(name: str, dtype: object) -> None:
    """Refuse a type that torch does not have; a mapping gives parts of the model types of their own.

    Raises:
        OptionError: It has no such type.
    """
    import torch

    for one in dtype.values() if isinstance(dtype, Mapping) else [dtype]:
        known = getattr(torch, one, None) if isinstance(one, str) else one
        if one not in (None, "auto") and not isinstance(known, torch.dtype):
            raise OptionError(f"{name} is {one!r:.80}", expected="'auto' or a type of torch, such as 'bfloat16'")


def commit_of(source: str, options: Mapping[str, Any]) -> str | None:
    """The commit that a repository's config was just read from; None for a folder."""
    if Path(source).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        source, "config.json", cache_dir=options.get("cache_dir"), revision=options.get("revision")
    )
    return Path(found).parent.name if isinstance(found, str) else None
