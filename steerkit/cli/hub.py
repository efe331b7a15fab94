"""`steerkit hub`: find, get and publish packs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import echo, fields, say, table
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit_vectors_hub.index import Entry
    from steerkit_vectors_hub.resolve import Resolved

_FIGURES = 8
"""As many of a pack's are shown."""


def search(
    words: list[str] | None = None,
    *,
    index: list[Path] | None = None,
    model: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    hub: bool = False,
) -> Result:
    """Find packs.

    In index files, by default that of the bundled packs; with --hub, among the repositories of the Hugging Face hub
    that carry the tag `steerkit`.

    Args:
        words ([WORDS]): All of them must occur.
        index (FILE): An index file. Default: the bundled packs.
        model: Part of the model's id, class or type.
        method: Name of the method.
        metric: Name of a figure that must have been measured.
        hub: Ask the Hugging Face hub instead; WORDS and --method only.
    """
    text = " ".join(words or ())
    if hub:
        opt.refuse({"--index": index, "--model": model, "--metric": metric}, "--hub, which can't look for it")
        return _on_the_hub(text, method)
    from steerkit_vectors_hub.index import bundled_index, read_index, search as find

    indexes = [read_index(path) for path in index] if index else [bundled_index()]
    entries = [entry for each in indexes for entry in each.packs]
    found = find(entries, text, model=model, method=method, metric=metric)
    return Result({"packs": found}, _found(found))


def _on_the_hub(text: str, method: str | None) -> Result:
    from steerkit_vectors_hub.sources.huggingface import MOST_PUBLISHED, published

    names = published(text, method)
    if not names:
        say("No repository matches.")
    if len(names) == MOST_PUBLISHED:
        say(f"These are {MOST_PUBLISHED}; there may be more: look for more words.")
    packs = [{"name": name, "ref": f"hf://{name}"} for name in names]
    return Result({"packs": packs}, [each["ref"] for each in packs])


def _found(found: list[Entry]) -> Iterator[Any]:
    rows = []
    for entry in found:
        about = f"{entry.method} for {entry.model.id or entry.model.architecture}, {entry.license or 'no licence'}"
        pack = dict.fromkeys((entry.name, entry.ref.partition("#")[0], about))
        rows.append(("\n".join(pack), "\n".join(_figures(entry))))
    yield table(("pack", "figures"), rows, show_lines=True) if rows else "No pack matches."


def _figures(entry: Entry) -> list[str]:
    """A line for each condition: without it, a figure of the model alone would pass for one of the pack."""
    lines: dict[str, list[str]] = {}
    for each in entry.metrics[:_FIGURES]:
        lines.setdefault(each.condition[:100], []).append(f"{each.name} {each.value:g}")
    left = len(entry.metrics) - _FIGURES
    shown = [(f"{condition}: " if condition else "") + ", ".join(figures) for condition, figures in lines.items()]
    return [*shown, *([f"and {left} more"] if left > 0 else [])]


def info(pack: opt.PackRef) -> Result:
    """Show what a pack is, by reference.

    Where it comes from, its digest, and what its makers say of it; `steerkit pack inspect` shows every field of the
    file.
    """
    from steerkit_vectors_hub.index import entry_of

    found = pack.resolve()
    entry = entry_of(found)
    document = {**asdict(found), "pack": entry.model_dump(mode="json")}
    shown = {**document["pack"], **{key: document[key] for key in ("path", "revision", "pinned")}}
    shown["norms"] = [f"{each.title}: layers {each.layers[0]} to {each.layers[-1]}" for each in entry.norms]
    del shown["metrics"]
    figures = (f"figure {each.name:.40}  {each.value:g} {each.condition}" for each in entry.metrics)
    return Result(document, [*fields(shown), *figures])


def pull(pack: opt.PackRef, *, output: Path | None = None, force: bool = False) -> Result:
    """Get a pack by reference.

    It is transferred if it is not in the cache yet, hashed and audited. The line `pinned` is a reference to exactly
    this file, for ever: use it where the pack is loaded. A signature that lies beside it comes along, unjudged; a pack
    that was revoked is refused.

    Args:
        pack: The pack.
        output (FILE): Write a copy here, for use without the cache.
        force: Overwrite the output.
    """
    from steerkit_vectors_hub.load import check_handed_on
    from steerkit_vectors_hub.sources.base import SIGNATURE

    beside = None
    if output is not None:
        opt.output(output, force=force, REF=pack.ref)
        beside = output.with_name(output.name + SIGNATURE)
        opt.output(beside, force=force)  # the signature of what was there before would be replaced or removed
    found = pack.resolve()
    opt.read_pack(found)
    check_handed_on(found, offline=True if pack.offline else None)
    kept = found
    if output is not None and beside is not None:
        _copy(found, output, beside)
        kept = replace(found, path=output, signature=beside if found.signature else None)
    signed = "" if found.signature is None else " A signature came with it and was not verified."
    say(("Transferred and audited." if found.transferred else "Already on this machine; audited.") + signed)
    return Result(kept)


def _copy(found: Resolved, output: Path, beside: Path) -> None:
    from steerkit._internal.files import write_atomically
    from steerkit_vectors_hub.signing.bundle import read_signature

    signature = None if found.signature is None else read_signature(found.signature)
    write_atomically(output, found.read())
    if signature is None:
        beside.unlink(missing_ok=True)  # of what was there before
    else:
        write_atomically(beside, signature)


