"""The steering vector: what is measured once, shared as a pack, and applied."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any, Self, cast

import safetensors.torch

import steerkit  # the face, which alone knows the hub
from steerkit._internal.files import user_path, write_atomically
from steerkit._internal.validation import PATH, expect
from steerkit.errors import NonFiniteError, OptionError, SteerKitError
from steerkit.policy import Policy
from steerkit.vectors._algebra import Algebra
from steerkit.vectors._directions import Dtype, Key
from steerkit.vectors._metadata import parse_metadata
from steerkit.vectors._publication import PACK, Publication
from steerkit.vectors.formats import (
    encode_document,
    parse_pack,
    parse_tensor_name,
    read_file,
    refused,
    tensor_name,
)

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class SteeringVector(Algebra):
    """Directions, the interventions that use them, and where they come from.

    Immutable: algebra returns a new vector whose `metadata.history` says what was done. What was measured of the old
    one is not claimed of the new: metrics and the strength record are dropped, but for that of a multiple; see `*`.

    To train directions, build a vector around tensors that require gradients in each step, and steer with it: the
    vector holds copies, and gradients reach the tensors through them.

    Attributes:
        tensors: `{Key: [hidden] or [k, hidden]}`, on the CPU.
        metadata: The document that is saved with them, interventions included; its `dtype` is that of the tensors.
        source: Where it was loaded from; of a vector that was changed since, None.

    Raises:
        OptionError: A tensor has the wrong shape or type, or an intervention reads a direction that is not there.
        NonFiniteError: A direction holds NaN or infinity.
        LayerRangeError: A direction lies outside the model's layers.
    """

    def save(self, path: str | Path, *, dtype: Dtype | None = None) -> Path:
        """Write a pack: one safetensors file, complete or not at all.

        Args:
            path: Where to; an existing file is replaced once the new one is whole.
            dtype: Element type of the directions; default: as they are.

        Returns:
            The path.

        Raises:
            OptionError: The path is none, or a folder; or there is no such type.
            PackFormatError: What would be written could not be read again, such as an outlier among the directions.
            FileWriteError: The disk is full, the path too long, or the folder not one to write to; what was at the path
                stays.
        """
        expect(PATH, "a path", path=path)
        vector = self if dtype is None else self.to(dtype)
        path = user_path(path)
        if os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises for a name that is too long
            raise OptionError(f"the path {str(path)!r} is a folder", expected="the name of a file, new or old")
        data = vector.to_bytes(name=str(path))
        write_atomically(path, data)
        return path

    def to_bytes(self, *, name: str = "the pack") -> bytes:
        """The pack that `save` writes.

        Args:
            name: What to call it in messages.

        Raises:
            PackFormatError: As for `save`.
        """
        document = self.metadata.model_copy(update={"tensors_sha256": self.digest()}).model_dump(mode="json")
        data = safetensors.torch.save(
            {tensor_name(*key): tensor.detach() for key, tensor in self.tensors.items()},
            metadata=encode_document(document),
        )
        parse_pack(data, name=name)
        return data

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a pack: parse, audit, construct; nothing is built before the audit has passed.

        Raises:
            OptionError: The path is none.
            PackFormatError: The file is missing, truncated, forged or no pack.
            NonFiniteError: A direction holds NaN or infinity.
        """
        expect(PATH, "a path", "sk.load_vector takes references, too", path=path)
        return cls.from_bytes(read_file(path), source=os.fsdecode(path))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, source: str = "the data") -> Self:
        """The same as `load`, from the bytes of a pack.

        Args:
            data: All of the file.
            source: Where they are from, for messages and for the attribute of that name.
        """
        expect(bytes | bytearray | memoryview, "the bytes of a pack", data=data)
        raw = parse_pack(bytes(data), name=source)  # a copy of what can be changed: what is checked is what is used
        metadata = parse_metadata(raw.document, name=source)
        try:
            loaded = safetensors.torch.load(raw.data)
            keys = {name: Key(*cast("Any", parse_tensor_name(name))) for name in loaded}
            vector = cls({keys[name]: tensor for name, tensor in loaded.items()}, metadata, source)
        except NonFiniteError:
            raise
        except (safetensors.SafetensorError, SteerKitError) as error:
            raise refused(f"{source}: {error}", expected="a document that fits its tensors") from error
        if vector.metadata.dtype != metadata.dtype:
            raise refused(
                f"{source}: directions in {vector.metadata.dtype}", expected=f"{metadata.dtype}, as documented"
            )
        return vector

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        force_download: bool = False,
        sha256: str | None = None,
        policy: Policy = "strict",
    ) -> SteeringVector:
        """Load a vector from the Hugging Face hub, or from a folder that `save_pretrained` has written.

        The same as `steerkit.load_vector`, with the same checks, under the name that users of transformers and PEFT
        know.

        Args:
            name: `owner/name` on the hub; a folder, which goes first, and in it the file that `save_pretrained` writes;
                or any reference that `load_vector` takes.
            revision: Branch, tag or commit of a repository.
            subfolder: Where in the repository or folder the file is that `save_pretrained` writes.
            token: Default: that of `hf auth login` or HF_TOKEN.
            cache_dir: The folder of steerkit's cache; default: STEERKIT_CACHE, or the user's own.
            local_files_only: Use the cache alone; default: as STEERKIT_OFFLINE and HF_HUB_OFFLINE say.
            force_download: Transfer it again, whatever the cache holds.
            sha256: The only digest of the file to accept.
            policy: What becomes of a failed check: `strict` (an error), `warn` or `off`.

        Raises:
            UntrustedPackError: A check failed, under `strict`.
            SteerKitError: Whatever else `load_vector` raises.

        Example:
            >>> vector = sk.SteeringVector.from_pretrained("owner/name", revision="v1.0")
        """
        expect(PATH, "owner/name, a folder, or another reference", name=name)
        expect(str | None, "a path in the repository or folder", subfolder=subfolder)
        place = os.fsdecode(name)
        if subfolder is not None:
            place = f"{place}/{subfolder.strip('/')}/{PACK}"
        ref: str | Path = place
        if os.path.exists(name):  # noqa: PTH110 - `Path.exists` raises for a name that is too long
            ref = Path(place).absolute()  # a name without a slash would be that of a bundled pack
        elif isinstance(name, str) and _REPOSITORY.fullmatch(name) and not name.startswith("."):  # `./name` is a path
            ref = f"hf://{place}"
        where: dict[str, Any] = {"token": token, "cache": cache_dir, "offline": local_files_only}
        where["force_download"] = force_download
        return steerkit.load_vector(ref, revision=revision, sha256=sha256, policy=policy, **where)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: Dtype | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> Path:
        """Write the pack into a folder, under the name that it has on the hub; `from_pretrained` loads it.

        Args:
            folder: Where to; made if need be. Other files in it stay.
            dtype: Element type of the directions; default: as they are.
            push_to_hub: Publish it as well, as `push_to_hub` does.
            repo_id: Where on the hub.
            **hub: Other arguments of `push_to_hub`.

        Returns:
            The path of the pack.

        Raises:
            OptionError: The path is a file; there is no such type; or what is said of the hub can't be.
            PackFormatError: As for `save`.
            FileWriteError: As for `save`.
            PublishError: As for `push_to_hub`, once the pack is written.
        """
        expect(PATH, "a folder", folder=folder)
        expect(bool, "True or False", push_to_hub=push_to_hub)
        known = list(inspect.signature(self.push_to_hub).parameters)
        said = [*(["repo_id"] if repo_id is not None else []), *hub]
        if (said and not push_to_hub) or not set(said) <= set(known):
            raise OptionError(
                f"save_pretrained is given {', '.join(said)}", expected="push_to_hub=True with " + ", ".join(known)
            )
        if push_to_hub and repo_id is None:
            raise OptionError("push_to_hub=True without a repo_id", expected="repo_id='owner/name'")
        if not os.fspath(folder):
            raise OptionError("the folder is an empty text", expected="a folder, new or old", fix="'.' for this one")
        folder = user_path(folder)
        if os.path.exists(folder) and not folder.is_dir():  # noqa: PTH110 - as in `save`
            raise OptionError(
                f"the path {str(folder)!r} is a file", expected="a folder, new or old", fix="save(path) writes one file"
            )
        vector = self if dtype is None else self.to(dtype)
        path = vector.save(folder / PACK)
        if repo_id is not None:
            vector.push_to_hub(repo_id, **hub)
        return path

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        dry_run: bool = False,
        signature: str | Path | None = None,
        sign_key: str | Path | None = None,
    ) -> Publication:
        """Publish the vector on the Hugging Face hub: the pack, a model card and its plots, in one commit.

        Args:
            repo_id: `owner/name`; it is created if need be.
            commit_message: Of the commit.
            private: Whether a repository that is created is private; default: as the hub has it for the owner.
            token: Default: that of `hf auth login` or HF_TOKEN.
            revision: The branch that the commit goes to; default: the main branch.
            create_pr: Propose the commit as a pull request instead.
            dry_run: Make everything and upload nothing.
            signature: A signature of exactly this pack, to be published with it.
            sign_key: A private key, in a PEM file, to sign it with instead.

        Returns:
            The files, and a reference to what was published.

        Raises:
            PublishError: The metadata lack the licence, the model's id or commit, or the source of the anchors; or the
                signature is of another file.
            SigningError: The key can't be used.
            AccessError: The hub refuses the token.
            DownloadError: The hub can't be reached.
        """
        made = steerkit.publication(self, repo_id, revision=revision, signature=signature, sign_key=sign_key)
        if dry_run:
            return made
        return steerkit.upload(
            made, commit_message=commit_message, private=private, token=token, revision=revision, create_pr=create_pr
        )
