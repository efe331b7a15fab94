# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.interventions._directions import (
    FiniteFloat as FiniteFloat,
    Frozen as Frozen,
    MeasuredContrast as MeasuredContrast,
    StoredDirection as StoredDirection,
    View as View,
    is_finite as is_finite,
)
from steerkit.interventions._masks import (
    TokenRole as TokenRole,
    last_positions as last_positions,
    prompt_mask as prompt_mask,
    select as select,
)
from steerkit.interventions._schema import (
    CapturePool as CapturePool,
    Gate as Gate,
    Gates as Gates,
    Intervention as Intervention,
    LinearStrength as LinearStrength,
    Measure as Measure,
    Pool as Pool,
    site_label as site_label,
)
from steerkit.interventions._selection import (
    KINDS as KINDS,
    OF_CONTENT as OF_CONTENT,
    Kind as Kind,
    Phase as Phase,
    Prompts as Prompts,
    Reach as Reach,
    Selector as Selector,
    Site as Site,
    Token as Token,
    Tokens as Tokens,
    Tower as Tower,
    reach as reach,
    representatives as representatives,
)
from steerkit.interventions.operations import (
    OPERATIONS as OPERATIONS,
    Ablate as Ablate,
    Add as Add,
    AddProjection as AddProjection,
    Clamp as Clamp,
    Operation as Operation,
    Scale as Scale,
)
