"""Publishing a vector: the pack, its card and its plots, checked for completeness and uploaded in one commit."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from steerkit._internal.validation import expect
from steerkit.vectors import PACK, PackMetadata, Publication, SteeringVector
from steerkit.vectors.formats import parse_pack
from steerkit_vectors_hub import plots
from steerkit_vectors_hub.card import CURVE, PLOT, model_card
from steerkit_vectors_hub.errors import PublishError, ReferenceFormatError
from steerkit_vectors_hub.refs import Ref, is_commit, parse_ref
from steerkit_vectors_hub.signing.bundle import parse_signature, read_signature
from steerkit_vectors_hub.signing.signer import sign
from steerkit_vectors_hub.sources.base import SIGNATURE, require_network
from steerkit_vectors_hub.sources.huggingface import api, translated

_File = str | Path
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack")
"""Endings of files that are a model or a vector, beside which no pack is put."""


def missing_fields(metadata: PackMetadata) -> dict[str, str]:
    """What a pack must still say before it is published: each field, and what belongs there."""
    missing: dict[str, str] = {}
    if _says_nothing(metadata.license or ""):
        missing["license"] = "the licence of the pack"
    if not _REPOSITORY.fullmatch(metadata.model.id):
        missing["model.id"] = f"owner/name of the base model (it is {metadata.model.id[:80]!r})"
    if not is_commit(metadata.model.revision or ""):
        missing["model.revision"] = f"the base model's commit (it is {(metadata.model.revision or '')[:80]!r})"
    stores = any(intervention.stored for intervention in metadata.interventions)
    if metadata.anchors is None:
        if stores:
            missing["anchors"] = "the samples that it was fitted on"
    elif _says_nothing(metadata.anchors.name):
        missing["anchors.name"] = "the source of the samples that it was fitted on"
    return missing


def _says_nothing(text: str) -> bool:
    """Whether a field is empty, or filled with a placeholder."""
    return text.strip(" -_.?/").lower() in ("", "unknown", "none", "null", "na", "n/a", "tbd", "todo", "unspecified")


def publication(
    vector: SteeringVector, repo_id: str, *, revision: str | None, signature: _File | None, sign_key: _File | None
) -> Publication:
    """Everything that would be uploaded.

    Raises:
        SigningError: The key can't be used.
        SignatureFormatError: The signature can't be read.
        PublishError: The metadata are incomplete; the message names every field.
        ReferenceFormatError: The name of the repository or of its branch is malformed.
    """
    expect(str, "owner/name", repo_id=repo_id)
    if repo_id and "/" not in repo_id:
        raise ReferenceFormatError(
            f"the repository {repo_id!r} has no owner",
            expected="owner/name, which the model card names as well",
            fix="put your user name, or your organisation's, in front; `hf auth whoami` says it",
        )
    if parse_ref(f"hf://{repo_id}") != Ref("hf", repo_id):
        raise ReferenceFormatError(
            f"{repo_id!r} names more than a repository",
            expected="owner/name",
            fix="give a branch by itself (revision=); the file's name is always " + PACK,
        )
    parse_ref(f"hf://{repo_id}", revision=revision)
    if missing := missing_fields(vector.metadata):
        raise PublishError(
            f"the pack does not say {', '.join(missing)}",
            expected="; ".join(f"{name}: {what}" for name, what in missing.items()),
            fix="vector.with_metadata(...), or the options --license, --model-id, --model-revision and --anchor-name "
            "of `steerkit push`",
        )
    data = vector.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    ref = Ref("hf", repo_id, revision, None, digest)
    by_layer = plots.norm_series(parse_pack(data))
    by_strength = plots.strength_curves(vector.metadata.strength)
    files = {PACK: data}
    if sign_key is not None:
        with tempfile.TemporaryDirectory(prefix="steerkit-") as folder:
            path = Path(folder) / PACK
            path.write_bytes(data)
            files[PACK + SIGNATURE] = sign(path, key=sign_key).read_bytes()
    elif signature is not None:
        files[PACK + SIGNATURE] = _fitting(Path(signature), digest)
    card = model_card(vector.metadata, by_layer, repo_id=repo_id, ref=ref.unpinned, sha256=digest)
    files["README.md"] = card.encode()
    if by_layer:
        files[PLOT] = plots.norms_png(by_layer)
    if by_strength:
        files[CURVE] = plots.strength_png(by_strength, vector.metadata.strength.recommended)
    return Publication(repo_id, files, digest, None, str(ref))


def _fitting(path: Path, digest: str) -> bytes:
    """A signature, if it is of the file that would be uploaded."""
    raw = read_signature(path)
    if (found := parse_signature(raw).sha256) != digest:
        raise PublishError(
            f"the signature {str(path)!r} is of a file with sha256 {found}",
            expected=f"one of the pack that would be published, {digest}",
            fix="the metadata were changed after signing, or steerkit writes the pack differently: sign it anew with "
            "--sign-key (sign_key=), or save the changed pack, sign that, and publish it without further changes",
        )
    return raw


def upload(
    made: Publication,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Publication:
    """Publish in one commit what `publication` made; see `SteeringVector.push_to_hub`."""
    require_network("publishing")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    client, repo_id = api(token), made.repo_id
    with translated(f"hf://{repo_id}"):
        if private and client.repo_exists(repo_id) and not client.model_info(repo_id).private:
            raise PublishError(
                f"the repository {repo_id} is there already, and public",
                expected="a private one, or none",
                fix="make it private on the hub's page, or name another",
            )
        client.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            client.create_branch(repo_id, branch=revision, exist_ok=True)
        there = {each.rfilename for each in client.model_info(repo_id, revision=revision).siblings or ()}
        if others := sorted(name for name in there - {PACK} if name.endswith(_WEIGHTS)):
            raise PublishError(
                f"the repository {repo_id} holds {', '.join(others[:5])}",
                expected="a repository for this pack alone",
                fix="publish it under another name",
            )
        # a signature or a plot of the pack that was there before belongs to no file of this one
        stale = ({PACK + SIGNATURE, PLOT, CURVE} & there) - set(made.files)
        operations = [
            *(CommitOperationAdd(name, data) for name, data in made.files.items()),
            *(CommitOperationDelete(name) for name in sorted(stale)),
        ]
        message = commit_message or f"Add {PACK}"
        done = client.create_commit(repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr)
    return replace(made, revision=done.oid, ref=f"hf://{repo_id}@{done.oid}/{PACK}#sha256={made.sha256}")
