"""Steering vectors: directions by layer, the interventions that use them, their metadata and the pack format."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
