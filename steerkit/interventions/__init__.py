"""Interventions: what is done to a hidden state, where, when and how much, as data, and its arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.interventions._schema import (
        Ablate as Ablate,
    )
    from steerkit.interventions._schema import (
        Add as Add,
    )
    from steerkit.interventions._schema import (
        AddProjection as AddProjection,
    )
    from steerkit.interventions._schema import (
        Clamp as Clamp,
    )
    from steerkit.interventions._schema import (
        FiniteFloat as FiniteFloat,
    )
    from steerkit.interventions._schema import (
        Frozen as Frozen,
    )
    from steerkit.interventions._schema import (
        Gate as Gate,
    )
    from steerkit.interventions._schema import (
        Gates as Gates,
    )
    from steerkit.interventions._schema import (
        Intervention as Intervention,
    )
    from steerkit.interventions._schema import (
        LinearStrength as LinearStrength,
    )
    from steerkit.interventions._schema import (
        Measure as Measure,
    )
    from steerkit.interventions._schema import (
        MeasuredContrast as MeasuredContrast,
    )
    from steerkit.interventions._schema import (
        Operation as Operation,
    )
    from steerkit.interventions._schema import (
        Phase as Phase,
    )
    from steerkit.interventions._schema import (
        Pool as Pool,
    )
    from steerkit.interventions._schema import (
        Prompts as Prompts,
    )
    from steerkit.interventions._schema import (
        Scale as Scale,
    )
    from steerkit.interventions._schema import (
        Site as Site,
    )
    from steerkit.interventions._schema import (
        StoredDirection as StoredDirection,
    )
    from steerkit.interventions._schema import (
        Tokens as Tokens,
    )
    from steerkit.interventions._schema import (
        Tower as Tower,
    )
    from steerkit.interventions._schema import (
        View as View,
    )
    from steerkit.interventions._schema import (
        is_finite as is_finite,
    )
    from steerkit.interventions._schema import (
        site_label as site_label,
    )
    from steerkit.interventions._selection import (
        TokenRole as TokenRole,
    )
    from steerkit.interventions._selection import (
        last_positions as last_positions,
    )
    from steerkit.interventions._selection import (
        prompt_mask as prompt_mask,
    )
    from steerkit.interventions._selection import (
        select as select,
    )
    from steerkit.interventions._selection import (
        steers_answers as steers_answers,
    )

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_schema": (
            "Ablate",
            "Add",
            "AddProjection",
            "Clamp",
            "FiniteFloat",
            "Frozen",
            "Gate",
            "Gates",
            "Intervention",
            "LinearStrength",
            "Measure",
            "MeasuredContrast",
            "Operation",
            "Phase",
            "Pool",
            "Prompts",
            "Scale",
            "Site",
            "StoredDirection",
            "Tokens",
            "Tower",
            "View",
            "is_finite",
            "site_label",
        ),
        "_selection": ("TokenRole", "last_positions", "prompt_mask", "select", "steers_answers"),
    },
)
