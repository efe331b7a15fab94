"""What Inspect finds here. It is imported by every run of Inspect that looks for an extension: hence no torch."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from steerkit_inspect.suites import suite, verdict

__all__ = ["steerkit", "suite", "verdict"]


@modelapi(name="steerkit")
def steerkit() -> type[ModelAPI]:
    """The provider, imported when a model of it is asked for."""
    from steerkit_inspect.provider import Steerkit

    return Steerkit
