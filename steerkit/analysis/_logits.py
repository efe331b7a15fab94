"""The part of a fingerprint that an edited head shows in: some of the logits, and how far others are from them."""

from __future__ import annotations

import base64
import math

import numpy as np
from torch import Tensor

from steerkit.vectors import LogitRecord

TOP = 32
"""Likeliest tokens whose logits are kept."""


def recorded(logits: Tensor) -> LogitRecord | None:
    """What is kept of `[vocabulary]` logits; None where they are masked or broken, and nothing could be compared."""
    top = tuple(logits.topk(min(TOP, len(logits))).indices.tolist())
    spaced = LogitRecord.sampled(len(logits))
    values = logits.double().numpy()
    kept = np.concatenate([values[list(top)], values[spaced]]) - values[spaced].mean()
    with np.errstate(over="ignore", invalid="ignore"):
        low = kept.astype("<f2")
    if not np.isfinite(low).all() or not low[len(top) :].astype(np.float32).std() > 0:
        return None
    return LogitRecord(vocabulary=len(logits), top=top, values=base64.b64encode(low.tobytes()).decode())


def difference(record: LogitRecord, logits: Tensor | None) -> float:
    """The largest difference of a logit, in standard deviations of the recorded ones, up to a constant of them all.

    Infinite where there are no logits, or some that are not finite. A vocabulary that is padded further makes none.
    """
    if logits is None:
        return math.inf
    tokens = record.tokens
    known = tokens < len(logits)
    before, after = record.logits()[known], logits.double().numpy()[tokens[known]]
    spaced = np.arange(len(tokens))[known] >= len(record.top)
    if not spaced.any() or not np.isfinite(after).all():
        return math.inf
    change = (after - after[spaced].mean()) - (before - before[spaced].mean())
    return float(np.abs(change).max() / before[spaced].std())
