"""One call of a model, and what is known of its prompts: where they end, what each token is, which hold an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from steerkit._text import quoted
from steerkit.engines.blocks import Block
from steerkit.engines.caches import kv_cache, recall
from steerkit.engines.carrying import carried, carry_along
from steerkit.errors import EngineError, OptionError
from steerkit.interventions import OF_CONTENT, TokenRole, Tokens
from steerkit.models import Architecture, audio_tokens, check_beside, video_tokens, visual_positions, visual_rows


@dataclass(slots=True, eq=False)
class Facts:
    """What is known of a model beside its calls.

    Attributes:
        architecture: Its architecture.
        system_lengths: `[batch]` number of real tokens before the user's turn, from ids and a mask of real tokens.
    """

    architecture: Architecture
    system_lengths: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(slots=True, eq=False)
class Prompt:
    """One call of the model from outside, until it returns.

    Attributes:
        inputs: The keyword arguments of the call.
        length: Number of prompt positions, padding included; None until the decoder has seen it.
        generating: Whether the call is `generate`.
        facts: What is known of the model.
        owners: The steering blocks that the call belongs to.
        entry: The module whose forward pass or `generate` is the call.
        past: Positions that a KV cache of the caller's held when the call began, and that its ids do not repeat.
        ends: `[batch]` number of positions of each prompt, where the caller has told them.
        memo: What engines remember of this prompt, by key.
        reached: The position after the last one that the decoder has seen.
        begun: Whether the decoder has seen the first of it.
        mask: `[batch, positions]`, the decoder's own, where it reads other positions than the caller gave.
        cache: The KV cache that the passes of a `generate` share.
        loops: The Python modules from which a `generate` makes its passes.
        custom: The loop of the caller's own that a `generate` runs, or the name of where it is.
        frame: The frame in which the call runs.
        interrupted: The pass inside which it was made, a `Pass`; None if there was none.
        graded: Whether gradients can flow through it.
    """

    inputs: Mapping[str, Any]
    length: int | None
    generating: bool
    facts: Facts
    owners: tuple[Block, ...] = ()
    entry: nn.Module | None = None
    past: int = 0
    ends: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict)
    reached: int = 0
    begun: bool = False
    mask: Tensor | None = None
    cache: Any = None
    loops: frozenset[str] = frozenset()
    custom: Any = None
    frame: FrameType | None = None
    interrupted: Any = None
    graded: bool = field(default_factory=torch.is_grad_enabled)

    @property
    def input_ids(self) -> Tensor | None:
        """`[batch, prompt]` ids, where the caller gave ids."""
        return self.inputs.get("input_ids")

    @property
    def count(self) -> int | None:
        """Number of prompts in the batch, where the caller gave ids or embeddings."""
        for key in ("input_ids", "inputs_embeds"):
            given = self.inputs.get(key)
            if isinstance(given, Tensor):
                return int(given.shape[0])
        return None

    @property
    def continues(self) -> bool:
        """Whether the call goes on from a filled KV cache without the ids of what is in it."""
        return self.past > 0

    @property
    def attention_mask(self) -> Tensor | None:
        """`[batch, prompt]`, where the caller gave a two-dimensional mask."""
        mask = self.inputs.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def real(self, length: int, device: torch.device) -> Tensor:
        """`[batch, length]` boolean: which of the first positions are not padding.

        Raises:
            EngineError: There is padding, and the decoder reads other positions than the mask is of.
        """
        for mask in (self.attention_mask, self.mask):
            if mask is not None and mask.shape[1] >= length:
                return mask[:, :length].to(device) != 0
        mask = self.attention_mask
        if mask is not None and not self.continues and not bool(mask.all()):
            raise EngineError(
                f"the decoder reads {length} positions of a prompt, and the attention_mask with padding is of "
                f"{mask.shape[1]}",
                expected="a mask over all positions that the decoder reads, soft prompts included",
                fix="pass the whole attention_mask, or prompts of the same length",
            )
        # a pass that continues from a KV cache has only its own ids
        return torch.ones((self.count or 1, length), dtype=torch.bool, device=device)

    def roles(self, length: int, device: torch.device, tokens: Tokens) -> Tensor:
        """`[batch, length]` roles of the prompt's tokens.

        Raises:
            EngineError: The selector needs token ids (or a tokenizer, for `system`) and the caller gave none.
        """
        key = ("roles", length, tokens if tokens in OF_CONTENT else None, device)
        if key not in self.memo:
            self.memo[key] = self._roles(length, device, tokens)
        return self.memo[key]

    def _roles(self, length: int, device: torch.device, tokens: Tokens) -> Tensor:
        architecture = self.facts.architecture
        if architecture.encoder_decoder:
            if tokens in OF_CONTENT:
                raise EngineError(
                    f"tokens={tokens!r} in an encoder-decoder model",
                    expected="last, all or generated: its decoder sees neither image nor text tokens",
                )
            return torch.full((1, length), int(TokenRole.TEXT), device=device)
        real = self.real(length, device)
        roles = torch.where(real, int(TokenRole.TEXT), int(TokenRole.PAD))
        if tokens not in OF_CONTENT:
            return roles
        prefixed = architecture.marks == "prefix" and self.input_ids is not None
        ids = None if prefixed else self._ids(length, tokens).to(device)
        if tokens != "system" and architecture.takes_images:
            check_beside(self.inputs, architecture)
            if tokens in ("image", "video", "after_image") or architecture.marks != "none":
                image = visual_positions(self.inputs, architecture, length).to(device)
                roles = torch.where(real & image, int(TokenRole.IMAGE), roles)
            if tokens == "video" and ids is not None:
                roles = torch.where(real & video_tokens(self.inputs, ids, architecture), int(TokenRole.VIDEO), roles)
            if ids is not None and (tokens == "audio" or architecture.audio_token_ids):
                roles = torch.where(real & audio_tokens(ids, architecture), int(TokenRole.AUDIO), roles)
        if tokens in ("system", "text") and ids is not None:
            if self.facts.system_lengths is None:
                raise EngineError(
                    f"tokens={tokens!r} needs the tokenizer, to tell the system's turn from the user's",
                    expected="a model that was loaded or wrapped with its processor",
                    fix="pass the VLM instead of the raw model: sk.steer(sk.wrap(model, processor), ...)",
                )
            lengths = self.facts.system_lengths(ids, real).to(device)
            system = torch.arange(length, device=device) < lengths[:, None]
            roles = torch.where(system & (roles == int(TokenRole.TEXT)), int(TokenRole.SYSTEM), roles)
        return roles

    def _ids(self, length: int, tokens: Tokens) -> Tensor:
        ids = self.input_ids
        if ids is not None and ids.shape[1] >= length:
            return ids[:, :length]
        if ids is None:
            problem = f"tokens={tokens!r} in a call without input_ids"
        elif self.continues:
            problem = f"tokens={tokens!r} in a call that continues from a KV cache, without the ids of what is in it"
        else:
            problem = (
                f"tokens={tokens!r} in a call with input_ids for {ids.shape[1]} of the {length} positions that the "
                "decoder reads: the others are not tokens but, for example, a soft prompt"
            )
        raise EngineError(
            problem,
            expected="the input_ids of the whole prompt",
            fix="call generate(**inputs) or model(**inputs), or use tokens='last', 'all' or 'generated'",
        )

    def pictured(self) -> Tensor | bool:
        """Which rows of the call hold an image: `[batch]` boolean on the CPU, or one word for all of them.

        Raises:
            EngineError: The call does not say.
        """
        if "pictured" not in self.memo:
            self.memo["pictured"] = self._pictured()
        return self.memo["pictured"]

    def _pictured(self) -> Tensor | bool:
        if not self.facts.architecture.takes_images:
            return False
        if self.input_ids is None and self.facts.architecture.marks != "none":
            raise EngineError(
                "an intervention is for prompts by whether they hold an image, and the call has no input_ids",
                expected="generate(**inputs), or a forward pass with input_ids",
                fix="pass input_ids beside inputs_embeds, or set prompts='all' in the intervention",
            )
        held = visual_rows(self.inputs, self.facts.architecture)
        if self.continues:
            before = recall(kv_cache(self.inputs))
            if before is None:
                raise EngineError(
                    "an intervention is for prompts by whether they hold an image, and a call goes on from a KV cache "
                    "of which that is not known",
                    expected="the ids of the whole conversation, or a KV cache that a call inside a block with such an "
                    "intervention has filled, and nobody has changed or copied since",
                    fix="pass all ids to generate, which leaves out what the cache holds; or set prompts='all' in the "
                    "intervention",
                )
            held = held | before
        return bool(held[0]) if bool((held == held[0]).all()) else held


_told: ContextVar[Tensor | None] = ContextVar("steerkit_prompt_lengths", default=None)
carry_along(_told)


def told() -> Tensor | None:
    """What the caller has said with `prompt_lengths`, if anything."""
    return _told.get()


@contextmanager
def prompt_lengths(lengths: int | Sequence[int] | Tensor) -> Iterator[None]:
    """Say where the prompts of forward passes end that also read an answer (teacher forcing).

    A forward pass of your own over a prompt and its answer, as for the likelihood of the answer, does not say where the
    one ends and the other begins; without being told, steering takes all of it for the prompt. Inside this context the
    tokens behind the prompt are steered as those that `generate` reads one by one.

    Args:
        lengths: Number of positions before the answer, from the left and with the padding before them; one number for
            all rows of the batch, or one for each. With left padding that is the width of the padded prompts, with
            right padding the number of tokens of each prompt. In an encoder-decoder model they are those of the
            decoder, which tells them from its start token by itself. `generate` is not affected.

    Raises:
        OptionError: They are no positive whole numbers.

    Example:
        >>> with sk.steer(model, vector), sk.prompt_lengths(prompt["input_ids"].shape[1]):
        ...     logits = model(**prompt_and_answer).logits
    """
    try:
        given = torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        given = torch.empty(0, device="cpu")
    if given.is_floating_point() or given.dtype == torch.bool or given.dim() > 1 or not given.numel():
        raise OptionError(
            f"prompt_lengths({quoted(lengths)})", expected="a whole number, or one for each row of the batch"
        )
    if bool((given < 1).any()):
        raise OptionError(f"prompt_lengths({quoted(lengths)})", expected="positive numbers of positions")
    token = _told.set(given.detach().long())
    try:
        with carried():
            yield
    finally:
        _told.reset(token)


def told_lengths(rows: int, stop: int, start: int) -> Tensor | None:
    """`[rows]`: where the prompts end, if the caller has told it.

    Args:
        rows: Rows of the pass that is about to run.
        stop: The position at which it ends.
        start: The position at which it starts.

    Raises:
        OptionError: That can't be of this pass.
    """
    given = told()
    if given is None:
        return None
    if given.dim() and given.shape[0] not in (1, rows):
        raise OptionError(
            f"prompt_lengths of {given.shape[0]} rows, and a forward pass of {rows}", expected="one for each row"
        )
    if not start and int(given.max()) > stop:
        raise OptionError(
            f"prompt_lengths up to {int(given.max())}, and a forward pass over {stop} positions",
            expected="at most as many positions as the pass reads",
        )
    return given.expand(rows) if given.dim() == 0 or given.shape[0] == 1 else given
