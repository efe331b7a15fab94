# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.scale._answers import answering as answering
from steerkit.scale._fit import fit as fit
from steerkit.scale._shards import shard as shard
