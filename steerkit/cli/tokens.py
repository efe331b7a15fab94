"""Progress of a generation by token, so that the time left of one long answer is known too."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from steerkit.cli.progress import Report


class TokenProgress:
    """Counts the samples that are done, and of the running batch the part that its tokens make.

    Args:
        report: Told of the progress.
        total: Number of samples.
        max_new_tokens: Length of a whole answer.
    """

    def __init__(self, report: Report, total: int, max_new_tokens: int) -> None:
        self._report = report
        self._total = total
        self._length = max_new_tokens
        self._done = self._tokens = 0

    @property
    def criteria(self) -> StoppingCriteriaList:
        """What `generate` calls after each token."""
        return StoppingCriteriaList([_Counter(self)])

    def batch_done(self, done: int, total: int) -> None:
        """A batch is complete."""
        self._done, self._tokens = done, 0
        self._report(done, total)

    def token_done(self, batch: int) -> None:
        """Each sample of a batch has one more token."""
        self._tokens += 1
        part = batch * min(1.0, self._tokens / self._length)
        self._report(min(self._done + part, self._total), self._total)


class _Counter(StoppingCriteria):
    """Never stops anything."""

    def __init__(self, progress: TokenProgress) -> None:
        self._progress = progress

    def __call__(self, input_ids: torch.Tensor, scores: Any, **ignored: Any) -> torch.Tensor:  # type: ignore[override]
        self._progress.token_done(input_ids.shape[0])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
