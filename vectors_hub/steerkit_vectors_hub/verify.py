"""Whether packs can be trusted: every check that there is, as a report."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerkit._internal.validation import PATH, expect
from steerkit._text import one_line
from steerkit.analysis import check_dose, stored_norms
from steerkit.errors import NonFiniteError, OptionError, PackFormatError
from steerkit.policy import Check, Policy
from steerkit.steering import check_applied, size_problems
from steerkit.vectors import SteeringVector, as_strengths
from steerkit.vlm import VLM
from steerkit_vectors_hub.errors import DigestMismatchError
from steerkit_vectors_hub.resolve import Resolved, resolve
from steerkit_vectors_hub.screening import CanarySet, screen
from steerkit_vectors_hub.screening.screener import Progress
from steerkit_vectors_hub.signing.check import check_origin
from steerkit_vectors_hub.signing.trust import TrustFile


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked about a pack, or about several that are to be used together.

    Attributes:
        refs: The references that were asked for.
        checks: What was checked, in the order in which it was. Of several packs, `details["pack"]` of a check is the
            reference of the one that it is about; a check without it is about all of them together.
        policy: What decides whether the packs may be used.
        pinned: For each, a reference to exactly the file that was checked; None if it is not a sound pack.
        unusable: Whether one can't be used at all: its file is not a sound pack, or is for a model of other sizes.
    """

    refs: tuple[str, ...]
    checks: tuple[Check, ...]
    policy: Policy = "strict"
    pinned: tuple[str | None, ...] = ()
    unusable: bool = False

    @property
    def ok(self) -> bool:
        """Whether the packs may be used: they can be, and under `strict`, nothing failed."""
        allowed = self.policy != "strict" or all(check.status != "fail" for check in self.checks)
        return allowed and not self.unusable

    def as_json(self) -> dict[str, Any]:
        """What `steerkit verify --json` prints."""
        checks = [check.as_json() for check in self.checks]
        packs = [{"ref": ref, "pinned": pinned} for ref, pinned in zip(self.refs, self.pinned, strict=True)]
        return {"packs": packs, "policy": self.policy, "ok": self.ok, "checks": checks}

    def __str__(self) -> str:
        """One line for each check."""
        return "\n".join(map(str, self.checks))


