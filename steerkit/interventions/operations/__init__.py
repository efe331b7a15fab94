"""The operations, each in a file of its own; a new one is a file and its line in this table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field

from steerkit.interventions.operations._base import Operation
from steerkit.interventions.operations.ablate import Ablate
from steerkit.interventions.operations.add import Add
from steerkit.interventions.operations.add_projection import AddProjection
from steerkit.interventions.operations.clamp import Clamp
from steerkit.interventions.operations.scale import Scale

_TABLE: tuple[type[Operation], ...] = (Add, Ablate, AddProjection, Clamp, Scale)

OPERATIONS: dict[str, type[Operation]] = {each.model_fields["kind"].default: each for each in _TABLE}
"""Every operation that a pack may hold, by its kind."""

if TYPE_CHECKING:
    AnyOperation: TypeAlias = Operation
else:
    AnyOperation = Annotated[Union[_TABLE], Field(discriminator="kind")]  # noqa: UP007
