"""What the kit compares with: plain torch hooks, without the engines, the operations and the trackers of steerkit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from steerkit.engines.capturing import call_target, forward_inputs, hidden, with_hidden
from steerkit.interventions import Site
from steerkit.models import Architecture, Sample
from steerkit.vlm import VLM

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
_PLAIN = (bool, int, float, str, type(None))

Place = tuple[int, Site]


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list[str]]:
    """The classes of all modules that ran while the block was open: empty if the model did not."""
    ran: list[str] = []
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(
                module.register_forward_pre_hook(lambda module, args: ran.append(type(module).__name__))
            )
        yield ran


def traces_left(model: nn.Module) -> list[Any]:
    """What work on a model might leave on it: hooks, and the names and plain values of attributes, module by module."""
    return [
        (
            name,
            [len(getattr(module, hooks)) for hooks in _HOOKS],
            sorted((key, repr(value)) for key, value in vars(module).items() if isinstance(value, _PLAIN)),
            sorted(vars(module)),
        )
        for name, module in model.named_modules()
    ]


class _Recorder(LogitsProcessor):
    """The scores of each step; of a `generate` that asks no processor, what the head gives."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []
        self.given: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        self.asked.append(scores.detach().clone())
        return scores

    def head(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.given.append(output[:, -1].detach().clone())


def answer_logits(vlm: VLM, samples: Sequence[Sample], steps: int = 3) -> list[Tensor]:
    """`[rows, vocabulary]` for each token of greedy answers of exactly `steps` tokens, batch after batch.

    Tokens that stand for images are kept out of the answers, where they would mean nothing.
    """
    recorder = _Recorder()
    more: dict[str, Any] = {}
    if vlm.architecture.image_token_ids:
        more["suppress_tokens"] = sorted(vlm.architecture.image_token_ids)
    head = cast("Any", vlm.model).get_output_embeddings()
    with nullcontext() if head is None else head.register_forward_hook(recorder.head):
        vlm.generate(
            samples,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            logits_processor=LogitsProcessorList([recorder]),
            **more,
        )
    return recorder.asked or recorder.given


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two lists of logits, of which infinite ones are left out."""
    pairs = zip(one, other, strict=True)
    return max(float((a - b).nan_to_num(0.0, 0.0, 0.0).abs().max()) for a, b in pairs)


def outputs(
    model: nn.Module, inputs: Mapping[str, Any], architecture: Architecture, places: Sequence[Place], **options: Any
) -> tuple[dict[Place, Tensor], Any]:
    """`{place: [batch, tokens, hidden]}` from one whole forward pass, and what the model returned.

    Of a block that runs several times it is the last run; of several residual streams their mean. Places that do not
    run in the pass are missing.
    """
    found: dict[Place, Tensor] = {}

    def keep(place: Place) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            h = hidden(output).detach().clone()
            found[place] = torch.stack(tuple(streams(h, architecture))).mean(0) if place[1] == "resid_post" else h

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for place in places:
            hooks.enter_context(model.get_submodule(architecture.site(*place)).register_forward_hook(keep(place)))
        target = call_target(model, inputs, architecture)
        return found, target(**forward_inputs(model, dict(inputs), architecture), **options)


@contextmanager
def added(model: nn.Module, architecture: Architecture, directions: Mapping[Place, Tensor]) -> Iterator[None]:
    """Add a direction to the last token of every output of some places, for unpadded prompts.

    To a block that runs several times it is added in its last run, and to several residual streams to each.
    """

    def add(place: Place, direction: Tensor) -> Callable[..., Any]:
        runs = [0]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            runs[0] += 1
            if architecture.runs and runs[0] % architecture.runs[place[0]]:
                return output
            h = hidden(output).clone()
            for stream in streams(h, architecture) if place[1] == "resid_post" else [h]:
                stream[:, -1] += direction.to(h.dtype)
            return with_hidden(output, h)

        return hook

    with ExitStack() as hooks:
        for place, direction in directions.items():
            module = model.get_submodule(architecture.site(*place))
            hooks.enter_context(module.register_forward_hook(add(place, direction)))
        yield


def streams(h: Tensor, architecture: Architecture) -> Sequence[Tensor]:
    """`[batch, tokens, hidden]` of each residual stream of a block's output: views of it."""
    if architecture.state == "streams_first":
        return h.unbind(0)
    if architecture.state == "streams_third":
        return h.unbind(2)
    return h.split(architecture.hidden_size, dim=-1) if architecture.state == "streams_flat" else [h]


def hidden_states(returned: Any) -> Sequence[Tensor] | None:
    """What a model says its decoder's hidden states are, embeddings first; None where it does not tell."""
    for output in (returned, getattr(returned, "language_model_outputs", None)):
        for name in ("decoder_hidden_states", "hidden_states"):
            if (found := getattr(output, name, None)) is not None:
                return found
    return None
