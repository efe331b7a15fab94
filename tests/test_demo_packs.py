"""The script that makes the bundled packs, on one demo model and few prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from demo_training import write_packs
from steerkit.errors import OptionError
from steerkit_vectors_hub import bundled
from steerkit_vectors_hub.index import read_index


def test_a_pack_is_made_measured_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = sk.VLM.capture

    def by_hooks(self: sk.VLM, *args: Any, **options: Any) -> Any:
        return capture(self, *args, **{**options, "engine": "hooks"})

    monkeypatch.setattr(sk.VLM, "capture", by_hooks)  # the faster engine; both measure the same
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    write_packs.main(["llava", "--prompts", "1", "--output", str(tmp_path)])
    vector = sk.load_vector("cmrm-llava-demo")
    assert vector.metadata.anchors is not None
    assert vector.metadata.anchors.size == 200
    assert (vector.metadata.license, vector.metadata.created) == ("Apache-2.0", None)
    assert {metric.name for metric in vector.metadata.metrics} == {"unsafe_rate", "over_refusal", "utility"}
    (entry,) = read_index(tmp_path / bundled.INDEX).packs
    assert entry.ref == vector.source


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no demo model 'gpt'"):
        write_packs.main(["gpt", "--output", str(tmp_path)])
