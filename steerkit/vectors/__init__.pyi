# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.vectors._arguments import as_strengths as as_strengths, as_vectors as as_vectors
from steerkit.vectors._directions import Key as Key
from steerkit.vectors._metadata import (
    AnchorRecord as AnchorRecord,
    Fingerprint as Fingerprint,
    Line as Line,
    LogitRecord as LogitRecord,
    MethodRecord as MethodRecord,
    Metric as Metric,
    ModelRecord as ModelRecord,
    PackMetadata as PackMetadata,
    ProbeRecord as ProbeRecord,
    Sha256 as Sha256,
    StrengthPoint as StrengthPoint,
    StrengthRecord as StrengthRecord,
    Text as Text,
    options_record as options_record,
    parse_metadata as parse_metadata,
)
from steerkit.vectors._publication import PACK as PACK, Publication as Publication
from steerkit.vectors._vector import SteeringVector as SteeringVector
