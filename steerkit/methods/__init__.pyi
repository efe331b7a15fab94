# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.methods._base import (
    Fit as Fit,
    Plan as Plan,
    SteeringMethod as SteeringMethod,
    by_label as by_label,
)
from steerkit.methods._logistic import fit_probes as fit_probes
from steerkit.methods._moments import (
    Groups as Groups,
    Moments as Moments,
    Observations as Observations,
    merge_groups as merge_groups,
)
from steerkit.methods._registry import get_method as get_method, method_names as method_names
from steerkit.methods._requirements import (
    require_anchors as require_anchors,
    require_captions as require_captions,
    require_images as require_images,
    require_labels as require_labels,
    require_vision as require_vision,
)
from steerkit.methods._state import Extraction as Extraction, State as State
from steerkit.methods.actadd import ActAdd as ActAdd
from steerkit.methods.adasteer import AdaSteer as AdaSteer
from steerkit.methods.astra import ASTRA as ASTRA
from steerkit.methods.caa import CAA as CAA
from steerkit.methods.cast import CAST as CAST
from steerkit.methods.cmrm import CMRM as CMRM
from steerkit.methods.iti import ITI as ITI
from steerkit.methods.refusal_direction import RefusalDirection as RefusalDirection
from steerkit.methods.repe import RepE as RepE
from steerkit.methods.shiftdc import ShiftDC as ShiftDC
from steerkit.methods.vlm_guard import VLMGuard as VLMGuard
from steerkit.methods.vti import VTI as VTI
