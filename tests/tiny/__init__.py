"""The tiny models, which are part of the package: `steerkit.testing.tiny`."""

from __future__ import annotations

import torch

from steerkit.testing.tiny import FAMILIES, build, save, scatter, seeded, text

__all__ = ["FAMILIES", "build", "save", "scatter", "seeded", "text"]

# Models of this size are slower on several threads than on one.
torch.set_num_threads(1)
