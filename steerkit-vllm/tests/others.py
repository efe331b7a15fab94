"""Tiny models of other types, with random weights: what vLLM answers beside transformers.

The models and their processors are those of the repository's own tests of every type, saved as folders.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from breadth import pairs, text_models  # noqa: E402
from breadth.processor_options import NAMED  # noqa: E402
from breadth.prompts import picture  # noqa: E402
from compare import closed  # noqa: E402

import steerkit as sk  # noqa: E402
from steerkit.interventions import (  # noqa: E402
    Ablate,
    Add,
    Gate,
    Intervention,
    Measure,
    MeasuredContrast,
)
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector  # noqa: E402

TOKENS = 12
CLOSE = 1e-3
"""Two best tokens that are closer than this are decided by rounding."""
ADAPTERS = ("one", "two")
DOSE = 3.0
"""Strength in bfloat16, where a change has to be larger than what rounding changes."""

TEXTS = (
    "Describe what is to be seen",
    "how do rivers find the sea and why",
    "a short one",
    "Name three tools that a carpenter uses, and say what each of them is for",
)

QWEN = {f"{name}_token": f"<|{name}|>" for name in ("vision_start", "vision_end")}
QWEN |= {f"{name}_token": f"<|{name}_pad|>" for name in ("image", "video")}
NAMED.update(dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), QWEN))  # vLLM knows them by these names

ROTARY: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"mrope_section": [16, 24, 24]},
    "qwen2_5_vl": {"mrope_section": [16, 24, 24]},
    "qwen3_vl": {"mrope_section": [24, 20, 20], "mrope_interleaved": True},
    "qwen3_5": {"mrope_section": [11, 11, 10], "mrope_interleaved": True},
}
"""What transformers takes where a configuration does not say it, and vLLM does not; every checkpoint says it."""


def model_of(name: str) -> sk.VLM:
    """The model with its processor, or with a tokenizer where it only reads text."""
    if name in pairs.NAMES:
        return sk.wrap(*pairs.pair(name))
    return sk.wrap(text_models.model(name), text_models.tokenizer())


def save(vlm: sk.VLM, folder: Path) -> None:
    """Save it as a folder that vLLM takes."""
    from safetensors.torch import load_file, save_file

    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if rotary := ROTARY.get(config["model_type"]):
        config["text_config"]["rope_parameters"] |= rotary
        file.write_text(json.dumps(config))
    file = folder / "model.safetensors"
    found = load_file(file)
    if any(key.startswith(("vision_tower.", "model.vision_tower.")) for key in found):
        # transformers 5 leaves out a name at which vLLM looks for the weights of CLIP and SigLIP
        found = {
            key if ".vision_model." in key else key.replace("vision_tower.", "vision_tower.vision_model."): value
            for key, value in found.items()
        }
        save_file(found, file, metadata={"format": "pt"})


def packs_of(vlm: sk.VLM) -> dict[str, SteeringVector]:
    """A vector of each sort: half as long as a state, or as long as it takes to change an answer."""
    states = vlm.capture([sk.Sample(TEXTS[0])], engine="hooks")
    noise = torch.Generator().manual_seed(3)
    length = 8.0 if vlm.record.model_type.startswith("gemma") else 0.5
    record = {"method": MethodRecord(name="check"), "model": vlm.record}

    def directions(count: int | None = None) -> dict[Key, torch.Tensor]:
        shape = (count,) if count else ()
        return {
            Key(layer): length * torch.randn(*shape, state.shape[-1], generator=noise) * float(state.std())
            for layer, state in states.items()
        }

    def pack(tensors: dict[Key, torch.Tensor], *interventions: Intervention) -> SteeringVector:
        return SteeringVector(tensors, PackMetadata(interventions=interventions, **record))

    gate = Gate(measure=Measure(kind="cosine"), threshold=0.0)
    found = {
        "last": pack(directions(), Intervention(tokens="last")),
        "ablate": pack(directions(2), Intervention(operation=Ablate(), tokens="all", norm_preserving=True)),
        "gate": pack(directions(), Intervention(tokens="all", strength=2.0, gate=gate)),
    }
    if vlm.architecture.takes_images:
        contrast = Intervention(operation=Add(direction=MeasuredContrast()), layers=tuple(states), prompts="with_image")
        found["image"] = pack(directions(), Intervention(tokens="image", strength=2.0))
        found["sample"] = pack({}, contrast)
    return found


class Forced(LogitsProcessor):
    """Has a model say what another one has said."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave one token."""
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(self._tokens)]), 0.0)


