# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit import (
    analysis as analysis,
    evaluation as evaluation,
    interventions as interventions,
    methods as methods,
    models as models,
    scale as scale,
    vectors as vectors,
)
from steerkit._version import __version__ as __version__
from steerkit.engines.prompts import prompt_lengths as prompt_lengths
from steerkit.engines.receipt import Receipt as Receipt
from steerkit.errors import SteerKitError as SteerKitError
from steerkit.evaluation import calibrate as calibrate, compare as compare, evaluate as evaluate
from steerkit.interventions import Intervention as Intervention
from steerkit.methods import CMRM as CMRM, SteeringMethod as SteeringMethod, get_method as get_method
from steerkit.models import Sample as Sample, read_samples as read_samples
from steerkit.steering import steer as steer
from steerkit.vectors import Key as Key, SteeringVector as SteeringVector
from steerkit.vlm import VLM as VLM, load as load, wrap as wrap
from steerkit_vectors_hub.load import load_vector as load_vector
from steerkit_vectors_hub.push import publication as publication, upload as upload
from steerkit_vectors_hub.signing.signer import sign as sign
from steerkit_vectors_hub.verify import verify as verify

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
    "scale",
]
