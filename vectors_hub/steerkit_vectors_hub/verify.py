"""Whether a pack can be trusted: every check that there is, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit.checks import Check, Policy
from steerkit.dose import check_dose, norms_of
from steerkit.errors import NonFiniteError, OptionError, PackFormatError
from steerkit.steering import check_applied
from steerkit.vector import SteeringVector
from steerkit.vlm import VLM
from steerkit_vectors_hub.errors import DigestMismatchError
from steerkit_vectors_hub.resolve import Resolved, resolve


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked about one pack.

    Attributes:
        ref: The reference that was asked for.
        checks: What was checked, in the order in which it was.
        policy: What decides whether the pack may be used.
        pinned: A reference to exactly the file that was checked; None if there is no sound one.
    """

    ref: str
    checks: tuple[Check, ...]
    policy: Policy = "strict"
    pinned: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the pack may be used: under `strict`, nothing failed."""
        return self.policy != "strict" or all(check.status != "fail" for check in self.checks)

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
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
) -> Report:
    """Check a pack: the file, what it would add and, given the model, whether it belongs to it.

    These are the checks that `load_vector` (those of the pack) and `steer` (those of the model) make by default.

    Args:
        ref: As for `load_vector`.
        model: The model with its processor, as `sk.load` returns it; without, what needs it is skipped.
        strength: The strength to judge the dose at; default: the one that the pack recommends.
        policy: `strict`: the report is `ok` if nothing failed; `warn` and `off`: it always is.
        revision: As for `load_vector`.
        sha256: As for `load_vector`.
        offline: As for `load_vector`.

    Returns:
        The report. A file that is damaged, forged or no pack, or not the pinned one, is a failed check in it.

    Raises:
        OptionError: There is no such policy.
        SteerKitError: The pack can't be found or transferred.

    Example:
        >>> report = sk.verify("hf://owner/name", model=vlm)
        >>> print(report)
    """
    if policy not in ("strict", "warn", "off"):
        raise OptionError(f"policy is {policy!r}", expected="strict, warn or off")
    try:
        found = resolve(str(ref), revision=revision, sha256=sha256, offline=offline)
        vector = SteeringVector.from_bytes(found.read(), source=found.pinned)
    except (PackFormatError, NonFiniteError, DigestMismatchError) as error:
        unsound = Check("integrity", "fail", error.problem, error.fix or "", {"expected": error.expected})
        return Report(str(ref), (unsound,), policy)
    checks = [_integrity(found, vector)]
    if model is None:
        checks += pack_checks(found.path, vector, strength)
        checks += [Check(name, "skip", "no model was given") for name in ("model", "fingerprint")]
    else:
        checks += pack_checks(found.path, vector, strength, dose=False)
        checks += _model_checks(vector, model, strength)
    return Report(str(ref), tuple(checks), policy, found.pinned)


def pack_checks(path: Path, vector: SteeringVector, strength: float | None = None, *, dose: bool = True) -> list[Check]:
    """The checks that need no model, beyond those without which no vector could be built from the file.

    Args:
        path: The file.
        vector: What was built from it.
        strength: To judge the dose at; default: the one that the pack recommends.
        dose: Whether to judge the dose by the norms in the pack itself.
    """
    checks: list[Check] = []
    if dose:
        fingerprint = vector.metadata.fingerprint
        norms = None if fingerprint is None else norms_of(fingerprint)
        checks.append(check_dose([vector], [_strength(vector, strength)], norms))
    return checks


def _model_checks(vector: SteeringVector, model: VLM, strength: float | None) -> Sequence[Check]:
    """What `steer` checks; of a model of another shape, nothing but that can be said."""
    return check_applied([vector], [_strength(vector, strength)], model)


def _strength(vector: SteeringVector, given: float | None) -> float:
    return vector.metadata.strength.recommended if given is None else given


def _integrity(found: Resolved, vector: SteeringVector) -> Check:
    count = len(vector.tensors)
    details = {"sha256": found.sha256, "bytes": found.size, "tensors": count, "tensors_sha256": vector.digest()}
    held = f"{count} finite directions of {vector.metadata.dtype}" if count else "no directions: measured on the prompt"
    return Check("integrity", "pass", f"a pack of format 1 with {held}, sha256 {found.sha256}", details=details)
