"""A steering vector, compiled for the workers: rows of the one form, and what decides on them before they are sent.

The program is the core's own (`steerkit.engines.program`), which checks the vector against the model. Here each of its
steps becomes rows. Operations are compiled by the table `COMPILED`; one that is not in it can't be served, and a pack
that needs it is refused by name.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steerkit.engines.program import compiled
from steerkit.engines.steps import Reading, Step, Together
from steerkit.errors import EngineError
from steerkit.interventions import Gate, Intervention, MeasuredContrast, Operation, _arithmetic as ops, site_label
from steerkit.models import Architecture
from steerkit.vectors import SteeringVector
from steerkit_vllm.arithmetic import ALL, ANY, GATE, KINDS, NUMBERS, UNBOUNDED
from steerkit_vllm.settings import MODULES, SITES, Room


class Part(NamedTuple):
    """One row of an operation at one layer; `u` is None where the direction is measured on the prompt."""

    u: Tensor | None
    numbers: dict[str, float]


def _add(operation: Any, direction: Tensor | None) -> list[Part]:
    return [Part(direction, {"k1" if operation.relative else "k0": 1.0})]


def _ablate(operation: Any, direction: Tensor | None) -> list[Part]:
    assert direction is not None
    return [Part(row, {"k2": -1.0}) for row in direction]


def _add_projection(operation: Any, direction: Tensor | None) -> list[Part]:
    return [Part(None, {"k0": 1.0})]


def _scale(operation: Any, direction: Tensor | None) -> list[Part]:
    return [Part(direction, {"k2": operation.factor - 1.0})]


def _clamp(operation: Any, direction: Tensor | None) -> list[Part]:
    low = -UNBOUNDED if operation.minimum is None else operation.minimum
    high = UNBOUNDED if operation.maximum is None else operation.maximum
    return [Part(direction, {"k3": 1.0, "low": low, "high": high})]


COMPILED: dict[str, Callable[[Any, Tensor | None], list[Part]]] = {
    "add": _add,
    "ablate": _ablate,
    "add_projection": _add_projection,
    "scale": _scale,
    "clamp": _clamp,
}
"""How each kind of operation becomes rows, from the operation and what it prepared of its stored direction."""


def measured_vector(operation: Operation, direction: Tensor | None, contrast: Tensor) -> Tensor:
    """What an operation on a measured contrast adds, for one prompt: `[hidden]`, float32."""
    if direction is not None:
        return ops.project(contrast[None], direction)[0]
    return ops.unit(contrast) if getattr(operation, "relative", False) else contrast.float()


@dataclass(frozen=True, eq=False)
class Change:
    """One intervention of a pack.

    Attributes:
        intervention: The intervention.
        site: Index of its site in `SITES`.
        layers: The layers that it steers.
        depth: Rows that it takes.
        tensors: What the workers hold of it: `u` and `numbers`, and of measures `rule`, `rule_from`, `gate0` ...; each
            `[layers of the model, depth, ...]`.
        contrast: What is measured on the prompt and added.
        directions: By layer, what its operation prepared of the stored direction, where a contrast is projected.
        gates: Its gates that are decided on the prompt.
        rule: What its strength is read off on the prompt.
    """

    intervention: Intervention
    site: int
    layers: tuple[int, ...]
    depth: int
    tensors: dict[str, Tensor]
    contrast: Together | None
    directions: dict[int, Tensor]
    gates: tuple[tuple[Gate, Reading], ...]
    rule: Reading | None

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What is read off the prompt."""
        return (*(reading for _, reading in self.gates), *((self.rule,) if self.rule else ()))

    @property
    def contrasts(self) -> tuple[Together, ...]:
        """What is measured on the prompt in passes of its views."""
        found = [reading.state for reading in self.readings if reading.state is not None]
        return (*found, *((self.contrast,) if self.contrast else ()))

    @property
    def measures(self) -> bool:
        """Whether the prompt has to be measured before it is steered."""
        return bool(self.readings) or self.contrast is not None


