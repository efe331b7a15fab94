"""Steering methods: the abstract `SteeringMethod`, what third-party methods build on, and the built-in methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.methods._base import (
        Fit as Fit,
    )
    from steerkit.methods._base import (
        Observations as Observations,
    )
    from steerkit.methods._base import (
        Plan as Plan,
    )
    from steerkit.methods._base import (
        SteeringMethod as SteeringMethod,
    )
    from steerkit.methods._base import (
        by_label as by_label,
    )
    from steerkit.methods._base import (
        require_anchors as require_anchors,
    )
    from steerkit.methods._base import (
        require_captions as require_captions,
    )
    from steerkit.methods._base import (
        require_images as require_images,
    )
    from steerkit.methods._base import (
        require_labels as require_labels,
    )
    from steerkit.methods._base import (
        require_vision as require_vision,
    )
    from steerkit.methods._checkpoint import (
        Progressed as Progressed,
    )
    from steerkit.methods._checkpoint import (
        load_checkpoint as load_checkpoint,
    )
    from steerkit.methods._checkpoint import (
        save_checkpoint as save_checkpoint,
    )
    from steerkit.methods._moments import Groups as Groups
    from steerkit.methods._moments import Moments as Moments
    from steerkit.methods._moments import merge_groups as merge_groups
    from steerkit.methods._probes import fit_probes as fit_probes
    from steerkit.methods._registry import get_method as get_method
    from steerkit.methods._registry import method_names as method_names
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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_base": (
            "Fit",
            "Observations",
            "Plan",
            "SteeringMethod",
            "by_label",
            "require_anchors",
            "require_captions",
            "require_images",
            "require_labels",
            "require_vision",
        ),
        "_checkpoint": ("Progressed", "load_checkpoint", "save_checkpoint"),
        "_moments": ("Groups", "Moments", "merge_groups"),
        "_probes": ("fit_probes",),
        "_registry": ("get_method", "method_names"),
        "actadd": ("ActAdd",),
        "adasteer": ("AdaSteer",),
        "astra": ("ASTRA",),
        "caa": ("CAA",),
        "cast": ("CAST",),
        "cmrm": ("CMRM",),
        "iti": ("ITI",),
        "refusal_direction": ("RefusalDirection",),
        "repe": ("RepE",),
        "shiftdc": ("ShiftDC",),
        "vlm_guard": ("VLMGuard",),
        "vti": ("VTI",),
    },
)
