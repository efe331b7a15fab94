"""Evaluation: suites of prompts, judges, statistics, comparison of methods and calibration of strengths."""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
