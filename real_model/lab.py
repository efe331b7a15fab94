"""Greedy answers of many prompts under many interventions on their last token, without reading any prompt twice.

The interventions that are compared here change the hidden state of a prompt's last token, so that everything before it
is the same in all conditions: it is read once, and its keys and values are kept. What a picture and the system turn
give is read once for all prompts with that picture. Hooks and sums are plain PyTorch, independent of steerkit, whose
own answers for the same vector are compared with these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from real_model.train import ASSISTANT, SYSTEM, USER

KeysValues = list[tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """Prompts read up to their last token.

    Attributes:
        cache: Keys and values `[rows, heads, tokens, size]` of each layer.
        mask: `[rows, tokens]`, which of them are there.
        positions: `[rows]`, the position of the last token.
        last: `[rows]`, its id.
        states: `[layers, rows, hidden]`, its unsteered hidden states.
    """

    cache: KeysValues
    mask: Tensor
    positions: Tensor
    last: Tensor
    states: Tensor


class Lab:
    """A LLaVA over Qwen2, and what is read again and again."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.images = model, processor.tokenizer, processor.image_processor
        self.text = model.model.language_model
        self.ends = set(model.generation_config.eos_token_id)
        self.image_id = model.config.image_token_id
        self._prefixes: dict[int | None, KeysValues] = {}
        self._kept: list[Image.Image] = []

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _prefix(self, image: Image.Image | None) -> KeysValues:
        """Keys and values of the system turn and the picture."""
        key = None if image is None else id(image)
        if key not in self._prefixes:
            ids = torch.tensor([self.ids(SYSTEM + USER)])
            embedded = self.text.embed_tokens(ids)
            if image is not None:
                self._kept.append(image)
                pixels = self.images([image], return_tensors="pt").pixel_values.to(embedded.dtype)
                tower = self.model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
                shown = self.model.model.multi_modal_projector(tower)
                line = self.text.embed_tokens(torch.tensor([self.ids("\n")]))
                embedded = torch.cat([embedded, shown, line], 1)
            cache = DynamicCache(config=self.text.config)
            self.text(inputs_embeds=embedded, cache=cache, use_cache=True)
            self._prefixes[key] = [(layer.keys, layer.values) for layer in cache.layers]
        return self._prefixes[key]

    @torch.inference_mode()
    def read(self, questions: Sequence[str], images: Sequence[Image.Image | None]) -> Batch:
        """Read prompts of one kind (all with a picture, or none); a picture that is shown twice is the same object."""
        own = [self._prefix(image) for image in images]
        begun = own[0][0][0].shape[2]
        rows = [self.ids(question + ASSISTANT) for question in questions]
        width = max(map(len, rows))
        pad = [width - len(row) for row in rows]
        ids = torch.tensor([[0] * p + row for p, row in zip(pad, rows, strict=True)])
        mask = torch.tensor([[1] * begun + [0] * p + [1] * len(r) for p, r in zip(pad, rows, strict=True)])
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = _filled([tuple(torch.cat([o[layer][i] for o in own]) for i in (0, 1)) for layer in range(len(own[0]))])
        body = {"cache": cache, "use_cache": True}
        self.text(ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, begun:-1], **body)
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        with self._captured() as states:
            self.text(ids[:, -1:], attention_mask=mask, position_ids=positions[:, -1:], **body)
        return Batch(kept, mask[:, :-1], positions[:, -1], ids[:, -1], torch.stack(states))

    @contextmanager
    def _captured(self) -> Iterator[list[Tensor]]:
        states: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _, __, out: states.append(out[:, -1].float()))
            for layer in self.text.layers
        ]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _added(self, added: Tensor | None) -> Iterator[None]:
        """Add `added[layer, row]` to the hidden state at the output of each block."""
        if added is None:
            yield
            return
        handles = [
            layer.register_forward_hook(lambda _, __, out, extra=extra: out + extra[:, None].to(out.dtype))
            for layer, extra in zip(self.text.layers, added, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def answer(self, batch: Batch, added: Tensor | None, tokens: int, steps: Sequence[float] = (0.0,)) -> list[str]:
        """Greedy answers, `added` `[layers, rows, hidden]` at the prompt's last token.

        `steps` times as much is added at each generated token; the last holds from there on.
        """
        cache, mask, position = _filled(batch.cache), batch.mask, batch.positions
        token, out = batch.last, []
        for step in range(tokens):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            factor = 1.0 if step == 0 else steps[min(step, len(steps)) - 1]
            with self._added(added * factor if added is not None and factor else None):
                hidden = self.text(
                    token[:, None],
                    attention_mask=mask,
                    position_ids=position[:, None],
                    cache=cache,
                    use_cache=True,
                ).last_hidden_state
            token = self.model.lm_head(hidden[:, -1]).argmax(-1)
            out.append(token)
            position = position + 1
            if all(any(int(t) in self.ends for t in row) for row in torch.stack(out, 1)):
                break
        return [self._until_end(row) for row in torch.stack(out, 1).tolist()]

    def _until_end(self, ids: list[int]) -> str:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def _filled(parts: KeysValues) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(parts):
        cache.update(keys, values, layer)
    return cache
