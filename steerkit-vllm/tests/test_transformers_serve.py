"""`steerkit serve --engine transformers`: its answers beside `generate` with hooks that are written here."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers
from conftest import environment
from lab import DEMO, prompts

import steerkit as sk
from steerkit.models import open_image
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector

STRENGTH = 1.5
TOKENS = 12


@pytest.fixture(scope="module")
def vlm(kind, tmp_path_factory) -> Any:
    """The demo's model, or its language model alone: transformers batches continuously what has no images."""
    torch.set_num_threads(1)
    whole = sk.load(str(DEMO))
    if kind != "continuous":
        return whole
    folder = tmp_path_factory.mktemp("language")
    text = transformers.AutoModelForCausalLM.from_config(whole.model.config.text_config)
    text.model.load_state_dict(whole.model.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.model.lm_head.state_dict())
    text.save_pretrained(folder)
    tokenizer = whole.processor.tokenizer
    tokenizer.chat_template = (
        "{{ bos_token }}{% for each in messages %}USER: {{ each['content'] }}\nASSISTANT:{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("processor_class", None)  # the demo's, which has images
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return sk.load(str(folder))


@pytest.fixture(scope="module")
def vector(vlm) -> SteeringVector:
    """An addition to the last token of the prompt and to what follows."""
    noise = torch.Generator().manual_seed(6)
    metadata = PackMetadata(
        method=MethodRecord(name="check"), model=vlm.record, interventions=(sk.Intervention(tokens="last"),)
    )
    return SteeringVector({Key(layer): 0.6 * torch.randn(96, generator=noise) for layer in range(8)}, metadata)


def expected(vlm: Any, vector: SteeringVector, sample: sk.Sample, dose: float) -> str:
    """What the model says, its blocks hooked."""
    inputs = vlm.inputs([sample])
    length, handles = inputs["input_ids"].shape[1], []
    for layer, block in enumerate(vlm.model.get_submodule(vlm.architecture.layers)):
        added = dose * vector.tensors[Key(layer)]

        def add(module: Any, given: Any, output: Any, added: torch.Tensor = added) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).clone()
            state[:, -1:] += added
            return (state, *output[1:]) if isinstance(output, tuple) else state

        handles.append(block.register_forward_hook(add))
    with torch.no_grad():
        output = vlm.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    for handle in handles:
        handle.remove()
    return vlm.format.tokenizer.decode(output[0, length:], skip_special_tokens=True)


CONTINUOUS = ("continuous-batching", "cb-num-blocks=64", "cb-block-size=16", "cb-max-batch-tokens=256")


@pytest.fixture(scope="module", params=["one by one", "one by one after all", "continuous"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def address(vlm, vector, kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    vector.save(folder / "v.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # the torchvision beside vLLM's CPU build can't decode images
    start = "import runpy, sys; sys.modules['torchvision'] = None; runpy.run_module('steerkit', run_name='__main__')"
    options = () if kind == "one by one" else CONTINUOUS
    command = [
        *(sys.executable, "-c", start, "serve", vlm.model.name_or_path, "--engine", "transformers", "--policy", "off"),
        *("--vector", str(folder / "v.safetensors"), "--strength", str(STRENGTH), "--port", str(port)),
        *(f"--option={each}" for each in ("device=cpu", "dtype=float32", *options)),
    ]
    log = folder / "log"
    with log.open("w") as said:
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=subprocess.STDOUT)
    try:
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        assert f"CB: {kind == 'continuous'}" in log.read_text()
    finally:
        process.kill()
        process.wait()


def chat(address: str, vlm: sk.VLM, sample: sk.Sample, **more: Any) -> str:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
    parts: list[Any] = []
    for image in sample.images:
        data = io.BytesIO()
        open_image(image).save(data, "PNG")
        code = base64.b64encode(data.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{code}"}})
    messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": sample.text}]}]
    # a temperature of 0 is greedy
    answer = client.chat.completions.create(
        model=vlm.model.name_or_path, messages=messages, max_tokens=TOKENS, temperature=0, extra_body=more or None
    )
    return answer.choices[0].message.content or ""


def test_every_request_is_steered(address, kind, vlm, vector):
    samples = [sample for sample in prompts() if not (kind == "continuous" and sample.images)][:8]
    want = [expected(vlm, vector, sample, STRENGTH) for sample in samples]
    plain = [expected(vlm, vector, sample, 0.0) for sample in samples]
    assert sum(a != b for a, b in zip(want, plain, strict=True)) >= 4
    assert [chat(address, vlm, sample) for sample in samples] == want
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda sample: chat(address, vlm, sample), samples)) == want


def test_keys_of_vllm_are_refused(address, vlm):
    with pytest.raises(openai.APIStatusError, match="422"):
        chat(address, vlm, prompts()[1], vllm_xargs={"steerkit_strength": 0})
