"""For the tests of methods and adapters: the checks that all of their kind must pass, and tiny models to try them on.

`check_method` and `check_adapter` run every check and raise one error that explains each failure; `method_checks` and
`adapter_checks` give them one by one, for `pytest.mark.parametrize(..., ids=str)`. Nothing here needs a download,
torchvision, or pytest itself.
"""

from steerkit.testing import tiny
from steerkit.testing.adapters import adapter_checks, check_adapter
from steerkit.testing.contract import ContractCheck
from steerkit.testing.methods import check_method, method_checks
from steerkit.testing.samples import example_anchors, picture

__all__ = [
    "ContractCheck",
    "adapter_checks",
    "check_adapter",
    "check_method",
    "example_anchors",
    "method_checks",
    "picture",
    "tiny",
]
