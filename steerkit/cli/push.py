"""`steerkit push`: publish a pack with its card on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import clean, one_line, print_json, say
from steerkit.errors import OptionError


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack.", show_default=False)],
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is created if need be.", show_default=False)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show everything and upload nothing.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Also write the files to this folder.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    branch: Annotated[str | None, typer.Option(help="Where the commit goes. Default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence of the pack, such as MIT.")] = None,
    description: Annotated[str | None, typer.Option(help="What the vector does.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="Repeat for more.")] = None,
    model_id: Annotated[str | None, typer.Option(help="owner/name of the base model.")] = None,
    model_revision: Annotated[str | None, typer.Option(help="Commit of the base model.")] = None,
    anchor_name: Annotated[str | None, typer.Option(help="Source of the anchor set.")] = None,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the pack with this private key, a PEM file.")
    ] = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Publish a pack on the Hugging Face hub.

    The pack, a model card and its plots go up in one commit. A pack that does not say its licence, its
    model's id and commit, and where its anchors are from is refused; the options fill in what is missing. A signature
    beside the pack, FILE.sig, goes with it.
    """
    from steerkit._internal.files import write_atomically
    from steerkit.vectors import SteeringVector
    from steerkit_vectors_hub.sources.base import SIGNATURE

    vector = SteeringVector.load(file)
    signature = file.with_name(file.name + SIGNATURE)
    changes = _changes(
        vector.metadata,
        {"license": license_, "description": description, "authors": tuple(author) if author else None},
        {"id": model_id, "revision": model_revision},
        {"name": anchor_name},
    )
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
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, data in done.files.items():
            write_atomically(output / name, data)
    if as_json:
        print_json(
            {
                "repo_id": done.repo_id,
                "files": {name: len(data) for name, data in done.files.items()},
                "card": done.card,
                "sha256": done.sha256,
                "revision": done.revision,
                "ref": done.ref,
                "uploaded": not dry_run,
            }
        )
        return
    if dry_run:
        typer.echo(clean(done.card))
    for name, data in done.files.items():
        say(f"{'would upload' if dry_run else 'uploaded'}  {name}, {len(data)} bytes")
    typer.echo(one_line(done.ref))


def _changes(metadata: Any, own: dict[str, Any], model: dict[str, Any], anchors: dict[str, Any]) -> dict[str, Any]:
    """The fields of the document that the options change."""

    def given(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}

    changes = given(own)
    if given(model):
        changes["model"] = {**metadata.model.model_dump(), **given(model)}
    if given(anchors):
        if metadata.anchors is None:
            raise OptionError(
                "--anchor-name is given, and the pack records no anchors",
                expected="a pack that was fitted on some",
                fix="leave it out, or record them: vector.with_metadata(anchors={name, sha256, size})",
            )
        changes["anchors"] = {**metadata.anchors.model_dump(), **given(anchors)}
    return changes
