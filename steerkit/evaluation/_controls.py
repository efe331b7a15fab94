"""Controls: what an effect of steering must beat."""

from __future__ import annotations

import torch

from steerkit.vectors import SteeringVector


def random_like(vector: SteeringVector, seed: int = 0) -> SteeringVector:
    """A vector of random directions with the norms of another: the control that every effect must beat.

    Directions that are only measured on, such as that of a gate, stay: it steers the same prompts.
    """
    parts = vector.interventions
    measured = {each.name for part in parts for of in part.measures for each in (of.direction, of.reference) if each}
    measured -= {part.operation.stored.name for part in parts if part.operation.stored is not None}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, tensor in vector.tensors.items():
        if key.name in measured:
            tensors[key] = tensor
            continue
        noise = torch.randn(tensor.shape, generator=generator, device="cpu")
        tensors[key] = noise / noise.norm(dim=-1, keepdim=True) * tensor.float().norm(dim=-1, keepdim=True)
    metadata = vector.metadata.model_copy(
        update={"history": (*vector.metadata.history, "replace by random directions")}
    )
    return SteeringVector(tensors, metadata)
