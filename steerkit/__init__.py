"""Steer vision-language models at inference, so that their safety alignment holds when an image is attached.

The names here are what most programs need; the rest is reached by room: `sk.methods`, `sk.interventions`, `sk.vectors`,
`sk.models`, `sk.evaluation`, `sk.analysis`. All is imported on first use: `import steerkit` loads neither torch nor
transformers nor nnsight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy
from steerkit._version import __version__ as __version__

if TYPE_CHECKING:
    from steerkit import analysis, evaluation, interventions, methods, models, vectors
    from steerkit.engines.prompts import prompt_lengths
    from steerkit.engines.receipt import Receipt
    from steerkit.errors import SteerKitError
    from steerkit.evaluation import calibrate, compare, evaluate
    from steerkit.interventions import Intervention
    from steerkit.methods import CMRM, SteeringMethod, get_method
    from steerkit.models import Sample, read_samples
    from steerkit.steering import steer
    from steerkit.vectors import Key, SteeringVector
    from steerkit.vlm import VLM, load, wrap
    from steerkit_vectors_hub.load import load_vector
    from steerkit_vectors_hub.signing.signer import sign
    from steerkit_vectors_hub.verify import verify

__all__ = [  # noqa: RUF022 - by use, not by alphabet
    "load",
    "wrap",
    "VLM",
    "Sample",
    "read_samples",
    "SteeringMethod",
    "CMRM",
    "get_method",
    "SteeringVector",
    "Key",
    "Intervention",
    "load_vector",
    "sign",
    "verify",
    "steer",
    "prompt_lengths",
    "Receipt",
    "evaluate",
    "compare",
    "calibrate",
    "SteerKitError",
    "methods",
    "interventions",
    "vectors",
    "models",
    "evaluation",
    "analysis",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "vlm": ("load", "wrap", "VLM"),
        "models": ("Sample", "read_samples"),
        "methods": ("SteeringMethod", "CMRM", "get_method"),
        "vectors": ("SteeringVector", "Key"),
        "interventions": ("Intervention",),
        "steerkit_vectors_hub.load": ("load_vector",),
        "steerkit_vectors_hub.signing.signer": ("sign",),
        "steerkit_vectors_hub.verify": ("verify",),
        "steering": ("steer",),
        "steerkit.engines.prompts": ("prompt_lengths",),
        "steerkit.engines.receipt": ("Receipt",),
        "evaluation": ("compare", "calibrate", "evaluate"),
        "errors": ("SteerKitError",),
        "analysis": (),
    },
    rooms=("methods", "interventions", "vectors", "models", "evaluation", "analysis"),
)
