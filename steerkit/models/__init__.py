"""Models: what is known of a model family, samples, and the views of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.models._adapter import (
        AnsweringModel as AnsweringModel,
    )
    from steerkit.models._adapter import (
        Architecture as Architecture,
    )
    from steerkit.models._adapter import (
        Heads as Heads,
    )
    from steerkit.models._adapter import (
        Images as Images,
    )
    from steerkit.models._adapter import (
        Inputs as Inputs,
    )
    from steerkit.models._adapter import (
        LoadedModel as LoadedModel,
    )
    from steerkit.models._adapter import (
        ModelAdapter as ModelAdapter,
    )
    from steerkit.models._adapter import (
        SteerableModel as SteerableModel,
    )
    from steerkit.models._adapter import (
        VisionTower as VisionTower,
    )
    from steerkit.models._adapter import (
        tokenizer_of as tokenizer_of,
    )
    from steerkit.models._chat import (
        IMAGE as IMAGE,
    )
    from steerkit.models._download import (
        download_image as download_image,
    )
    from steerkit.models._generation import check_one_answer as check_one_answer
    from steerkit.models._generation import check_room as check_room
    from steerkit.models._generation import generation_settings as generation_settings
    from steerkit.models._identity import check_processor as check_processor
    from steerkit.models._identity import hugging_face as hugging_face
    from steerkit.models._identity import model_record as model_record
    from steerkit.models._identity import unwrapped as unwrapped
    from steerkit.models._identity import weights_digest as weights_digest
    from steerkit.models._images import (
        check_image as check_image,
    )
    from steerkit.models._images import (
        image_name as image_name,
    )
    from steerkit.models._images import (
        open_image as open_image,
    )
    from steerkit.models._images import (
        web_address as web_address,
    )
    from steerkit.models._loading import adapter_of as adapter_of
    from steerkit.models._loading import check_dtype as check_dtype
    from steerkit.models._loading import commit_of as commit_of
    from steerkit.models._modalities import visual_rows as visual_rows
    from steerkit.models._preparing import Prepared as Prepared
    from steerkit.models._preparing import all_prepared as all_prepared
    from steerkit.models._preparing import batched as batched
    from steerkit.models._preparing import named as named
    from steerkit.models._preparing import numbered_from as numbered_from
    from steerkit.models._preparing import numbers as numbers
    from steerkit.models._preparing import prepare as prepare
    from steerkit.models._reading import (
        read_samples as read_samples,
    )
    from steerkit.models._registry import (
        adapter_for as adapter_for,
    )
    from steerkit.models._registry import (
        adapter_names as adapter_names,
    )
    from steerkit.models._registry import (
        get_adapter as get_adapter,
    )
    from steerkit.models._rendering import hides_images as hides_images
    from steerkit.models._rendering import prompt_of as prompt_of
    from steerkit.models._rendering import shown as shown
    from steerkit.models._samples import (
        Sample as Sample,
    )
    from steerkit.models._samples import (
        anchor_digest as anchor_digest,
    )
    from steerkit.models._samples import (
        as_samples as as_samples,
    )
    from steerkit.models._views import (
        decode as decode,
    )
    from steerkit.models._views import (
        encode as encode,
    )
    from steerkit.models._views import (
        meaningless_image as meaningless_image,
    )
    from steerkit.models._views import (
        system_lengths as system_lengths,
    )
    from steerkit.models._views import (
        view as view,
    )

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_adapter": (
            "AnsweringModel",
            "Architecture",
            "Heads",
            "Images",
            "Inputs",
            "LoadedModel",
            "ModelAdapter",
            "SteerableModel",
            "VisionTower",
            "tokenizer_of",
        ),
        "_chat": ("IMAGE",),
        "_download": ("download_image",),
        "_generation": ("check_one_answer", "check_room", "generation_settings"),
        "_identity": ("check_processor", "hugging_face", "model_record", "unwrapped", "weights_digest"),
        "_images": ("check_image", "image_name", "open_image", "web_address"),
        "_loading": ("adapter_of", "check_dtype", "commit_of"),
        "_modalities": ("visual_rows",),
        "_preparing": ("Prepared", "all_prepared", "batched", "named", "numbered_from", "numbers", "prepare"),
        "_reading": ("read_samples",),
        "_registry": ("adapter_for", "adapter_names", "get_adapter"),
        "_rendering": ("hides_images", "prompt_of", "shown"),
        "_samples": ("Sample", "anchor_digest", "as_samples"),
        "_views": ("decode", "encode", "meaningless_image", "system_lengths", "view"),
    },
)
