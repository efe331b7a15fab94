"""What can be said of vectors and models beforehand: dose, conflicts, and the activation fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.analysis._conflicts import (
        Conflict as Conflict,
    )
    from steerkit.analysis._conflicts import (
        conflicts as conflicts,
    )
    from steerkit.analysis._conflicts import (
        orthogonalized as orthogonalized,
    )
    from steerkit.analysis._dose import (
        check_dose as check_dose,
    )
    from steerkit.analysis._dose import (
        needs_norms as needs_norms,
    )
    from steerkit.analysis._dose import (
        norms_of as norms_of,
    )
    from steerkit.analysis._dose import (
        relative_doses as relative_doses,
    )
    from steerkit.analysis._dose import (
        stored_norms as stored_norms,
    )
    from steerkit.analysis._fingerprint import (
        RELATED as RELATED,
    )
    from steerkit.analysis._fingerprint import (
        SAME as SAME,
    )
    from steerkit.analysis._fingerprint import (
        SAME_HEAD as SAME_HEAD,
    )
    from steerkit.analysis._fingerprint import (
        Response as Response,
    )
    from steerkit.analysis._fingerprint import (
        check_fingerprint as check_fingerprint,
    )
    from steerkit.analysis._fingerprint import (
        fingerprint as fingerprint,
    )
    from steerkit.analysis._fingerprint import (
        logit_difference as logit_difference,
    )
    from steerkit.analysis._fingerprint import (
        probes as probes,
    )
    from steerkit.analysis._fingerprint import (
        responses as responses,
    )
    from steerkit.analysis._fingerprint import (
        responses_or_reason as responses_or_reason,
    )
    from steerkit.analysis._fingerprint import (
        state_cosines as state_cosines,
    )
    from steerkit.analysis._fingerprint import (
        state_norms as state_norms,
    )
    from steerkit.analysis._fingerprint import (
        state_of as state_of,
    )

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_conflicts": ("Conflict", "conflicts", "orthogonalized"),
        "_dose": ("check_dose", "needs_norms", "norms_of", "relative_doses", "stored_norms"),
        "_fingerprint": (
            "RELATED",
            "Response",
            "SAME",
            "SAME_HEAD",
            "check_fingerprint",
            "fingerprint",
            "logit_difference",
            "probes",
            "responses",
            "responses_or_reason",
            "state_cosines",
            "state_norms",
            "state_of",
        ),
    },
)
