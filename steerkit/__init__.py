"""Steer vision-language models at inference, so that their safety alignment holds when an image is attached.

The names here are what most programs need; the rest is reached by room: `sk.methods`, `sk.interventions`, `sk.vectors`,
`sk.models`, `sk.evaluation`, `sk.analysis`. All is imported on first use: `import steerkit` loads neither torch nor
transformers nor nnsight.
"""

from steerkit._internal.lazy import lazy
from steerkit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
