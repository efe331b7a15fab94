"""What a user of transformers or PEFT types: `from_pretrained` and `save_pretrained`."""

from __future__ import annotations

import hashlib
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from hub_support import cache, hub, vector
from loopback_hub import LoopbackHub

import steerkit as sk
from steerkit.errors import FileWriteError, OptionError, SteerKitError
from steerkit_vectors_hub.errors import (
    AccessError,
    OfflineError,
    PackNotFoundError,
    ReferenceFormatError,
    UntrustedPackError,
)

__all__ = ["cache", "hub"]  # fixtures


def test_a_repository_is_loaded_by_its_name(hub: LoopbackHub, tmp_path: Path) -> None:
    first = hub.publish("someone/pack", {"steering_vector.safetensors": vector().to_bytes()})
    second = hub.publish("someone/pack", {"steering_vector.safetensors": vector(1).to_bytes()})
    newest = sk.SteeringVector.from_pretrained("someone/pack")
    assert newest.digest() == vector(1).digest()
    assert f"@{second}/" in str(newest.source)
    pinned = sk.SteeringVector.from_pretrained("someone/pack", revision=first)
    assert pinned.digest() == vector().digest()
    hub.requests.clear()
    assert sk.SteeringVector.from_pretrained("someone/pack", local_files_only=True).digest() == vector(1).digest()
    assert not hub.requests
    with pytest.raises(OfflineError):
        sk.SteeringVector.from_pretrained("someone/other", local_files_only=True)
    with pytest.raises(AccessError, match="no such repository"):
        sk.SteeringVector.from_pretrained("someone/other")


def test_what_peft_and_transformers_take_beside_the_name(hub: LoopbackHub, tmp_path: Path) -> None:
    """A token of the call, a cache of the call, and a folder in the repository."""
    pack, inner = vector().to_bytes(), vector(1).to_bytes()
    hub.publish("someone/pack", {"steering_vector.safetensors": pack, "layers/late/steering_vector.safetensors": inner})
    whole = sk.SteeringVector.from_pretrained("someone/pack", token="hf_of_this_call", cache_dir=tmp_path / "own")
    assert whole.digest() == vector().digest()
    sent = {each.headers.get("Authorization") for each in hub.requests}
    assert sent == {"Bearer hf_of_this_call", None}  # none follows a redirect to where the file is stored
    assert (tmp_path / "own" / "blobs" / hashlib.sha256(pack).hexdigest()).is_file()
    with pytest.raises(OfflineError):
        sk.SteeringVector.from_pretrained("someone/pack", local_files_only=True)  # another cache
    part = sk.SteeringVector.from_pretrained("someone/pack", subfolder="layers/late")
    assert part.digest() == vector(1).digest()
    with pytest.raises(PackNotFoundError):
        sk.SteeringVector.from_pretrained("someone/pack", subfolder="layers/early")
    vector(2).save_pretrained(tmp_path / "saved" / "late")
    assert sk.SteeringVector.from_pretrained(tmp_path / "saved", subfolder="late").digest() == vector(2).digest()
    with pytest.raises(ReferenceFormatError, match="a token is given"):
        sk.SteeringVector.from_pretrained("https://example.org/pack.safetensors", token="hf_secret")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"policy": "loose"}, "policy is 'loose'"),
        ({"local_files_only": "no"}, "offline is 'no'"),
        ({"force_download": 1}, "force_download is 1"),
    ],
)
def test_impossible_options_are_refused_before_the_hub_is_asked(hub: LoopbackHub, options: Any, problem: str) -> None:
    hub.publish("someone/pack", {"steering_vector.safetensors": vector().to_bytes()})
    with pytest.raises(OptionError, match=problem):
        sk.SteeringVector.from_pretrained("someone/pack", **options)
    assert not hub.requests


def test_an_empty_folder_name_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="empty"):
        vector().save_pretrained("")
    assert not list(tmp_path.iterdir())


def transfers(hub: LoopbackHub, pack: bytes) -> list[str]:
    """What was asked for of a file: by its name, or, where large files are stored, by its digest."""
    names = ("steering_vector.safetensors", hashlib.sha256(pack).hexdigest())
    return [each.path for each in hub.requests if any(name in each.path for name in names)]


def test_a_pack_is_downloaded_again_where_that_is_asked_for(hub: LoopbackHub, cache: Path) -> None:
    """A cached file that was damaged is found by its digest, and mended by `force_download`, as in huggingface_hub."""
    pack = vector().to_bytes()
    commit = hub.publish("someone/pack", {"steering_vector.safetensors": pack})
    load = partial(sk.SteeringVector.from_pretrained, "someone/pack", revision=commit)
    load()
    hub.requests.clear()
    load()
    assert not transfers(hub, pack)
    (blob,) = (path for path in (cache / "blobs").iterdir() if path.is_file())
    blob.chmod(0o600)
    blob.write_bytes(pack[:-1] + bytes([pack[-1] ^ 1]))
    assert load(force_download=True).digest() == vector().digest()
    assert transfers(hub, pack)
    assert load().digest() == vector().digest()
    with pytest.raises(OfflineError, match="downloaded again"):
        load(force_download=True, local_files_only=True)
    made = vector(1).save_pretrained(cache.parent / "here")
    assert sk.SteeringVector.from_pretrained(made.parent, force_download=True).digest() == vector(1).digest()


