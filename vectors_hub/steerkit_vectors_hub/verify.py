"""Whether a pack can be trusted: every check that there is, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerkit._internal.text import one_line
from steerkit.analysis import check_dose, stored_norms
from steerkit.errors import NonFiniteError, OptionError, PackFormatError, SteerKitError
from steerkit.interventions import is_finite
from steerkit.policy import Check, Policy
from steerkit.steering import check_applied, size_problems
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM
from steerkit_vectors_hub.errors import DigestMismatchError
from steerkit_vectors_hub.resolve import Resolved, resolve
from steerkit_vectors_hub.screening import CanarySet, screen
from steerkit_vectors_hub.screening.screener import Progress
from steerkit_vectors_hub.signing.check import check_origin
from steerkit_vectors_hub.signing.trust import TrustFile


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked about one pack.

    Attributes:
        ref: The reference that was asked for.
        checks: What was checked, in the order in which it was.
        policy: What decides whether the pack may be used.
        pinned: A reference to exactly the file that was checked; None if there is no sound one.
        unusable: Whether it can't be used at all: the file is no sound pack, or for other sizes than the model's.
    """

    ref: str
    checks: tuple[Check, ...]
    policy: Policy = "strict"
    pinned: str | None = None
    unusable: bool = False

    @property
    def ok(self) -> bool:
        """Whether the pack may be used: it can be, and under `strict`, nothing failed."""
        allowed = self.policy != "strict" or all(check.status != "fail" for check in self.checks)
        return allowed and not self.unusable

    def as_json(self) -> dict[str, Any]:
        """What `steerkit verify --json` prints."""
        checks = [check.as_json() for check in self.checks]
        return {"ref": self.ref, "pinned": self.pinned, "policy": self.policy, "ok": self.ok, "checks": checks}

    def __str__(self) -> str:
        """One line for each check."""
        return "\n".join(map(str, self.checks))


def verify(
    ref: str | Path,
    *,
    model: VLM | None = None,
    strength: float | None = None,
    policy: Policy = "strict",
    trust: TrustFile | None = None,
    screening: bool = True,
    canaries: CanarySet | str | Path | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a pack: the file, who signed it, what it would add and, given the model, whether it belongs to it.

    These are the checks that `load_vector` (those of the pack) and `steer` (those of the model) make by default. Only
    here the model is also screened: it answers canaries with the pack and without, unless something failed before.

    Args:
        ref: As for `load_vector`.
        model: The model with its processor, as `sk.load` returns it; without, what needs it is skipped.
        strength: The strength to judge the dose and to screen at; default: the one that the pack recommends (and to
            screen, 1 as well).
        policy: `strict`: the report is `ok` if nothing failed; `warn` and `off`: if the file is a sound pack, for the
            sizes of the model.
        trust: Whose signatures count; default: the user's trust file.
        screening: Whether to screen; it lets the model answer.
        canaries: What to screen with; see `steerkit_vectors_hub.screening.choose_canaries`.
        revision: As for `load_vector`.
        sha256: As for `load_vector`.
        offline: As for `load_vector`.
        progress: Called after each batch of canaries.

    Returns:
        The report. A file that is damaged, forged or no pack, or not the pinned one, is a failed check in it.

    Raises:
        OptionError: There is no such policy, or the strength is no finite number.
        TrustFileError: The trust file or a revocation list in it is malformed.
        SteerKitError: The pack can't be found or transferred, or the canaries can't be prompts of this model.

    Example:
        >>> report = sk.verify("hf://owner/name", model=vlm)
        >>> print(report)
    """
    if policy not in ("strict", "warn", "off"):
        raise OptionError(f"policy is {policy!r}", expected="strict, warn or off")
    if strength is not None and not is_finite(strength):
        raise OptionError(f"the strength is {strength!r}", expected="a finite number")
    try:
        found = resolve(str(ref), revision=revision, sha256=sha256, offline=offline)
        data = found.read()
    except (PackFormatError, NonFiniteError, DigestMismatchError) as error:
        return Report(str(ref), (_unsound(error),), policy, unusable=True)
    origin = check_origin(found, data, trust=trust, offline=offline)
    try:
        vector = SteeringVector.from_bytes(data, source=found.pinned)
    except (PackFormatError, NonFiniteError) as error:
        return Report(str(ref), (_unsound(error), *origin), policy, unusable=True)
    checks = [_integrity(found, vector), *origin]
    if model is None:
        checks.append(pack_dose(vector, strength))
        checks += [Check(name, "skip", "no model was given") for name in ("model", "fingerprint", "screening")]
    else:
        checks += _model_checks(vector, model, strength)
        if not screening:
            checks.append(Check("screening", "skip", "it was not asked for"))
        elif any(check.status == "fail" for check in checks):
            checks.append(Check("screening", "skip", "something failed already, so the pack was not tried"))
        else:
            checks += screen(model, vector, strength=strength, canaries=canaries, progress=progress)
    sized = model is None or not size_problems(vector, model.record)
    return Report(str(ref), tuple(checks), policy, found.pinned, unusable=not sized)


def pack_dose(vector: SteeringVector, strength: float | None = None) -> Check:
    """The dose, judged by the norms that the pack itself holds.

    Args:
        vector: What was built from the pack.
        strength: To judge the dose at; default: the one that the pack recommends.
    """
    why, fix = "the pack has no fingerprint that holds them", "verify it with its model"
    return check_dose([vector], [_strength(vector, strength)], stored_norms([vector]), why, fix)


def _unsound(error: SteerKitError) -> Check:
    return Check("integrity", "fail", one_line(error.problem), error.fix or "", {"expected": error.expected})


def _model_checks(vector: SteeringVector, model: VLM, strength: float | None) -> Sequence[Check]:
    """What `steer` checks; of a model of another shape, nothing but that can be said."""
    checks = check_applied([vector], [_strength(vector, strength)], model)
    if vector.metadata.fingerprint is not None:
        return checks
    # steering by it is nobody's fault; but whoever asks should hear that the answer is not known
    return [replace(check, status="warn") if check.name == "fingerprint" else check for check in checks]


def _strength(vector: SteeringVector, given: float | None) -> float:
    return vector.metadata.strength.recommended if given is None else given


def _integrity(found: Resolved, vector: SteeringVector) -> Check:
    count = len(vector.tensors)
    details = {"sha256": found.sha256, "bytes": found.size, "tensors": count, "tensors_sha256": vector.digest()}
    held = f"{count} finite directions of {vector.metadata.dtype}" if count else "no directions: measured on the prompt"
    return Check("integrity", "pass", f"a pack of format 1 with {held}, sha256 {found.sha256}", details=details)