@dataclass(frozen=True, eq=False)
class Served:
    """A steering vector as it is served.

    Attributes:
        name: What requests call it.
        vector: The vector.
        changes: Its interventions, in order.
        digest: Of everything that decides what it does.
    """

    name: str
    vector: SteeringVector
    changes: tuple[Change, ...]
    digest: str

    @property
    def room(self) -> Room:
        """What it needs."""
        depths: dict[int, int] = defaultdict(int)
        for each in self.changes:
            depths[each.site] += each.depth
        tokens = [each for each in self.changes if each.tensors]
        return Room(
            rows=max(depths.values(), default=0),
            depth=max(depths.values(), default=0),
            sites=tuple(SITES[site] for site in sorted(depths)),
            general=not all(plain(each.intervention) for each in self.changes),
            gates=max((sum(f"gate{k}" in each.tensors for k in range(8)) for each in tokens), default=0),
            rule=any("rule" in each.tensors for each in tokens),
            squashed=any(
                measure.kind == "tanh_cosine" and measure.layer is None and measure.state is None
                for each in self.changes
                for measure in each.intervention.measures
            ),
            measured=any(each.measures for each in self.changes),
            vectors=sum(each.contrast is not None for each in self.changes),
        )


def plain(intervention: Intervention) -> bool:
    """Whether it only adds stored directions, which needs nothing to be known of the state."""
    return intervention.operation.additive and not intervention.norm_preserving and not intervention.measures


def served(name: str, vector: SteeringVector, architecture: Architecture, dtype: torch.dtype) -> Served:
    """Compile a vector for the workers.

    Raises:
        EngineError: It needs something that can't be served, by name.
        SteerKitError: It is not for this model, as `steerkit.steer` says.
    """
    for intervention in vector.interventions:
        _check(name, intervention)
    program = compiled([vector], [1.0], architecture)
    program.check(dtype)
    steps: dict[int, list[Step]] = defaultdict(list)
    for groups in program.groups.values():
        for group in groups:
            for step in group.steps:
                steps[id(step.intervention)].append(step)
    changes = tuple(
        _change(name, intervention, steps[id(intervention)], architecture)
        for intervention in vector.interventions
        if steps[id(intervention)]
    )
    for change in changes:
        _check_modules(name, change, architecture)
    digest = hashlib.sha256(vector.digest().encode())
    for intervention in vector.interventions:
        digest.update(intervention.model_dump_json().encode())
    return Served(name, vector, changes, digest.hexdigest())


def refuse(name: str, what: str, expected: str) -> EngineError:
    """The error for a pack that needs what can't be served."""
    return EngineError(
        f"vLLM can't serve pack {name!r}: {what}", expected=expected, fix="serve it with transformers and steerkit"
    )


def _check(name: str, intervention: Intervention) -> None:
    kind = intervention.operation.kind
    if kind not in COMPILED:
        raise refuse(name, f"operation {kind!r} has not been compiled for it", f"one of {sorted(COMPILED)}")
    place = site_label(intervention.site, intervention.tower)
    if intervention.tower != "language" or intervention.site not in SITES:
        raise refuse(name, f"it steers {place}", f"the decoder's {', '.join(SITES)}")
    if intervention.rows is not None and len(intervention.rows) != 1:
        raise refuse(name, f"rows={list(intervention.rows)!r:.60} are of a batch", "one prompt in each request")
    for measure in intervention.measures:
        if measure.pool == "mean":
            raise refuse(name, "a measure pools the mean over a prompt", "pool='last'")
        if measure.state is not None and measure.layer is None:
            raise refuse(name, "a measure reads the state of another view at each layer", "a measure with a layer")
    states = [measure.state for measure in intervention.measures if measure.state is not None]
    for contrast in filter(None, (intervention.contrast, *states)):
        if "caption" in (contrast.positive, contrast.negative):
            raise refuse(name, "it measures the view 'caption'", "text, original, blank or noise")
    of_prompt = {measure.layer is not None for measure in intervention.measures if measure in _gated(intervention)}
    if len(of_prompt) > 1:
        raise refuse(name, "it has gates on the prompt and on the token at once", "gates of one sort")
    reads = intervention.contrast is not None or any(measure.layer is not None for measure in intervention.measures)
    if reads and intervention.site != "resid_post":
        raise refuse(name, f"prompts are measured at {place}", "measures and contrasts at resid_post")


