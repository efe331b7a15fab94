"""A vision-language model and its processor, as one object: `load`, `wrap` and `VLM`."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
