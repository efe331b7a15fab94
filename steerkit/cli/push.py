"""`steerkit push`: publish a pack with its card on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import say
from steerkit.errors import OptionError


def push(
    file: Path,
    repo_id: str,
    *,
    dry_run: bool = False,
    output: Path | None = None,
    private: bool = False,
    branch: str | None = None,
    message: str | None = None,
    license_: str | None = None,
    description: str | None = None,
    author: list[str] | None = None,
    model_id: str | None = None,
    model_revision: str | None = None,
    anchor_name: str | None = None,
    sign_key: Path | None = None,
) -> Result:
    """Publish a pack on the Hugging Face hub.

    The pack, a model card and its plots go up in one commit. A pack that does not say its licence, its
    model's id and commit, and where its anchors are from is refused; the options fill in what is missing. A signature
    beside the pack, FILE.sig, goes with it.

    Args:
        file (FILE): The pack.
        repo_id (OWNER/NAME): The repository; it is created if need be.
        dry_run: Show everything and upload nothing.
        output (FOLDER): Also write the files to this folder.
        private: Create a private repository.
        branch: Where the commit goes. Default: main.
        message: Message of the commit.
        license_: Licence of the pack, such as MIT.
        description: What the vector does.
        author: An author of the pack.
        model_id: owner/name of the base model.
        model_revision: Commit of the base model.
        anchor_name: Source of the anchor set.
        sign_key (KEY): Sign the pack with this private key, a PEM file.
    """
    from steerkit._internal.files import write_atomically
    from steerkit_vectors_hub.load import load_vector
    from steerkit_vectors_hub.sources.base import SIGNATURE

    if output is not None and output.exists() and not output.is_dir():
        raise OptionError(f"the output {str(output)!r} is a file", expected="a folder")
    vector = load_vector(file)  # what somebody revoked must not be published again by accident
    signature = file.with_name(file.name + SIGNATURE)
    own = {"license": license_, "description": description, "authors": tuple(author) if author else None}
    changes = _changes(vector.metadata, own, {"id": model_id, "revision": model_revision}, {"name": anchor_name})
    if changes:
        vector = vector.with_metadata(**changes)
    done = vector.push_to_hub(
        repo_id,
        private=True if private else None,
        revision=branch,
        commit_message=message,
        dry_run=dry_run,
        signature=signature if signature.exists() else None,
        sign_key=sign_key,
    )
    for name, data in done.files.items():
        if output is not None:
            write_atomically(opt.output(output / name, force=True, FILE=file), data)
        say(f"{'would upload' if dry_run else 'uploaded'}  {name}, {len(data)} bytes")
    document = {
        "repo_id": done.repo_id,
        "files": {name: len(data) for name, data in done.files.items()},
        "card": done.card,
        "sha256": done.sha256,
        "revision": done.revision,
        "ref": done.ref,
        "uploaded": not dry_run,
    }
    return Result(document, [*(done.card.splitlines() if dry_run else ()), done.ref])


def _changes(metadata: Any, own: dict[str, Any], model: dict[str, Any], anchors: dict[str, Any]) -> dict[str, Any]:
    """The fields of the document that the options change."""
    own, model, anchors = ({k: v for k, v in each.items() if v is not None} for each in (own, model, anchors))
    if model:
        own["model"] = {**metadata.model.model_dump(), **model}
    if anchors and metadata.anchors is None:
        raise OptionError(
            "--anchor-name is given, and the pack records no anchors",
            expected="a pack that was fitted on some",
            fix="leave it out, or record them: vector.with_metadata(anchors={name, sha256, size})",
        )
    if anchors:
        own["anchors"] = {**metadata.anchors.model_dump(), **anchors}
    return own
