# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.analysis._conflicts import Conflict as Conflict, conflicts as conflicts, orthogonalized as orthogonalized
from steerkit.analysis._dose import (
    check_dose as check_dose,
    needs_norms as needs_norms,
    norms_of as norms_of,
    relative_doses as relative_doses,
    stored_norms as stored_norms,
)
from steerkit.analysis._fingerprint import (
    RELATED as RELATED,
    SAME as SAME,
    SAME_HEAD as SAME_HEAD,
    check_fingerprint as check_fingerprint,
    check_template_options as check_template_options,
    fingerprint as fingerprint,
    logit_difference as logit_difference,
    state_cosines as state_cosines,
    state_norms as state_norms,
)
from steerkit.analysis._responses import (
    Response as Response,
    probes as probes,
    responses as responses,
    responses_or_reason as responses_or_reason,
    state_of as state_of,
)
