# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit_vectors_hub.screening.canaries import (
    Canary as Canary,
    CanarySet as CanarySet,
    choose_canaries as choose_canaries,
    read_canaries as read_canaries,
)
from steerkit_vectors_hub.screening.findings import Screening as Screening
from steerkit_vectors_hub.screening.screener import Screener as Screener, screen as screen
