"""Evaluation: suites of prompts, judges, statistics, comparison of methods and calibration of strengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.evaluation._calibrate import Calibration as Calibration
    from steerkit.evaluation._calibrate import calibrate as calibrate
    from steerkit.evaluation._compare import Comparison as Comparison
    from steerkit.evaluation._compare import Entry as Entry
    from steerkit.evaluation._compare import Point as Point
    from steerkit.evaluation._compare import Row as Row
    from steerkit.evaluation._compare import compare as compare
    from steerkit.evaluation._compare import plotting as plotting
    from steerkit.evaluation._controls import random_like as random_like
    from steerkit.evaluation._evaluate import Outcome as Outcome
    from steerkit.evaluation._evaluate import answers as answers
    from steerkit.evaluation._evaluate import evaluate as evaluate
    from steerkit.evaluation._evaluate import steered as steered
    from steerkit.evaluation._judges import Judge as Judge
    from steerkit.evaluation._judges import Judgement as Judgement
    from steerkit.evaluation._judges import PhraseJudge as PhraseJudge
    from steerkit.evaluation._kl import equal_kl as equal_kl
    from steerkit.evaluation._kl import per_layer as per_layer
    from steerkit.evaluation._search import Budget as Budget
    from steerkit.evaluation._statistics import Estimate as Estimate
    from steerkit.evaluation._statistics import bootstrap as bootstrap
    from steerkit.evaluation._statistics import rate as rate
    from steerkit.evaluation._statistics import sign_test as sign_test
    from steerkit.evaluation._suites import Case as Case
    from steerkit.evaluation._suites import Suite as Suite
    from steerkit.evaluation._suites import load_suite as load_suite
    from steerkit.evaluation._text import REFUSALS as REFUSALS
    from steerkit.evaluation._text import WINDOW as WINDOW
    from steerkit.evaluation._text import folded as folded
    from steerkit.evaluation._text import is_garbled as is_garbled
    from steerkit.evaluation._text import is_refusal as is_refusal
    from steerkit.evaluation._text import refusal_at as refusal_at
    from steerkit.evaluation._text import states as states
    from steerkit.evaluation._text import words as words

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_calibrate": ("Calibration", "calibrate"),
        "_compare": ("Comparison", "Entry", "Point", "Row", "compare", "plotting"),
        "_controls": ("random_like",),
        "_evaluate": ("Outcome", "answers", "evaluate", "steered"),
        "_judges": ("Judge", "Judgement", "PhraseJudge"),
        "_kl": ("equal_kl", "per_layer"),
        "_search": ("Budget",),
        "_statistics": ("Estimate", "bootstrap", "rate", "sign_test"),
        "_suites": ("Case", "Suite", "load_suite"),
        "_text": ("REFUSALS", "WINDOW", "folded", "is_garbled", "is_refusal", "refusal_at", "states", "words"),
    },
)
