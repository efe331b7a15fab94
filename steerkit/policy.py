"""What was checked about a pack or a model, what came of it, and what a policy makes of that. Needs no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from steerkit._text import one_line
from steerkit.errors import OptionError, SteerKitError

Status: TypeAlias = Literal["pass", "warn", "fail", "skip"]
"""`fail`: must not be used; `warn`: somebody should look; `skip`: could not be checked, and the message says why."""

Policy: TypeAlias = Literal["strict", "warn", "off"]
"""`strict`: failures are errors and the rest warns; `warn`: failures warn as well; `off`: nothing is said."""


class TrustWarning(UserWarning):
    """A check about a pack or its model did not pass, and the policy lets it through."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What, in a word or two: `integrity`, `model`, `fingerprint`, `dose`, `signature`, `screening` ...
        status: What came of it.
        message: One line, with the values at fault.
        fix: What the user can do about it, where something is to be done.
        details: The figures behind the line; JSON.
    """

    name: str
    status: Status
    message: str
    fix: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """`fail  signature: ...`."""
        return one_line(f"{self.status:<4}  {self.name}: {self.message}")

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def enforce(checks: Iterable[Check], policy: Policy, error: type[SteerKitError], *, stacklevel: int = 2) -> None:
    """Raise or warn as a policy says.

    Args:
        checks: What was checked.
        policy: See `Policy`.
        error: The class to raise.
        stacklevel: Of the warnings, as `warnings.warn` counts from here.

    Raises:
        SteerKitError: `error`, naming every failure, under `strict`.
        OptionError: There is no such policy.
    """
    if policy not in get_args(Policy):
        raise OptionError(f"policy is {policy!r}", expected=" or ".join(map(repr, get_args(Policy))))
    if policy == "off":
        return
    checks = list(checks)
    failed = [check for check in checks if check.status == "fail"]
    if failed and policy == "strict":
        raise error(
            "; ".join(one_line(f"{check.name}: {check.message}") for check in failed),
            fix=" ".join(dict.fromkeys(check.fix.rstrip(".") + "." for check in failed if check.fix)) or None,
        )
    for check in checks:
        if check.status in ("fail", "warn"):
            fix = f" Fix: {check.fix.rstrip('.')}." if check.fix else ""
            text = f"{check.name}: {check.message.rstrip('.')}.{fix}"
            warnings.warn(one_line(text), TrustWarning, stacklevel=stacklevel + 1)
