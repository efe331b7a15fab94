"""Steering methods: the abstract `SteeringMethod`, what third-party methods build on, and the built-in methods."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
