"""Models: what is known of a model family, samples, and the views of a prompt."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
