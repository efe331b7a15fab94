"""What can be said of vectors and models beforehand: dose, conflicts, and the activation fingerprint."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
