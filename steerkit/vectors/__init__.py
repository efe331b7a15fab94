"""Steering vectors: directions by layer, the interventions that use them, their metadata and the pack format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.lazy import lazy

if TYPE_CHECKING:
    from steerkit.vectors._arguments import as_strengths as as_strengths
    from steerkit.vectors._arguments import as_vectors as as_vectors
    from steerkit.vectors._directions import Key as Key
    from steerkit.vectors._metadata import (
        AnchorRecord as AnchorRecord,
    )
    from steerkit.vectors._metadata import (
        Fingerprint as Fingerprint,
    )
    from steerkit.vectors._metadata import (
        Line as Line,
    )
    from steerkit.vectors._metadata import (
        LogitRecord as LogitRecord,
    )
    from steerkit.vectors._metadata import (
        MethodRecord as MethodRecord,
    )
    from steerkit.vectors._metadata import (
        Metric as Metric,
    )
    from steerkit.vectors._metadata import (
        ModelRecord as ModelRecord,
    )
    from steerkit.vectors._metadata import (
        PackMetadata as PackMetadata,
    )
    from steerkit.vectors._metadata import (
        ProbeRecord as ProbeRecord,
    )
    from steerkit.vectors._metadata import (
        Sha256 as Sha256,
    )
    from steerkit.vectors._metadata import (
        StrengthPoint as StrengthPoint,
    )
    from steerkit.vectors._metadata import (
        StrengthRecord as StrengthRecord,
    )
    from steerkit.vectors._metadata import (
        Text as Text,
    )
    from steerkit.vectors._metadata import (
        parse_metadata as parse_metadata,
    )
    from steerkit.vectors._publication import Publication as Publication
    from steerkit.vectors._vector import (
        PACK as PACK,
    )
    from steerkit.vectors._vector import SteeringVector as SteeringVector

__getattr__, __dir__ = lazy(
    __name__,
    {
        "_arguments": ("as_strengths", "as_vectors"),
        "_directions": ("Key",),
        "_metadata": (
            "AnchorRecord",
            "Fingerprint",
            "Line",
            "MethodRecord",
            "Metric",
            "ModelRecord",
            "PackMetadata",
            "LogitRecord",
            "ProbeRecord",
            "Sha256",
            "StrengthPoint",
            "StrengthRecord",
            "Text",
            "parse_metadata",
        ),
        "_publication": ("Publication",),
        "_vector": ("PACK", "SteeringVector"),
    },
)