def answer(
    vlm: sk.VLM, sample: sk.Sample, pack: SteeringVector | None, forced: list[int] | None = None, dose: float = 1.0
) -> list[tuple[int, float]]:
    """Each token of transformers' answer, and how far behind the second best one is; of a forced one, how likely."""
    inputs = vlm.inputs([sample])
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}

    def run() -> Any:
        with torch.no_grad():
            return vlm.model.generate(
                **inputs,
                **options,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
                logits_processor=[] if forced is None else [Forced(forced)],
            )

    try:
        if pack is None:
            made = run()
        else:
            with sk.steer(vlm, pack, strength=dose, policy="off"):
                made = run()
    except sk.errors.NothingSteeredError:
        made = run()
    tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if forced is not None:
        assert tokens == forced
        likely = (logits[0].float().log_softmax(-1) for logits in made.logits)
        return [(token, float(each[token])) for token, each in zip(tokens, likely, strict=True)]
    margins = [float(logits[0].topk(2).values.diff().abs()) for logits in made.logits]
    return list(zip(tokens, margins, strict=True))


def adapted(vlm: sk.VLM, folder: Path) -> Any:
    """The model with `ADAPTERS` as PEFT has it, which are saved beside one another."""
    import peft

    torch.manual_seed(4)
    targets = [
        name
        for name, _ in vlm.model.get_submodule(vlm.architecture.layers).named_modules(prefix=vlm.architecture.layers)
        if name.endswith(("q_proj", "v_proj", "down_proj"))
    ]
    # PEFT's first weights change next to nothing
    settings = {"r": 4, "lora_alpha": 64, "target_modules": targets, "init_lora_weights": False}
    settings["task_type"] = "CAUSAL_LM"
    model = peft.get_peft_model(vlm.model, peft.LoraConfig(**settings), adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        model.add_adapter(name, peft.LoraConfig(**settings))
    model.save_pretrained(folder)
    return model.eval()


def under(adapters: Any, name: str | None) -> Any:
    """A model of PEFT's with one of its adapters, or with none."""
    if adapters is not None and name is None:
        return adapters.disable_adapter()
    if name is not None:
        adapters.set_adapter(name)
    return contextlib.nullcontext()


def same(found: list[int], wanted: list[tuple[int, float]]) -> bool:
    """Whether an answer is the other's, up to the first token that rounding decides."""
    for token, (other, margin) in zip(found, wanted, strict=True):
        if token != other:
            return margin < CLOSE
    return True


def _likely(vlm: sk.VLM, samples: list[sk.Sample], packs: Any, jobs: Any, outputs: Any) -> dict[str, Any]:
    """Where rounding decides tokens: how far log probabilities are from those of transformers, steered or not."""
    found: dict[str, Any] = {"off": dict.fromkeys(packs, 0.0), "moved": dict.fromkeys(packs, 0.0)}
    for (key, _, at), output in zip(jobs, outputs, strict=True):
        (said,) = output.outputs
        tokens = list(said.token_ids)
        theirs = torch.tensor([each[token].logprob for each, token in zip(said.logprobs, tokens, strict=True)])
        for name, pack in (("off", packs[key]), ("moved", None)):
            ours = torch.tensor([likely for _, likely in answer(vlm, samples[at], pack, tokens, DOSE)])
            found[name][key] = max(found[name][key], float((ours - theirs).abs().max()))
    return found


def compared(name: str, folder: Path, options: dict[str, Any], lora: bool = False) -> dict[str, Any]:
    """Which answers of vLLM are not those of transformers, and how many of those are not the unsteered ones."""
    torch.set_num_threads(1)
    vlm, rounded = model_of(name), options.get("dtype") == "bfloat16"
    if rounded:
        vlm.model.bfloat16()
    save(vlm, folder / "model")
    adapters, beside = None, {None: None}
    if lora:
        from vllm.lora.request import LoRARequest

        adapters = adapted(vlm, folder / "adapters")
        vlm = sk.wrap(adapters, vlm.processor)
        beside |= {
            name: LoRARequest(name, number, str(folder / "adapters" / name)) for number, name in enumerate(ADAPTERS, 1)
        }
        # vLLM's kernels for the CPU take the last place for requests without an adapter, which must stay empty
        options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": len(beside), **options}
    visual = vlm.architecture.takes_images
    samples = [
        sk.Sample(text, images=(picture(at),) if visual and at % 2 == 0 else ()) for at, text in enumerate(TEXTS)
    ]
    packs = packs_of(vlm)
    if rounded:
        del packs["gate"]  # rounding decides whether it is open, too
    files = {}
    for key, pack in packs.items():
        files[key] = str(folder / f"{key}.safetensors")
        pack.save(files[key])
    every = {"": None, **packs}
    wanted: dict[Any, list[list[tuple[int, float]]]] = {}
    for name in beside:
        with under(adapters, name):
            for key, pack in every.items():
                wanted[key, name] = [] if rounded else [answer(vlm, sample, pack) for sample in samples]
    ids = [vlm.inputs([sample])["input_ids"][0].tolist() for sample in samples]

    from vllm import LLM, SamplingParams

    arguments: dict[str, Any] = {
        "model": str(folder / "model"),
        "dtype": "float32",
        "max_model_len": 512,
        "enforce_eager": True,
        "max_num_seqs": 16,
        "block_size": 32,
        "additional_config": {"steerkit": {"packs": files, "policy": "off"}},
        **({"limit_mm_per_prompt": {"image": 1, "video": 0}} if visual else {}),
    }
    llm = LLM(**(arguments | options))
    jobs = [(key, name, at) for at in range(len(samples)) for key, name in wanted]
    given, asked = [], []
    for key, _, at in jobs:
        assert vlm.format is not None
        tokenizer = vlm.format.tokenizer
        text = vlm.format.render(samples[at], len(samples[at].images))
        prompt: dict[str, Any] = {"prompt": text}
        if tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
            prompt = {"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
        given.append(
            {**prompt, **({"multi_modal_data": {"image": samples[at].images[0]}} if samples[at].images else {})}
        )
        extra = {"steerkit_pack": key, "steerkit_strength": DOSE if rounded else 1.0} if key else None
        asked.append(
            SamplingParams(
                temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=0, extra_args=extra
            )
        )
    try:
        outputs = llm.generate(
            given, asked, use_tqdm=False, lora_request=[beside[name] for _, name, _ in jobs] if lora else None
        )
    finally:
        closed(llm)
    if rounded:
        return _likely(vlm, samples, every, jobs, outputs)
    wrong = [
        f"{key or 'plain'}, adapter {name}, on {at}"
        for (key, name, at), output in zip(jobs, outputs, strict=True)
        if list(output.prompt_token_ids) != ids[at]
        or not same(list(output.outputs[0].token_ids), wanted[key, name][at])
    ]
    said = {recipe: [[token for token, _ in each] for each in found] for recipe, found in wanted.items()}
    moved = {
        f"{key}, adapter {name}" if lora else key: sum(a != b for a, b in zip(found, said["", name], strict=True))
        for (key, name), found in said.items()
        if key
    }
    for name in beside:
        if name:
            moved[f"adapter {name}"] = sum(a != b for a, b in zip(said["", name], said["", None], strict=True))
    return {"wrong": wrong, "moved": moved, "compared": len(jobs)}
