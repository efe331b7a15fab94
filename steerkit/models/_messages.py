"""Messages that are no sample's own: what templates are asked with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerkit.models._samples import Sample


class Turns:
    """Turns that a sample may not hold: a chat that ends with a finished answer."""

    continues = False

    def __init__(self, turns: Sequence[tuple[str, str]]) -> None:
        self._turns = list(turns)

    def template_options(self, template: object) -> dict[str, Any]:
        return {}

    def messages(self, images: int) -> list[dict[str, Any]]:
        return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in self._turns]

    def plain_turns(self, family: str) -> list[tuple[str, str]]:
        return self._turns


class Messages:
    """A sample whose messages were changed."""

    def __init__(self, sample: Sample, messages: list[dict[str, Any]]) -> None:
        self.continues, self.template_options = sample.continues, sample.template_options
        self._messages = messages

    def messages(self, images: int) -> list[dict[str, Any]]:
        return self._messages
