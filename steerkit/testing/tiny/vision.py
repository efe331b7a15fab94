"""Vision-language models at toy size, from what `families.json` says of each.

The configurations and the chat templates are those of published models, shortened: no videos, no tools.
"""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import transformers as _transformers

from steerkit.models import NoVideo, waiving_video
from steerkit.testing.tiny import text

transformers: Any = _transformers  # its classes are looked up by name

_DATA: dict[str, Any] = json.loads((Path(__file__).parent / "families.json").read_text(encoding="utf-8"))

FAMILIES: dict[str, Any] = _DATA["families"]
"""By name: config, tokenizer with its extra tokens, processor and image processor with their options."""

TEMPLATES: dict[str, str] = _DATA["templates"]
"""Chat templates by the name of what they are from."""


def make(name: str) -> tuple[Any, Any]:
    """A model and its processor."""
    family = FAMILIES[name]
    kind, *extra = family["tokenizer"]
    tokenizer = getattr(text, kind)(*extra)
    module, images, options = family["images"]
    pil = pkgutil.resolve_name(f"transformers.models.{module}.image_processing_pil_{module}:{images}")
    parts = {"image_processor": pil(**options), "tokenizer": tokenizer, **family["options"]}
    if "template" in family:
        parts["chat_template"] = TEMPLATES[family["template"]]
    if "reader" in family:
        parts["qformer_tokenizer"] = getattr(text, family["reader"])()
    processor = getattr(transformers, family["processor"])
    if "video" in family:  # the video part can't be built where torchvision is missing
        processor, parts["video_processor"] = waiving_video(processor), NoVideo()
    config = transformers.AutoConfig.for_model(**family["config"])
    return transformers.AutoModelForImageTextToText.from_config(config), processor(**parts)
