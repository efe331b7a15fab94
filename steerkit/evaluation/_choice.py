"""What a study tries of a method on dev, what that costs, and what is chosen of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steerkit.evaluation._outcome import Outcome
from steerkit.evaluation._study_found import Cell
from steerkit.methods import SteeringMethod


class Option(NamedTuple):
    """A way to steer by one method.

    Attributes:
        name: Of the method, in the study.
        layers: What its layers are called.
        method: The method with these layers.
        strength: At which strength.
    """

    name: str
    layers: str
    method: SteeringMethod
    strength: float


def options_of(
    name: str, method: SteeringMethod, alphas: Sequence[float], sets: Mapping[str, Sequence[int]]
) -> list[Option]:
    """All strengths with all layers, or those that are set; and where layers can be chosen, the sets at strength 1."""
    if getattr(method, "layers", ()) is not None:  # no such option, or it is set
        return [Option(name, "its layers", method, alpha) for alpha in alphas]
    tried = [Option(name, "all layers", method, alpha) for alpha in alphas]
    return tried + [Option(name, called, _on(method, layers), 1.0) for called, layers in sets.items()]


def _on(method: SteeringMethod, layers: Sequence[int]) -> SteeringMethod:
    """The same method on some layers; as it was given, so that no default counts as set."""
    given = {each: getattr(method, each) for each in method.model_dump(exclude_defaults=True)}
    return type(method)(**(given | {"layers": tuple(layers)}))


def dev_cost(found: Outcome, text: Outcome, image: Outcome, tolerance: float) -> float:
    """What dev chooses by; see `study`. A kind of prompts that a suite lacks costs nothing."""
    lost = image.utility.value - found.utility.value - tolerance
    refused = found.over_refusal.value - text.over_refusal.value - tolerance
    garbled = found.garbled.value - image.garbled.value - tolerance
    shares = [found.not_safe.value, *(max(0.0, each) for each in (lost, refused, garbled) if each == each)]
    return sum(each for each in shares if each == each)


def choose(options: Sequence[Option], cells: Sequence[Cell]) -> dict[str, Any]:
    """Of the options of one method the one that costs least on all dev sets together, as plain values."""
    ranked = []
    for option in options:
        asked = (option.name, option.layers, option.strength)
        costs = [cell.cost for cell in cells if (cell.method, cell.layers, cell.strength) == asked]
        ranked.append((round(sum(costs) / len(costs), 9), abs(option.strength - 1), option))
    cost, _, best = min(ranked, key=lambda each: each[:2])
    numbers = getattr(best.method, "layers", None)
    return {
        "strength": best.strength,
        "layers": best.layers,
        "cost": cost,
        "numbers": None if numbers is None else list(numbers),
    }


def chosen_option(name: str, method: SteeringMethod, choice: Mapping[str, Any]) -> Option:
    """The option that `choose` has chosen."""
    if choice["numbers"] is not None and getattr(method, "layers", ()) is None:
        method = _on(method, choice["numbers"])
    return Option(name, choice["layers"], method, choice["strength"])