def _check_modules(name: str, change: Change, architecture: Architecture) -> None:
    """A block may call its parts otherwise in transformers than in vLLM, where the same name could be another part."""
    site = SITES[change.site]
    expected = MODULES.get(site)
    for layer in change.layers if expected else ():
        found = (architecture.mlp if site == "mlp_out" else architecture.attention)[layer]
        if found != expected:
            raise refuse(name, f"it steers {site}, which is {found!r} in block {layer} of this model", f"{expected!r}")


def _gated(intervention: Intervention) -> list[Any]:
    return [gate.measure for gate in intervention.gates]


def _change(name: str, intervention: Intervention, steps: list[Step], architecture: Architecture) -> Change:
    operation, layers = intervention.operation, tuple(step.layer for step in steps)
    directions = {
        step.layer: step.direction.on(torch.device("cpu")).detach() for step in steps if step.direction is not None
    }
    contrasted = steps[0].contrast is not None
    parts = {step.layer: COMPILED[operation.kind](operation, directions.get(step.layer)) for step in steps}
    depth = max(map(len, parts.values()))
    size = (architecture.layer_count, depth)
    tensors = {"u": torch.zeros(*size, architecture.hidden_size)}
    gates = [each for each in steps[0].gates if each[0].measure.layer is None]
    numbers = torch.zeros(*size, len(NUMBERS) + len(gates) * len(GATE))
    tensors["numbers"] = numbers
    rule = intervention.rule if intervention.rule is not None and intervention.rule.measure.layer is None else None
    for step in steps:
        for at in range(depth):
            # a basis may be smaller at one layer than at another: what is missing removes nothing
            part = parts[step.layer][at] if at < len(parts[step.layer]) else Part(None, {})
            values = {**part.numbers, "dose": step.dose, "opens": float(at == 0)}
            if part.u is not None:
                tensors["u"][step.layer, at] = part.u
            if rule is not None:
                values |= {"rule": 1.0, "rule_kind": float(KINDS.index(rule.measure.kind)), "slope": rule.slope}
                values |= {"intercept": rule.intercept, "minimum": rule.minimum, "maximum": rule.maximum}
            if at == depth - 1:
                values["norm"] = float(intervention.norm_preserving)
                values["combine"] = (ALL if intervention.needs_all_gates else ANY) if gates else 0.0
            for key, value in values.items():
                numbers[step.layer, at, NUMBERS.index(key)] = value
            if rule is not None and step.rule is not None:
                _set(tensors, "rule", step.rule, step.layer, at, architecture.hidden_size, size)
            for index, (gate, reading) in enumerate(each for each in step.gates if each[0].measure.layer is None):
                first = len(NUMBERS) + index * len(GATE)
                given = (float(KINDS.index(gate.measure.kind)), gate.threshold, float(gate.above))
                numbers[step.layer, at, first : first + len(GATE)] = torch.tensor(given)
                _set(tensors, f"gate{index}", reading, step.layer, at, architecture.hidden_size, size)
    of_prompt = intervention.rule is not None and intervention.rule.measure.layer is not None
    return Change(
        intervention,
        SITES.index(intervention.site),
        layers,
        depth,
        tensors,
        steps[0].contrast,
        directions if contrasted else {},
        tuple(each for each in steps[0].gates if each[0].measure.layer is not None),
        steps[0].rule if of_prompt else None,
    )


def _set(
    tensors: dict[str, Tensor], name: str, reading: Reading, layer: int, at: int, hidden: int, size: tuple[int, int]
) -> None:
    cpu = torch.device("cpu")
    for key, kept in ((name, reading.direction), (f"{name}_from", reading.reference)):
        tensors.setdefault(key, torch.zeros(*size, hidden))
        if kept is not None:
            tensors[key][layer, at] = kept.on(cpu).detach()


def views_of(contrast: MeasuredContrast) -> tuple[str, ...]:
    """The views that a contrast is measured on, in the order of its difference."""
    return tuple(filter(None, (contrast.positive, contrast.negative)))