def listing() -> Result:
    """List the packs on this machine.

    The bundled ones, and those in the cache with the reference that they came from. All of them load without a network.
    """
    from steerkit_vectors_hub.bundled import bundled_names, bundled_path
    from steerkit_vectors_hub.cache import Store

    store = Store.default()
    packs: list[dict[str, Any]]
    packs = [{"ref": name, "kind": "bundled", "file": str(bundled_path(name))} for name in bundled_names()]
    there = (record for record in store.records() if store.path(record.sha256).is_file())
    latest = {(record.ref, record.sha256, record.revision, record.file): record for record in there}
    for record in latest.values():
        kept = record.model_dump(include={"ref", "sha256", "revision", "time"})
        packs.append({**kept, "kind": "cache", "file": str(store.path(record.sha256)), "bytes": record.size})
    heads = ("ref", "kind", "sha256", "revision", "time")
    most = {"ref": None, "time": len("2026-01-01")}
    rows = ([(pack.get(head) or "")[: most.get(head, 12)] for head in heads] for pack in packs)
    return Result({"cache": str(store.root), "packs": packs}, iter([table(heads, rows)]))


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
    from steerkit_vectors_hub.sources.base import SIGNATURE

    if output is not None and output.exists() and not output.is_dir():
        raise OptionError(f"the output {str(output)!r} is a file", expected="a folder")
    vector = sk.load_vector(file)  # what somebody revoked must not be published again by accident
    changes = opt.present(license=license_, description=description, authors=author or None)
    if model := opt.present(id=model_id, revision=model_revision):
        changes["model"] = {**vector.metadata.model.model_dump(), **model}
    if anchor_name is not None:
        if vector.metadata.anchors is None:
            raise OptionError(
                "--anchor-name is given, and the pack records no anchors",
                expected="a pack that was fitted on some",
                fix="leave it out, or record them: vector.with_metadata(anchors={name, sha256, size})",
            )
        changes["anchors"] = {**vector.metadata.anchors.model_dump(), "name": anchor_name}
    signature = file.with_name(file.name + SIGNATURE)
    done = (vector.with_metadata(**changes) if changes else vector).push_to_hub(
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
    document = {name: getattr(done, name) for name in ("repo_id", "card", "sha256", "revision", "ref")}
    document |= {"files": {name: len(data) for name, data in done.files.items()}, "uploaded": not dry_run}
    return Result(document, [*(done.card.splitlines() if dry_run else ()), done.ref])


def index(
    refs: list[str],
    *,
    output: Path,
    title: str | None = None,
    add: bool = False,
    offline: bool = False,
    force: bool = False,
) -> None:
    """Write an index of packs.

    Each is found, audited and described with a reference that is pinned to its digest. `steerkit hub search --index`
    and `steerkit hub catalogue` read it.

    Args:
        refs (REF...): The packs.
        output (FILE): The index to write.
        title: Of the index and its catalogue page. Default: with --add, the one it has; steerkit packs.
        add: Keep what the index holds; a pack of the same name is replaced.
        offline: Use the cache alone. Also: STEERKIT_OFFLINE=1.
        force: Overwrite the output.
    """
    from steerkit_vectors_hub.index import Index, make_index, read_index, write_index

    for ref in refs:
        opt.output(output, force=force or add, REF=ref)
    before = read_index(output) if add and output.exists() else Index()
    entries = {entry.name: entry for entry in (*before.packs, *_entries(refs, offline=True if offline else None))}
    write_index(make_index(entries.values(), title=before.title if title is None else title), output)
    echo(f"Wrote {output}: {len(entries)} packs")


def _entries(refs: Iterable[str], *, offline: bool | None) -> Iterator[Entry]:
    """What an index says of each pack, unless two of them have one name."""
    from steerkit_vectors_hub.index import entry_of
    from steerkit_vectors_hub.load import check_handed_on
    from steerkit_vectors_hub.resolve import resolve

    seen: dict[str, tuple[str, Entry]] = {}
    for ref in refs:
        found = resolve(ref, offline=offline)
        if found.kind == "path":
            say(f"{found.pinned} is a path: on other machines the index will not lead to the pack")
        entry = entry_of(found)
        check_handed_on(found, offline=offline)
        other, before = seen.setdefault(entry.name, (ref, entry))
        if before != entry:
            raise OptionError(
                f"{other!r} and {ref!r} are both named {entry.name!r}",
                expected="packs of different names",
                fix="rename one of the files",
            )
        yield entry


def catalogue(index: Path, *, output: Path, force: bool = False) -> None:
    """Make a web page from an index.

    One HTML file that needs nothing else: packs with figures and norms, to be filtered by model, method and metric.

    Args:
        index (INDEX): The index file.
        output (FILE): The page to write.
        force: Overwrite the output.
    """
    from steerkit._internal.files import write_atomically
    from steerkit_vectors_hub.catalogue import page
    from steerkit_vectors_hub.index import read_index

    opt.output(output, force=force, INDEX=index)
    read = read_index(index)
    write_atomically(output, page(read).encode())
    echo(f"Wrote {output}: {len(read.packs)} packs")
