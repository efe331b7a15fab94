"""Steer vision-language models at inference, so that their safety alignment holds when an image is attached.

Everything public is here and is imported on first use: `import steerkit` loads neither torch nor transformers nor
nnsight.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.adapter import Architecture, ModelAdapter
    from steerkit.composition import Conflict, conflicts, orthogonalized
    from steerkit.errors import SteerKitError
    from steerkit.intervention import Intervention
    from steerkit.method import Fit, Plan, SteeringMethod
    from steerkit.methods.caa import CAA
    from steerkit.methods.cmrm import CMRM
    from steerkit.methods.refusal_direction import RefusalDirection
    from steerkit.receipt import Receipt
    from steerkit.registry import adapter_names, get_adapter, get_method, method_names
    from steerkit.samples import Sample, read_samples
    from steerkit.steering import steer
    from steerkit.vector import Key, SteeringVector
    from steerkit.vlm import VLM, load, wrap
    from steerkit_vectors_hub.load import load_vector

_HOME = {
    "Architecture": "steerkit.adapter",
    "CAA": "steerkit.methods.caa",
    "CMRM": "steerkit.methods.cmrm",
    "Conflict": "steerkit.composition",
    "Fit": "steerkit.method",
    "Intervention": "steerkit.intervention",
    "Key": "steerkit.vector",
    "ModelAdapter": "steerkit.adapter",
    "Plan": "steerkit.method",
    "Receipt": "steerkit.receipt",
    "RefusalDirection": "steerkit.methods.refusal_direction",
    "Sample": "steerkit.samples",
    "SteerKitError": "steerkit.errors",
    "SteeringMethod": "steerkit.method",
    "SteeringVector": "steerkit.vector",
    "VLM": "steerkit.vlm",
    "adapter_names": "steerkit.registry",
    "conflicts": "steerkit.composition",
    "get_adapter": "steerkit.registry",
    "get_method": "steerkit.registry",
    "load": "steerkit.vlm",
    "load_vector": "steerkit_vectors_hub.load",
    "method_names": "steerkit.registry",
    "orthogonalized": "steerkit.composition",
    "read_samples": "steerkit.samples",
    "steer": "steerkit.steering",
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
    "SteeringVector",
    "load_vector",
    "Key",
    "Intervention",
    "steer",
    "conflicts",
    "Conflict",
    "orthogonalized",
    "Receipt",
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