def test_what_is_saved_is_plain_safetensors_and_loads_again(cache: Path, tmp_path: Path) -> None:
    made = vector()
    path = made.save_pretrained(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "steering_vector.safetensors"
    tensors = safetensors.torch.load_file(path)
    for key, tensor in made.tensors.items():
        assert torch.equal(tensors[f"directions.{key.layer}.resid_post"], tensor)
    for name in (tmp_path / "new" / "folder", str(tmp_path / "new" / "folder"), path):
        loaded = sk.SteeringVector.from_pretrained(name)
        assert loaded.digest() == made.digest()
        assert loaded.metadata.license == made.metadata.license
    half = made.save_pretrained(tmp_path / "half", dtype="float16")
    assert {tensor.dtype for tensor in safetensors.torch.load_file(half).values()} == {torch.float16}


class Elsewhere:
    """A path of another library than pathlib."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_any_path_like_object_is_a_path(cache: Path, tmp_path: Path) -> None:
    made = vector()
    path = made.save_pretrained(Elsewhere(tmp_path))  # type: ignore[arg-type]
    for load in (sk.load_vector, sk.SteeringVector.load, sk.SteeringVector.from_pretrained):
        found = load(Elsewhere(path))  # type: ignore[arg-type]
        assert found.digest() == made.digest()
        assert "Elsewhere" not in str(found.source)
    assert sk.SteeringVector.from_pretrained(Elsewhere(tmp_path)).digest() == made.digest()  # type: ignore[arg-type]
    tiny.save("qwen2", tmp_path / "model")
    assert sk.load(Elsewhere(tmp_path / "model")).record.model_type == "qwen2"  # type: ignore[arg-type]


def test_a_pointer_of_git_lfs_is_called_that(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "pack.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")
    with pytest.raises(SteerKitError, match="git lfs pull"):
        sk.load_vector(path)


def test_a_folder_may_hold_the_model_as_well(tmp_path: Path, cache: Path) -> None:
    made = vector()
    made.save_pretrained(tmp_path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    safetensors.torch.save_file({"lora": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    assert sk.SteeringVector.from_pretrained(tmp_path).digest() == made.digest()
    (tmp_path / "steering_vector.safetensors").unlink()
    with pytest.raises(SteerKitError, match=r"2 \.safetensors files"):
        sk.SteeringVector.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["./missing", "../missing", "missing/a/b", "x" * 5000, "./" + "x" * 5000])
def test_a_path_that_is_missing_is_not_taken_for_a_repository(name: str, cache: Path) -> None:
    with pytest.raises(PackNotFoundError):
        sk.SteeringVector.from_pretrained(name)


def test_a_folder_goes_before_a_repository_and_a_bundled_pack(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("someone/pack", "cmrm-llava-demo"):
        vector(3).save_pretrained(name)
        assert sk.SteeringVector.from_pretrained(name).digest() == vector(3).digest()
    assert not hub.requests


def test_a_revoked_pack_is_refused_by_this_door_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vector().save_pretrained(tmp_path / "pack")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    trust = tmp_path / "trust.toml"
    trust.write_text(f"[[revoked.packs]]\nsha256 = '{digest}'\nreason = 'it removes refusals'\n")
    monkeypatch.setenv("STEERKIT_TRUST", str(trust))
    with pytest.raises(UntrustedPackError, match="it removes refusals"):
        sk.SteeringVector.from_pretrained(tmp_path / "pack")
    assert sk.SteeringVector.from_pretrained(tmp_path / "pack", policy="off").digest() == vector().digest()
    with pytest.raises(SteerKitError, match="sha256"):
        sk.SteeringVector.from_pretrained(tmp_path / "pack", sha256="0" * 64, policy="off")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match="is a file"):
        vector().save_pretrained(tmp_path / "file")
    for wrong in (None, 3):
        with pytest.raises(OptionError):
            sk.SteeringVector.from_pretrained(wrong)  # type: ignore[arg-type]
        with pytest.raises(OptionError):
            vector().save_pretrained(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["file.safetensors", "a" * 300, "folder/" + "b" * 300, "no\0name", "file.txt/below"])
def test_what_can_not_be_written_is_said_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    """A limit of the size of files, as a full disk; paths that the system does not take."""
    made = vector()
    (tmp_path / "file.txt").write_text("mine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(path.name for path in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for save in (made.save, made.save_pretrained):
            with pytest.raises(FileWriteError, match="can't be written") as caught:
                save(tmp_path / name)
            assert isinstance(caught.value.__cause__, (OSError, ValueError))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_dir()) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "file.txt"]
