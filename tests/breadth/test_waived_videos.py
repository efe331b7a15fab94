"""Without torchvision, the processor of every type that takes videos is loaded for images, from what a hub holds."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProcessorMixin
from transformers.utils.import_utils import is_torchvision_available

from breadth import configs, pairs, processors, prompts
from steerkit.errors import ProcessorError
from steerkit.models import NoVideo, family_for, load_processor, waiving_video

SHOWN_AS_VIDEO = "instructblipvideo"


def _takes_videos(name: str) -> bool:
    with contextlib.suppress(ImportError):  # a class that is not there without what it needs
        return "video_processor" in processors.kind_of(name).get_attributes()
    return False


TYPES = [name for name in pairs.NAMES if name not in prompts.WITHOUT_PROCESSOR and _takes_videos(name)]
pytestmark = [
    pytest.mark.skipif(is_torchvision_available(), reason="the whole processor can be built"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the processors of transformers
]


def _published(name: str, folder: Path) -> Any:
    """What a repository of the type holds: settings of every part, those of the video part among them."""
    kind = processors.kind_of(name)
    try:
        made = processors.processor(name)
    except ImportError as error:
        pytest.skip(f"its other parts need what is not installed: {str(error).strip()[:80]}")
    for part in kind.get_attributes():
        if isinstance(getattr(made, part), processors.Waived):
            setattr(made, part, NoVideo())
    made.__class__ = waiving_video(kind)
    prompts.prepare(name, made)
    ProcessorMixin.save_pretrained(made, folder)  # one class saves the font of its video part too
    configs.tiny(name).save_pretrained(folder)
    document = folder / "processor_config.json"
    settings = json.loads(document.read_text())
    document.write_text(json.dumps(settings | {"video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"}}))
    return made


@pytest.mark.parametrize("name", [name for name in TYPES if name != SHOWN_AS_VIDEO])
def test_the_video_part_is_waived(name: str, tmp_path: Path) -> None:
    made = _published(name, tmp_path)
    loaded = load_processor(str(tmp_path), family_for(name))
    assert type(loaded).__name__ == processors.kind_of(name).__name__
    assert isinstance(loaded.video_processor, NoVideo)
    assert processors.kind_of(name).__name__ in repr(loaded)
    sent = pickle.loads(pickle.dumps(loaded))  # as to the workers of a data loader
    assert type(sent) is type(loaded)
    of_each = [prompts.encoded(name, each, ["What?"], [[prompts.picture(0)]]) for each in (made, loaded, sent)]
    for found in of_each[1:]:
        assert of_each[0].keys() == found.keys()
        assert all(torch.equal(of_each[0][key], found[key]) for key in found)
    with pytest.raises(ProcessorError, match="torchvision is not installed"):
        loaded.video_processor(videos=[prompts.picture(0)])


def test_a_type_that_sees_images_as_videos_names_what_is_missing(tmp_path: Path) -> None:
    _published(SHOWN_AS_VIDEO, tmp_path)
    with pytest.raises(ProcessorError, match="shown images as videos, and torchvision is not installed"):
        load_processor(str(tmp_path), family_for(SHOWN_AS_VIDEO))


def test_enough_types_take_videos() -> None:
    assert len(TYPES) > 35
