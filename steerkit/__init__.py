"""Steer vision-language models at inference, so that their safety alignment holds when an image is attached.

Everything public is here and is imported on first use: `import steerkit` loads neither torch nor transformers nor
nnsight.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.adapter import Architecture, ModelAdapter
    from steerkit.calibration import Budget, calibrate, equal_kl, per_layer
    from steerkit.comparison import compare
    from steerkit.composition import Conflict, conflicts, orthogonalized
    from steerkit.errors import SteerKitError
    from steerkit.evaluation import Case, PhraseJudge, Suite, evaluate
    from steerkit.intervention import Intervention
    from steerkit.method import Fit, Plan, SteeringMethod
    from steerkit.methods.actadd import ActAdd
    from steerkit.methods.adasteer import AdaSteer
    from steerkit.methods.astra import ASTRA
    from steerkit.methods.caa import CAA
    from steerkit.methods.cast import CAST
    from steerkit.methods.cmrm import CMRM
    from steerkit.methods.iti import ITI
    from steerkit.methods.refusal_direction import RefusalDirection
    from steerkit.methods.repe import RepE
    from steerkit.methods.shiftdc import ShiftDC
    from steerkit.methods.vlm_guard import VLMGuard
    from steerkit.methods.vti import VTI
    from steerkit.receipt import Receipt
    from steerkit.registry import adapter_names, get_adapter, get_method, method_names
    from steerkit.samples import Sample, read_samples
    from steerkit.steering import steer
    from steerkit.vector import Key, SteeringVector
    from steerkit.vlm import VLM, load, wrap
    from steerkit_vectors_hub.load import load_vector
    from steerkit_vectors_hub.signing.signer import sign
    from steerkit_vectors_hub.verify import verify

_HOME = {
    "ASTRA": "steerkit.methods.astra",
    "ActAdd": "steerkit.methods.actadd",
    "AdaSteer": "steerkit.methods.adasteer",
    "Architecture": "steerkit.adapter",
    "Budget": "steerkit.calibration",
    "CAA": "steerkit.methods.caa",
    "CAST": "steerkit.methods.cast",
    "CMRM": "steerkit.methods.cmrm",
    "Case": "steerkit.evaluation",
    "Conflict": "steerkit.composition",
    "Fit": "steerkit.method",
    "ITI": "steerkit.methods.iti",
    "Intervention": "steerkit.intervention",
    "Key": "steerkit.vector",
    "ModelAdapter": "steerkit.adapter",
    "PhraseJudge": "steerkit.evaluation",
    "Plan": "steerkit.method",
    "Receipt": "steerkit.receipt",
    "RefusalDirection": "steerkit.methods.refusal_direction",
    "RepE": "steerkit.methods.repe",
    "Sample": "steerkit.samples",
    "ShiftDC": "steerkit.methods.shiftdc",
    "SteerKitError": "steerkit.errors",
    "SteeringMethod": "steerkit.method",
    "SteeringVector": "steerkit.vector",
    "Suite": "steerkit.evaluation",
    "VLM": "steerkit.vlm",
    "VLMGuard": "steerkit.methods.vlm_guard",
    "VTI": "steerkit.methods.vti",
    "adapter_names": "steerkit.registry",
    "calibrate": "steerkit.calibration",
    "compare": "steerkit.comparison",
    "equal_kl": "steerkit.calibration",
    "evaluate": "steerkit.evaluation",
    "conflicts": "steerkit.composition",
    "get_adapter": "steerkit.registry",
    "get_method": "steerkit.registry",
    "load": "steerkit.vlm",
    "load_vector": "steerkit_vectors_hub.load",
    "method_names": "steerkit.registry",
    "orthogonalized": "steerkit.composition",
    "per_layer": "steerkit.calibration",
    "read_samples": "steerkit.samples",
    "sign": "steerkit_vectors_hub.signing.signer",
    "steer": "steerkit.steering",
    "verify": "steerkit_vectors_hub.verify",
    "wrap": "steerkit.vlm",
}

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - by use, not by alphabet
    "load",
    "wrap",
    "VLM",
    "Sample",
    "read_samples",
    "SteeringMethod",
    "CMRM",
    "CAA",
    "RefusalDirection",
    "ShiftDC",
    "ASTRA",
    "RepE",
    "AdaSteer",
    "ActAdd",
    "VTI",
    "ITI",
    "CAST",
    "VLMGuard",
    "SteeringVector",
    "load_vector",
    "sign",
    "verify",
    "Key",
    "Intervention",
    "steer",
    "conflicts",
    "Conflict",
    "orthogonalized",
    "Receipt",
    "compare",
    "calibrate",
    "equal_kl",
    "per_layer",
    "evaluate",
    "Suite",
    "Case",
    "PhraseJudge",
    "Budget",
    "ModelAdapter",
    "Architecture",
    "Plan",
    "Fit",
    "method_names",
    "get_method",
    "adapter_names",
    "get_adapter",
    "SteerKitError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steerkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
