"""`steerkit pack`: inspect, compare, sign and verify packs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import bar, fields, table
from steerkit.policy import Policy

if TYPE_CHECKING:
    from steerkit.vectors.formats import RawPack
    from steerkit_vectors_hub.diff import PackDifference

BAR = 40
WIDTH = 300


def inspect(pack: opt.PackRef) -> Result:
    """Show what a pack holds, after an audit.

    Every field of its document, and the norm of its directions by layer. No model is needed.
    """
    found = pack.resolve()
    raw, metadata = opt.read_pack(found)
    document = {
        "file": str(found.path),
        "pinned": found.pinned,
        "bytes": len(raw.data),
        "metadata": metadata,
        "tensors": _tensors(raw),
    }
    return Result(document, _inspected(found.ref, document))


def _tensors(raw: RawPack) -> list[dict[str, Any]]:
    from steerkit.vectors.formats import parse_tensor_name

    found: list[dict[str, Any]] = []
    for name, info in raw.tensors.items():
        layer, site, part, tower = parse_tensor_name(name)
        stored = {"dtype": info.dtype, "shape": list(info.shape), "norms": raw.norms(name).tolist()}
        found.append({"layer": layer, "site": sk.interventions.site_label(site, tower), "name": part, **stored})
    return sorted(found, key=lambda entry: (entry["site"], entry["name"], entry["layer"]))


def _inspected(ref: str, document: dict[str, Any]) -> Iterator[Any]:
    tensors = document["tensors"]
    yield f"{ref}  {document['bytes']} bytes, {len(tensors)} directions, audit passed"
    yield from fields(document["metadata"])
    if not tensors:
        yield "No stored directions: this vector is measured on each prompt."
        return
    largest = max(max(entry["norms"]) for entry in tensors)
    rows = []
    for entry in tensors:
        norm, count = max(entry["norms"]), len(entry["norms"])
        site = f"{entry['site']} {entry['name']}".strip() + (f" ({count} rows)" if count > 1 else "")
        rows.append((entry["layer"], site, bar(norm, largest, BAR), float(norm)))
    title = "Norm of the directions, by layer"
    yield table(("layer", "site", "", "norm"), rows, plain=True, title=title, title_justify="left")


def diff(first: str, second: str, *, offline: bool = False) -> Result:
    """Show what differs between two packs.

    Cosine and norms of their directions by layer, their interventions and every other field of their documents. Exit
    code 0, whether they differ or not.

    Args:
        first (A): A pack: what `steerkit pull` takes.
        second (B): Another pack.
        offline: Use the cache alone. Also: STEERKIT_OFFLINE=1.
    """
    from dataclasses import asdict

    from steerkit_vectors_hub.diff import difference

    packs = []
    for ref in (first, second):
        raw, document = opt.read_pack(opt.PackRef(ref, offline=offline).resolve())
        raw.document.update(document)
        packs.append(raw)
    found = difference(*packs)
    return Result({"a": first, "b": second, "same": found.same, **asdict(found)}, _differences(found))


def _differences(found: PackDifference) -> Iterator[Any]:
    if found.same:
        yield "The packs are the same: every direction, intervention and field."
        return
    yield "Directions: " + ("the same, bit for bit" if found.same_tensors else "they differ")
    if not found.same_tensors:
        heads = ("layer", "site", "norm A", "norm B", "cosine", "change")
        rows = (
            (each.layer, f"{each.site} {each.name}".strip(), *each.norms, each.cosine, each.relative_change)
            for each in found.directions
        )
        yield table(heads, rows, plain=True)
    for title, differences in (("Interventions", found.interventions), ("Other fields", found.fields)):
        yield f"{title}: " + (f"{len(differences)} differences" if differences else "the same")
        for each in differences:
            mine, theirs = (json.dumps(value, ensure_ascii=False)[:WIDTH] for value in each.values)
            yield from (each.field, f"  A {mine}", f"  B {theirs}")


def sign(
    file: Path,
    *,
    key: Path | None = None,
    certificate: Path | None = None,
    chain: list[Path] | None = None,
    keyless: bool = False,
    force: bool = False,
) -> Result:
    """Sign a pack.

    The signature is one file beside it, FILE.sig, over all of its bytes, as the OpenSSF model-signing library makes it.
    With --keyless, the account that you log in with becomes public.

    Args:
        file (FILE): The pack.
        key: Private key, a PEM file. The password of an encrypted one is in STEERKIT_KEY_PASSWORD.
        certificate: Certificate of the key, a PEM file.
        chain: A certificate between it and the root, a PEM file.
        keyless: Sign with an account, through Sigstore. It needs a network.
        force: Overwrite the output.
    """
    from steerkit_vectors_hub.load import check_handed_on
    from steerkit_vectors_hub.resolve import resolve
    from steerkit_vectors_hub.signing import signer
    from steerkit_vectors_hub.signing.bundle import parse_signature, read_signature
    from steerkit_vectors_hub.signing.revocation import fingerprints

    if file.is_file():  # what else it is, the signer refuses
        check_handed_on(resolve(str(file.absolute())))
    made = signer.sign(file, key=key, certificate=certificate, chain=chain or (), keyless=keyless, overwrite=force)
    found = parse_signature(read_signature(made))
    prints = fingerprints(found)
    return Result({"signature": made, "kind": found.kind, "fingerprint": prints[0], "sha256": found.sha256})


def verify(
    pack: opt.PackRef,
    *,
    with_: list[str] | None = None,
    model: str | None = None,
    strength: float | None = None,
    policy: Policy = "strict",
    screen: bool = True,
    canaries: str | None = None,
    trust: Path | None = None,
    weights: opt.Weights,
    model_revision: str | None = None,
) -> Result:
    """Check who signed a pack, and what it does to a model.

    Whether it is sound, signed and current, belongs to the model, and what it does to its refusals.

    One line for each check: pass, warn, fail or skip. Exit code 1 if one failed; with --policy warn or off, only for
    a file that is not a valid pack, or of other sizes than the model.

    Args:
        pack: The pack.
        with_ (REF): Another pack that will be used together with it; they are judged as one.
        model (MODEL): Repository id or folder of the model to check it against.
        strength: Strength to judge the dose and to screen at. Default: what the pack recommends.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        screen: Let the model answer canaries with the pack and without.
        canaries (SET): Canaries: general, or a JSON file. Default: those in the model's folder.
        trust (FILE): Trust file. Default: the user's own.
        weights: How the model is loaded.
        model_revision: Branch, tag or commit of the model's repository.
    """
    from steerkit.cli.loading import import_libraries, load_model
    from steerkit.cli.progress import progress

    opt.finite([] if strength is None else [strength], "--strength")
    import_libraries()
    from steerkit_vectors_hub.signing.trust import read_trust
    from steerkit_vectors_hub.verify import verify as verified

    whom = None if trust is None else read_trust(trust)
    vlm = None if model is None else load_model(model, weights.given(model_revision))
    with progress(f"checking {pack.ref}") as shown:
        report = verified(
            [pack.ref, *(with_ or ())] if with_ else pack.ref,
            model=vlm,
            strength=strength,
            policy=policy,
            trust=whom,
            screening=screen,
            canaries=canaries,
            progress=shown,
            **pack.options(),
        )
    lines = []
    for check in report.checks:
        lines += [str(check), *([f"      fix: {check.fix}"] if check.fix and check.status in ("fail", "warn") else [])]
    return Result(report, lines, code=0 if report.ok else 1)
