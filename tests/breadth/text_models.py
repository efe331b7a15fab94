"""Every `AutoModelForCausalLM` type of transformers, tiny, read and steered against plain hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LogitsProcessorList
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import steerkit as sk
from breadth import configs, pairs, processors
from breadth.cases import EQUAL, LONG, MOVED, PADDED, SHORT, CheckError, require
from breadth.checks import Recorder
from breadth.reference import apart, first
from breadth.sizes import TEXT_SIZES
from steerkit.interventions import Intervention
from steerkit.models import Sample
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector

NAMES: tuple[str, ...] = tuple(
    name
    for name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name not in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
)
BLOCKS = {"gemma3n_text": "model.layers"}
"""Where the blocks are, read in the code of transformers, if another list runs behind them."""
STREAMS = {
    "gemma3n_text": "first",
    **dict.fromkeys(("glm5_next_text", "hy_v4", "deepseek_v4"), "third"),
    "qwen4_exp_text": "flat",
}
"""Where a block's output holds several residual streams."""
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


@cache
def tokenizer() -> Any:
    """One tokenizer for all of them."""
    return processors.tokenizer({}, [])


def document(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The tiny configuration of a type; some of its entries may be others."""
    made = CONFIG_MAPPING[name]().to_dict()
    configs.shrink(made)
    configs.override(made, {**TEXT_SIZES.get(name, {}), **changes})
    for _, part in configs.parts(made):
        part.update({key: value for key, value in _ENDS.items() if key in part})
    made.pop("transformers_version", None)
    return made


def model(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The model of a type, in evaluation mode."""
    config = CONFIG_MAPPING[name].from_dict(document(name, changes))
    if hasattr(config, "is_decoder"):  # encoders of the BERT kind are decoders here
        config.is_decoder = True
    seeing = pairs.CLASSES.get(name)
    kind = getattr(transformers, seeing) if seeing else transformers.AutoModelForCausalLM._model_mapping[type(config)]
    built = pairs.build(kind, config)
    if hasattr(built, "set_default_language"):
        built.set_default_language(config.languages[0])
    return built


def blocks_of(built: nn.Module, ids: Tensor) -> nn.ModuleList:
    """The list of modules that ends last in a pass, of those whose modules run once each, in order."""
    if (path := BLOCKS.get(built.config.model_type)) is not None:
        return built.get_submodule(path)  # type: ignore[return-value]
    ended: list[tuple[nn.ModuleList, int]] = []
    handles = [
        module.register_forward_hook(lambda *_, kept=(parent, number): ended.append(kept))
        for parent in built.modules()
        if isinstance(parent, nn.ModuleList)
        for number, module in enumerate(parent)
    ]
    try:
        with torch.no_grad():
            built(input_ids=ids)
    finally:
        for handle in handles:
            handle.remove()
    whole = [
        parent
        for parent, number in ended
        if number == len(parent) - 1 and [n for other, n in ended if other is parent] == list(range(len(parent)))
    ]
    if not whole:
        raise CheckError("no list of modules runs once, in order")
    return whole[-1]


def outcome(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> str:
    """`ok`, `not built: why`, `refused: why` or `fails: how`."""
    try:
        built = model(name, changes)
        ids = [torch.tensor([tokenizer()(text)["input_ids"]]) for text in (SHORT, LONG)]
        with torch.no_grad():
            built(input_ids=ids[0])
    except Exception as error:  # whatever a default configuration does not survive
        return f"not built: {type(error).__name__}: {_line(error)}"
    try:
        _check(built, ids)
    except sk.SteerKitError as error:
        return f"refused: {_line(error)}"
    except Exception as error:
        return f"fails: {'' if isinstance(error, CheckError) else type(error).__name__ + ': '}{_line(error)}"
    return "ok"


def _check(built: Any, ids: list[Tensor]) -> None:
    blocks = blocks_of(built, ids[0])
    vlm = sk.wrap(built, tokenizer(), check=False)
    if built.get_submodule(vlm.architecture.layers) is not blocks:
        raise CheckError(f"blocks at {vlm.architecture.layers}")
    samples = [Sample(SHORT), Sample(LONG)]
    alone = [_run(built, blocks, each) for each in ids]
    found = vlm.capture(samples, engine="hooks")
    for index, (states, _) in enumerate(alone):
        for layer, state in enumerate(states):
            require(apart(found[layer][index], state), PADDED, f"prompt {index} of a batch, block {layer}")
    generator = torch.Generator().manual_seed(1)
    directions = {
        n: torch.randn(state.numel(), generator=generator) * float(state.std()) for n, state in enumerate(alone[0][0])
    }
    record = PackMetadata(method=MethodRecord(name="check"), interventions=(Intervention(),), model=vlm.record)
    for layers in ([0], sorted(directions)):
        vector = SteeringVector({Key(layer): directions[layer] for layer in layers}, record)
        with sk.steer(vlm, vector, policy="off"):
            steered = vlm.next_token_log_probabilities(samples)
        for index, each in enumerate(ids):
            _, expected = _run(built, blocks, each, {layer: directions[layer] for layer in layers})
            require(apart(steered[index], expected.log_softmax(-1)), PADDED, f"prompt {index}, steered behind {layers}")
            if apart(steered[index], alone[index][1].log_softmax(-1)) < MOVED:
                raise CheckError(f"steering behind {layers} moves nothing")
    _generated(vlm, blocks, ids, vector, directions)
    nnsight = vlm.capture(samples[:1], engine="nnsight")
    for layer, row in nnsight.items():
        require(apart(row[0], alone[0][0][layer]), EQUAL, f"block {layer} through nnsight")


def _mean(state: Tensor, width: int, streams: str | None) -> Tensor:
    """`[hidden]` at the last token of a prompt alone: the only stream, or the mean of several."""
    if streams == "first":
        return state[:, 0, -1].detach().float().mean(0)
    last = state[0, -1].detach().clone()
    return last if streams is None else last.reshape(-1, width).float().mean(0)


def _moved(state: Tensor, direction: Tensor, streams: str | None, last: int) -> Tensor:
    """The state with a direction added, in every stream, from the last token of the prompt on; -1: to the last token.

    A model without a KV cache reads the prompt and all that it has written in every pass.
    """
    state = state.clone()
    tokens = slice(last if state.shape[2 if streams == "first" else 1] > last else -1, None)
    if streams == "first":
        state[:, :, tokens] += direction
    elif streams == "third":
        state[:, tokens] += direction
    else:
        state[:, tokens] += direction.repeat(state.shape[-1] // len(direction))
    return state


def _generated(
    vlm: sk.VLM, blocks: nn.ModuleList, ids: list[Tensor], vector: SteeringVector, directions: dict[int, Tensor]
) -> None:
    """Three tokens behind each prompt, steered in its last token and in every generated one."""
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "use_cache": True}
    ours = Recorder()
    with sk.steer(vlm, vector, policy="off"):
        vlm.generate([Sample(SHORT), Sample(LONG)], logits_processor=LogitsProcessorList([ours]), **options)
    for index, each in enumerate(ids):
        theirs = Recorder()
        with _patched(vlm.model, blocks, directions, each.shape[1] - 1), torch.no_grad():
            answer: Any = vlm.model
            answer.generate(each, logits_processor=LogitsProcessorList([theirs]), **options)
        for step, expected in enumerate(theirs.asked):
            alone = len(ours.asked) > len(theirs.asked)
            found = ours.asked[step + index * len(theirs.asked)][0] if alone else ours.asked[step][index]
            require(apart(found, expected[0]), PADDED, f"step {step} of answer {index}")


def _run(
    built: Any, blocks: nn.ModuleList, ids: Tensor, directions: dict[int, Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """The state behind each block at the last token of a prompt alone, and the logits; directions are added there."""
    with _patched(built, blocks, directions or {}) as states, torch.no_grad():
        logits = built(input_ids=ids).logits[0, -1]
    return [states[number] for number in sorted(states)], logits


@contextlib.contextmanager
def _patched(
    built: Any, blocks: nn.ModuleList, directions: dict[int, Tensor], last: int = -1
) -> Iterator[dict[int, Tensor]]:
    """Let blocks add directions to what they return, see `_moved`; the states behind them."""
    streams, width = STREAMS.get(built.config.model_type), int(built.config.get_text_config().hidden_size)
    states: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):

        def forward(*args: Any, _number: int = number, _original: Any = block.forward, **options: Any) -> Any:
            output = _original(*args, **options)
            state = first(output)
            if _number in directions:
                state = _moved(state, directions[_number], streams, last)
            states[_number] = _mean(state, width, streams)
            return state if isinstance(output, Tensor) else type(output)((state, *output[1:]))

        block.forward = forward  # type: ignore[method-assign]
    try:
        yield states
    finally:
        for block in blocks:
            del block.forward


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
