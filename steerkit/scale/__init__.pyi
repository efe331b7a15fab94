# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.scale._cluster import Cluster as Cluster, cluster as cluster
from steerkit.scale._shards import shard as shard
