"""Several vectors at once: where two of them work against each other, and how to keep them out of each other's way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from steerkit._text import one_line
from steerkit.errors import ModelMismatchError, OptionError
from steerkit.interventions import Intervention, StoredDirection, _arithmetic as ops, is_finite, site_label
from steerkit.vectors import Key, SteeringVector, as_strengths, as_vectors


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two vectors that work against each other at a layer and site, on tokens that both may steer.

    Attributes:
        first: Index of one vector.
        second: Index of the other.
        names: Their methods.
        layer: 0-based block.
        site: Where in the block; a site of the vision tower is called `vision.mlp_out` and the like.
        kind: `opposing`: what they add points in opposite directions. `removed`: one takes away (ablates, scales down,
            clamps) what the other adds or amplifies; then the order of the two matters as well.
        cosine: Of what is added with what is added (`opposing`); minus the part of the added direction that lies in the
            subspace that is removed (`removed`), of several added directions the largest.
    """

    first: int
    second: int
    names: tuple[str, str]
    layer: int
    site: str
    kind: Literal["opposing", "removed"]
    cosine: float

    def __str__(self) -> str:
        """`layer 3 resid_post: 0 (caa) and 1 (cmrm) oppose each other, cosine -0.82`."""
        said = "oppose each other" if self.kind == "opposing" else "add and remove the same"
        one, other = (f"{at} ({name})" for at, name in zip((self.first, self.second), self.names, strict=True))
        return one_line(f"layer {self.layer} {self.site}: {one} and {other} {said}, cosine {self.cosine:.2f}")


class _Part(NamedTuple):
    """What an intervention does with a stored direction at one layer."""

    intervention: Intervention
    number: int
    layer: int
    direction: Tensor
    signs: tuple[float, ...]

    @property
    def label(self) -> str:
        """Where in the block, and in which tower."""
        return site_label(self.intervention.site, self.intervention.tower)


def conflicts(
    vectors: Sequence[SteeringVector], *, strength: float | Sequence[float] = 1.0, threshold: float = -0.5
) -> list[Conflict]:
    """Where two vectors, applied together, work against each other.

    Compares stored directions that are added, ablated, scaled or clamped at the same layer and site. Of what is
    measured on each prompt nothing is known beforehand but the stored directions along which it is added. A measured
    strength counts with both of its ends.

    Args:
        vectors: The vectors.
        strength: As for `steer`: a negative one turns a direction round.
        threshold: Report cosines below this one, between -1 and 0.

    Returns:
        The worst of each pair of vectors at each layer and site, the worst of all first.

    Raises:
        OptionError: The threshold is out of range.
        ModelMismatchError: The vectors belong to models of different width.
    """
    if not is_finite(threshold) or not -1 <= threshold <= 0:
        raise OptionError(f"threshold is {threshold!r}", expected="a number from -1 to 0")
    given = as_vectors(vectors)
    _check_width(given)
    strengths = as_strengths(strength, len(given))
    parts = [
        [part for part in _parts(vector, factor) if part.signs] for vector, factor in zip(given, strengths, strict=True)
    ]
    found: dict[tuple[int, int, int, str], Conflict] = {}
    for first, second in combinations(range(len(given)), 2):
        names = (given[first].metadata.method.name, given[second].metadata.method.name)
        for one in parts[first]:
            for other in parts[second]:
                site = one.label
                if one.layer != other.layer or site != other.label:
                    continue
                cosine = _cosine(one, other) if one.intervention.reach.meets(other.intervention.reach) else None
                key = (first, second, one.layer, site)
                if cosine is None or cosine[1] >= threshold or (key in found and found[key].cosine <= cosine[1]):
                    continue
                found[key] = Conflict(first, second, names, one.layer, site, *cosine)
    return sorted(found.values(), key=lambda conflict: conflict.cosine)


def orthogonalized(vectors: Sequence[SteeringVector]) -> list[SteeringVector]:
    """The vectors, with what each adds made orthogonal to what those before it work on at the same place and tokens.

    Gram-Schmidt in the order given: the first vector keeps its directions, and a direction that a later one adds loses
    the part that lies in the span of the earlier ones: of what they add, ablate, scale or clamp, or along which they
    add a measured contrast, on tokens that both may steer. So no addition undoes or repeats what came before it; it and
    an ablation, a scaling or a clamp before it can change places. What is ablated, scaled, clamped or read in a measure
    stays as it is, and so does that along which a contrast is added, because less of it would be another quantity, not
    less of the same: put such a vector first.

    Args:
        vectors: The vectors, the most important first.

    Returns:
        New vectors in the same order.

    Raises:
        OptionError: Nothing is left of a direction, or what a vector adds is a contrast measured on each prompt.
        ModelMismatchError: The vectors belong to models of different width.
    """
    given = as_vectors(vectors)
    _check_width(given)
    before: list[_Part] = []
    made: list[SteeringVector] = []
    for index, vector in enumerate(given):
        if any(intervention.operation.stored is None for intervention in vector.interventions):
            raise OptionError(
                f"vector {index} ({vector.metadata.method.name}) is measured on each prompt",
                expected="vectors whose directions are stored",
                fix="leave it out, and apply it in a block of its own",
            )
        made.append(_without(vector, index, before))
        before += [part for part in _parts(made[-1], 1.0) if part.signs]  # a dose of 0 works on nothing
    return made


