"""Interventions: what is done to a hidden state, where, when and how much, as data, and its arithmetic.

An intervention answers for itself; nobody asks which class its operation is.

What an operation does: `intervention.operation` is an `Operation`, one file each under `operations/`, all of them in
the table `OPERATIONS`. Ask it

- `stored`, `measured`: the direction that it works along, and what must be measured on the prompt (None: neither);
- `effect`: `moves` along the direction, `rescales` what is there, or `injects` something known on the prompt alone;
- `additive`: whether it adds `strength * direction` to every token, so that such operations sum. These alone depend on
  the length of the direction; all others use its line;
- `size(strengths, norm, length)`: how large the change is at most, relative to the hidden state;
- `removal(strength)`, `undoes(along)`, `alignment(direction, target)`: which way it pushes, and what it takes back;
- `prepare(direction)`, `bind(direction, contrast)`: its arithmetic, for engines.

A new operation is a file and its line in the table: what is not in the table, no pack can name.

Whom it reaches: `intervention.selector` means tokens of a call, and `intervention.reach` is the same as sets.
`one.reach.shares_tokens(other.reach)` tells whether some token may be changed by both, `meets` whether that can be at
one place, `reach.pictured` whether prompts with an image are reached, or without. To add up what acts on one and the
same token, go through `representatives(reaches)` and keep the interventions whose reach `includes` the token.

How strongly: `strength_bounds(layer)` holds the ends of what the strength can be, with every factor of rows and steps;
`fixed` tells whether there is but one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.interventions._directions import (
        FiniteFloat as FiniteFloat,
    )
    from steerkit.interventions._directions import (
        Frozen as Frozen,
    )
    from steerkit.interventions._directions import (
        MeasuredContrast as MeasuredContrast,
    )
    from steerkit.interventions._directions import (
        StoredDirection as StoredDirection,
    )
    from steerkit.interventions._directions import (
        View as View,
    )
    from steerkit.interventions._directions import (
        is_finite as is_finite,
    )
    from steerkit.interventions._masks import (
        TokenRole as TokenRole,
    )
    from steerkit.interventions._masks import (
        last_positions as last_positions,
    )
    from steerkit.interventions._masks import (
        prompt_mask as prompt_mask,
    )
    from steerkit.interventions._masks import (
        select as select,
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
        Pool as Pool,
    )
    from steerkit.interventions._schema import (
        site_label as site_label,
    )
    from steerkit.interventions._selection import (
        KINDS as KINDS,
    )
    from steerkit.interventions._selection import (
        Kind as Kind,
    )
    from steerkit.interventions._selection import (
        Phase as Phase,
    )
    from steerkit.interventions._selection import (
        Prompts as Prompts,
    )
    from steerkit.interventions._selection import (
        Reach as Reach,
    )
    from steerkit.interventions._selection import (
        Selector as Selector,
    )
    from steerkit.interventions._selection import (
        Site as Site,
    )
    from steerkit.interventions._selection import (
        Token as Token,
    )
    from steerkit.interventions._selection import (
        Tokens as Tokens,
    )
    from steerkit.interventions._selection import (
        Tower as Tower,
    )
    from steerkit.interventions._selection import (
        reach as reach,
    )
    from steerkit.interventions._selection import (
        representatives as representatives,
    )
    from steerkit.interventions.operations import (
        OPERATIONS as OPERATIONS,
    )
    from steerkit.interventions.operations import (
        Ablate as Ablate,
    )
    from steerkit.interventions.operations import (
        Add as Add,
    )
    from steerkit.interventions.operations import (
        AddProjection as AddProjection,
    )
    from steerkit.interventions.operations import (
        Clamp as Clamp,
    )
    from steerkit.interventions.operations import (
        Operation as Operation,
    )
    from steerkit.interventions.operations import (
        Scale as Scale,
    )

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_directions": (
            "FiniteFloat",
            "Frozen",
            "MeasuredContrast",
            "StoredDirection",
            "View",
            "is_finite",
        ),
        "_masks": (
            "TokenRole",
            "last_positions",
            "prompt_mask",
            "select",
        ),
        "_schema": (
            "Gate",
            "Gates",
            "Intervention",
            "LinearStrength",
            "Measure",
            "Pool",
            "site_label",
        ),
        "_selection": (
            "KINDS",
            "Kind",
            "Phase",
            "Prompts",
            "Reach",
            "Selector",
            "Site",
            "Token",
            "Tokens",
            "Tower",
            "reach",
            "representatives",
        ),
        "operations": (
            "Ablate",
            "Add",
            "AddProjection",
            "Clamp",
            "OPERATIONS",
            "Operation",
            "Scale",
        ),
    },
)
