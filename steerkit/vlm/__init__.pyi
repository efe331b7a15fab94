# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.vlm._answers import Generated as Generated, Progress as Progress
from steerkit.vlm._load import load as load, wrap as wrap
from steerkit.vlm._vlm import VLM as VLM, check_vlm as check_vlm