def _without(vector: SteeringVector, index: int, before: Sequence[_Part]) -> SteeringVector:
    """The vector without the part of what it adds that lies in the span of what it meets."""
    interventions = list(vector.interventions)
    tensors = dict(vector.tensors)
    changed = False
    for number, intervention in enumerate(vector.interventions):
        adds = [
            part for part in _parts(vector, 1.0) if part.number == number and intervention.operation.effect == "moves"
        ]
        spans = [
            [
                torch.atleast_2d(each.direction).float()
                for each in before
                if (each.layer, each.label) == (part.layer, part.label)
                and each.intervention.reach.meets(intervention.reach)
            ]
            for part in adds
        ]
        if not any(spans):
            continue
        changed = True
        name = f"orthogonal{number}"
        for part, span in zip(adds, spans, strict=True):
            tensors[Key(part.layer, intervention.site, name, intervention.tower)] = _residual(part, index, span)
        direction = StoredDirection(name=name)
        interventions[number] = intervention.model_copy(
            update={
                "operation": intervention.operation.model_copy(update={"direction": direction}),
                "layers": tuple(part.layer for part in adds),
            }
        )
    if not changed:
        return vector
    read = {stored.name for intervention in interventions for stored in intervention.stored}
    kept = {key: tensor for key, tensor in tensors.items() if key.name in read}
    return vector.derived(kept, f"orthogonalise to the {index} vectors before it", tuple(interventions))


def _residual(part: _Part, index: int, span: Sequence[Tensor]) -> Tensor:
    direction = part.direction
    if not span:
        return direction
    left = direction.double()
    basis = ops.orthonormal(torch.cat(list(span))).double()
    for _ in range(2):  # once more: the first pass leaves rounding errors along the span
        left = left - (left @ basis.T) @ basis
    if float(left.norm()) < 1e-3 * float(direction.double().norm()):
        raise OptionError(
            f"nothing is left of what vector {index} adds at layer {part.layer} once it is orthogonal to the others",
            expected="directions that are not a combination of the earlier ones",
            fix="leave that vector or that layer out (vector.select)",
        )
    return left.to(direction.dtype)


def _parts(vector: SteeringVector, strength: float) -> Iterator[_Part]:
    for number, intervention in enumerate(vector.interventions):
        for layer in vector.layers_of(intervention):
            if (direction := vector.operand(intervention, layer)) is not None:
                yield _Part(intervention, number, layer, direction, _signs(strength, intervention, layer))


def _signs(strength: float, intervention: Intervention, layer: int) -> tuple[float, ...]:
    """The signs that the dose at a layer may have: of a measured one, those of both ends. None for a dose of 0."""
    doses = [strength * end for end in intervention.strength_bounds(layer)]
    if intervention.operation.effect == "rescales":
        doses = [intervention.operation.removal(dose) for dose in doses]
    return tuple({math.copysign(1.0, dose) for dose in doses if dose})


def _cosine(one: _Part, other: _Part) -> tuple[Literal["opposing", "removed"], float] | None:
    found = [
        each
        for sign, other_sign in product(one.signs, other.signs)
        if (each := _against(one, sign, other, other_sign)) is not None
    ]
    return min(found, key=lambda each: each[1], default=None)


def _against(
    one: _Part, sign: float, other: _Part, other_sign: float
) -> tuple[Literal["opposing", "removed"], float] | None:
    """How far the two work against each other at doses of these signs; None where they do not, or it is not known."""
    effects = one.intervention.operation.effect, other.intervention.operation.effect
    removing = sign > 0 and effects[0] == "rescales", other_sign > 0 and effects[1] == "rescales"
    if all(removing):
        return None
    if not any(removing):
        if effects != ("moves", "moves"):
            return None  # which way something is added within a span is not known
        a, b = one.direction.double(), other.direction.double()
        return "opposing", sign * other_sign * float(a @ b / (a.norm() * b.norm()))
    added, added_sign, remover = (other, other_sign, one) if removing[0] else (one, sign, other)
    if added.intervention.operation.effect == "moves" and not remover.intervention.operation.spans:
        along = added_sign * float(added.direction.double() @ remover.direction.double())
        if not remover.intervention.operation.undoes(along):
            return None
    shared = ops.orthonormal(added.direction) @ ops.orthonormal(remover.direction).T
    return "removed", -float(torch.linalg.matrix_norm(shared, ord=2))


def _check_width(vectors: Sequence[SteeringVector]) -> None:
    widths: dict[str, set[int]] = defaultdict(set)
    for vector in vectors:
        widths["resid_post"].add(vector.metadata.model.hidden_size)
        for key, tensor in vector.tensors.items():
            widths[site_label(key.site, key.tower)].add(tensor.shape[-1])
    for label, found in widths.items():
        if len(found) > 1:
            raise ModelMismatchError(f"vectors of width {sorted(found)} at {label}", expected="vectors of one model")
