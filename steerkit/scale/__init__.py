"""Scale: extraction on many workers, by engines that exist; nothing here schedules work of its own."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
