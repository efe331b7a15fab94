"""Inspect AI on steered vision-language models: the provider `steerkit`, suites as tasks, recorded answers as logs."""

from __future__ import annotations

from steerkit_inspect.suites import export, suite, verdict

__all__ = ["export", "suite", "verdict"]
