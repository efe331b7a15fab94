"""Evaluation: suites of prompts, judges, comparison of methods and calibration of strengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.evaluation._calibrate import (
        Budget as Budget,
    )
    from steerkit.evaluation._calibrate import (
        Calibration as Calibration,
    )
    from steerkit.evaluation._calibrate import (
        calibrate as calibrate,
    )
    from steerkit.evaluation._calibrate import (
        equal_kl as equal_kl,
    )
    from steerkit.evaluation._calibrate import (
        per_layer as per_layer,
    )
    from steerkit.evaluation._compare import (
        Comparison as Comparison,
    )
    from steerkit.evaluation._compare import (
        Entry as Entry,
    )
    from steerkit.evaluation._compare import (
        Point as Point,
    )
    from steerkit.evaluation._compare import (
        Row as Row,
    )
    from steerkit.evaluation._compare import (
        compare as compare,
    )
    from steerkit.evaluation._compare import (
        plotting as plotting,
    )
    from steerkit.evaluation._evaluate import (
        REFUSALS as REFUSALS,
    )
    from steerkit.evaluation._evaluate import (
        Case as Case,
    )
    from steerkit.evaluation._evaluate import (
        Estimate as Estimate,
    )
    from steerkit.evaluation._evaluate import (
        Outcome as Outcome,
    )
    from steerkit.evaluation._evaluate import (
        PhraseJudge as PhraseJudge,
    )
    from steerkit.evaluation._evaluate import (
        Suite as Suite,
    )
    from steerkit.evaluation._evaluate import (
        answers as answers,
    )
    from steerkit.evaluation._evaluate import (
        bootstrap as bootstrap,
    )
    from steerkit.evaluation._evaluate import (
        evaluate as evaluate,
    )
    from steerkit.evaluation._evaluate import (
        rate as rate,
    )
    from steerkit.evaluation._evaluate import (
        steered as steered,
    )

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_calibrate": ("Budget", "Calibration", "calibrate", "equal_kl", "per_layer"),
        "_compare": ("Comparison", "Entry", "Point", "Row", "compare", "plotting"),
        "_evaluate": (
            "Case",
            "Estimate",
            "Outcome",
            "PhraseJudge",
            "REFUSALS",
            "Suite",
            "answers",
            "bootstrap",
            "evaluate",
            "rate",
            "steered",
        ),
    },
)