def verify(
    ref: str | Path | Sequence[str | Path],
    *,
    model: VLM | None = None,
    strength: float | Sequence[float] | None = None,
    policy: Policy = "strict",
    trust: TrustFile | None = None,
    screening: bool = True,
    canaries: CanarySet | str | Path | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check packs: the files, who signed them, what they would add and, given the model, whether they belong to it.

    These are the checks that `load_vector` (those of the pack) and `steer` (those of the model) make by default. Only
    here the model is also screened: it answers canaries with the packs and without, unless something failed before.

    Two packs that pass alone may add up to one that does not: give together what will be used together.

    Args:
        ref: As for `load_vector`, or several of these, which are judged as `steer` would apply them together.
        model: The model with its processor, as `sk.load` returns it; without, what needs it is skipped.
        strength: The strength to judge the dose and to screen at, for all or one for each; default: the one that each
            pack recommends (and to screen, 1 as well).
        policy: `strict`: the report is `ok` if nothing failed; `warn` and `off`: if the files are sound packs, for the
            sizes of the model.
        trust: Whose signatures count; default: the user's trust file.
        screening: Whether to screen; it lets the model answer.
        canaries: What to screen with; see `steerkit_vectors_hub.screening.choose_canaries`.
        revision: As for `load_vector`; for one pack only.
        sha256: As for `load_vector`; for one pack only.
        offline: As for `load_vector`.
        progress: Called after each batch of canaries.

    Returns:
        The report. A file that is damaged, forged or not a pack, or not the pinned one, is a failed check in it.

    Raises:
        OptionError: There is no such policy, no pack, or the strengths are not finite numbers, one or one for each.
        TrustFileError: The trust file or a revocation list in it is malformed.
        SteerKitError: A pack can't be found or transferred, or the canaries can't be prompts of this model.

    Example:
        >>> report = sk.verify("hf://owner/name", model=vlm)
        >>> print(report)
        >>> sk.verify(["hf://owner/name", "other.safetensors"], model=vlm).ok
    """
    if policy not in ("strict", "warn", "off"):
        raise OptionError(f"policy is {policy!r}", expected="strict, warn or off")
    expect(PATH | Iterable, "a reference, or several", ref=ref)
    several = [ref] if isinstance(ref, PATH) else list(ref)
    for each in several:
        expect(PATH, "a reference: a text, or a path", ref=each)
    refs = tuple(map(os.fsdecode, several))
    if not refs or len(set(refs)) < len(refs):
        raise OptionError(f"the packs are {list(refs)}", expected="at least one, and each once")
    if len(refs) > 1 and (revision or sha256):
        raise OptionError(
            "revision or sha256 of several packs", fix="write them in each reference: REF@REVISION#sha256="
        )
    given = None if strength is None else as_strengths(strength, len(refs))
    if given is not None and not all(map(math.isfinite, given)):
        raise OptionError(f"the strength is {strength!r}", expected="a finite number, or one for each pack")
    read = [_read(each, trust, {"revision": revision, "sha256": sha256, "offline": offline}) for each in refs]
    checks = [_about(check, ref, len(refs)) for ref, (found, *_) in zip(refs, read, strict=True) for check in found]
    pinned = tuple(pin for _, pin, _ in read)
    vectors = [vector for *_, vector in read if vector is not None]
    sizes = {(each.metadata.model.hidden_size, each.metadata.model.layer_count) for each in vectors}
    if len(sizes) > 1:
        said = " and ".join(f"{count} layers of {width}" for width, count in sorted(sizes))
        checks.append(Check("model", "fail", f"the packs are for models of {said}", "give packs of one model"))
    if len(vectors) < len(refs) or len(sizes) > 1:
        return Report(refs, tuple(checks), policy, pinned, unusable=True)
    if model is None:
        checks.append(pack_dose(vectors, given))
        checks += [Check(name, "skip", "no model was given") for name in ("model", "fingerprint", "screening")]
    else:
        checks += _model_checks(vectors, model, given)
        if not screening:
            checks.append(Check("screening", "skip", "it was not asked for"))
        elif any(check.status == "fail" for check in checks):
            checks.append(Check("screening", "skip", "something failed already, so the model was not asked"))
        else:
            checks += screen(model, vectors, strength=given, canaries=canaries, progress=progress)
    sized = model is None or not any(size_problems(vector, model.record) for vector in vectors)
    return Report(refs, tuple(checks), policy, pinned, unusable=not sized)


def _read(
    ref: str, trust: TrustFile | None, where: dict[str, Any]
) -> tuple[Sequence[Check], str | None, SteeringVector | None]:
    """What is known of a pack without a model: its checks, its pinned reference, and the vector if it is sound."""
    origin: list[Check] = []
    try:
        found = resolve(ref, **where)
        data = found.read()
        origin = check_origin(data, signature=found.signature, ref=found.ref, trust=trust, offline=where["offline"])
        vector = SteeringVector.from_bytes(data, source=found.pinned)
    except (PackFormatError, NonFiniteError, DigestMismatchError) as error:
        details = {"expected": error.expected}
        return (Check("integrity", "fail", one_line(error.problem), error.fix or "", details), *origin), None, None
    return (_integrity(found, vector), *origin), found.pinned, vector


def _about(check: Check, ref: str, count: int) -> Check:
    """The check of one pack among several, which says which one it is about."""
    if count == 1:
        return check
    return replace(check, message=one_line(f"{ref}: {check.message}"), details={**check.details, "pack": ref})


def pack_dose(vectors: Sequence[SteeringVector], strengths: Sequence[float] | None = None) -> Check:
    """The dose of vectors that are used together, judged by the norms that the packs themselves hold.

    Args:
        vectors: What was built from the packs.
        strengths: To judge the dose at; default: what each pack recommends.
    """
    why, fix = "the pack has no fingerprint that holds them", "verify it with its model"
    return check_dose(vectors, _strengths(vectors, strengths), stored_norms(vectors), why, fix)


def _model_checks(vectors: Sequence[SteeringVector], model: VLM, strengths: Sequence[float] | None) -> Sequence[Check]:
    """What `steer` checks; of a model of another shape, nothing but that can be said."""
    checks = check_applied(vectors, _strengths(vectors, strengths), model)
    if all(vector.metadata.fingerprint is not None for vector in vectors):
        return checks
    # steering without a fingerprint is a fair thing to do; but whoever asks should hear that the answer is not known
    return [
        replace(check, status="warn") if check.name == "fingerprint" and check.status == "skip" else check
        for check in checks
    ]


def _strengths(vectors: Sequence[SteeringVector], given: Sequence[float] | None) -> list[float]:
    return [vector.metadata.strength.recommended for vector in vectors] if given is None else list(given)


def _integrity(found: Resolved, vector: SteeringVector) -> Check:
    count = len(vector.tensors)
    details = {"sha256": found.sha256, "bytes": found.size, "tensors": count, "tensors_sha256": vector.digest()}
    held = f"{count} finite directions of {vector.metadata.dtype}" if count else "no directions: measured on the prompt"
    return Check("integrity", "pass", f"a pack of format 1 with {held}, sha256 {found.sha256}", details=details)
