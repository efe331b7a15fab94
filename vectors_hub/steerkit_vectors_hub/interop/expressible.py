"""Whether a steering vector is no more than directions to add: all that control-vector files can say."""

from __future__ import annotations

from torch import Tensor

from steerkit.errors import OptionError
from steerkit.interventions import Intervention, StoredDirection
from steerkit.vectors import Key, SteeringVector

_LOST = (
    ("tokens", "all", "the tokens {!r}; the file will steer all"),
    ("positions", None, "tokens by their positions; the file will steer all"),
    ("prompts", "all", "prompts {} only; the file will steer all"),
    ("phase", "both", "in the phase {!r}; the file will steer in both"),
    ("norm_preserving", False, "while preserving norms; the file will not"),
)
"""What the file can't say and may be left out: a field, what it is where nothing is lost, and what is said of it."""


def directions_to_add(vector: SteeringVector, *, lossy: bool) -> tuple[dict[int, Tensor], tuple[str, ...]]:
    """Float32 directions by block with the interventions' doses multiplied in, and what that leaves out.

    The dose given to `steer` and the recommended one are not multiplied in.

    Raises:
        OptionError: The vector does something else, or something is left out and `lossy` is False.
    """
    lost: list[str] = []
    summed: dict[int, Tensor] = {}
    for index, intervention in enumerate(vector.interventions):
        stored = _stored(intervention, index)
        lost += [
            f"intervention {index} steers {said.format(value)}"
            for name, plain, said in _LOST
            if (value := getattr(intervention, name)) != plain
        ]
        layers = [key.layer for key in vector.tensors if key[1:] == ("resid_post", stored.name, "language")]
        if intervention.layers != "all":
            layers = list(intervention.layers)
        for layer in layers:
            tensor = vector.tensors[Key(layer if stored.layer is None else stored.layer, "resid_post", stored.name)]
            if tensor.dim() != 1:
                raise _refused(f"the direction of layer {layer} has {tensor.shape[0]} rows", "one row")
            dose = intervention.strength_at(layer)
            if dose:
                term = tensor.float() * dose
                summed[layer] = summed[layer] + term if layer in summed else term
    if lost and not lossy:
        raise OptionError(
            "the format can't say all of it: " + "; ".join(lost),
            expected="a vector that adds its directions at every token",
            fix="allow the loss with lossy=True, on the command line --lossy",
        )
    if not summed:
        raise _refused("every dose is zero", "something to add")
    return dict(sorted(summed.items())), tuple(lost)


def _stored(intervention: Intervention, index: int) -> StoredDirection:
    what = f"intervention {index}"
    operation = intervention.operation
    stored = operation.stored
    if stored is None:
        raise _refused(f"{what} measures its direction on each prompt", "stored directions")
    if not operation.additive:
        raise _refused(f"{what} {operation.describe()}", "only additions of stored directions")
    if intervention.measures:
        raise _refused(f"{what} depends on a measured quantity", "a fixed dose")
    if not intervention.fixed:
        raise _refused(f"{what} has strengths by row or by step", "one dose for all tokens")
    if intervention.site != "resid_post" or intervention.tower != "language":
        raise _refused(f"{what} steers {intervention.site} of the {intervention.tower} tower", "outputs of the blocks")
    return stored


def _refused(problem: str, expected: str) -> OptionError:
    return OptionError(f"{problem}, which the format can't say", expected=expected)
