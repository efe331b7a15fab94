"""Control vectors in llama.cpp itself: a tiny Llama as GGUF, steered by its library and by hooks, layer by layer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import foreign
import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from steerkit_vectors_hub import interop
from steerkit_vectors_hub.interop import ModelFacts

LAYERS, WIDTH, HEADS, VOCABULARY = 4, 64, 4, 96
FACTS = ModelFacts("LlamaForCausalLM", "llama", LAYERS)
PROMPT = [1, 5, 9, 13, 40]


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tiny seeded text model."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def converted(model: Any, path: Path) -> Path:
    """The model as GGUF; rotary dimensions, halves in transformers, are neighbours in llama.cpp."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for key, value in model.state_dict().items():
        weight = value.numpy()
        heads = {"q_proj": HEADS, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        if heads:
            halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, WIDTH)
            weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        name = names.get_name(key, try_suffixes=(".weight",))
        assert name is not None
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Parameters(ctypes.Structure):
    """Structures that llama.cpp fills in itself and takes back; nobody looks into them, so they may be larger."""

    _fields_ = (("bytes", ctypes.c_char * 1024),)


class Native:
    """A model of llama.cpp, through the C interface of the library that xllamacpp carries."""

    def __init__(self, path: Path) -> None:
        module = pytest.importorskip("xllamacpp.xllamacpp")
        self._c = ctypes.CDLL(module.__file__)
        for name, kind in {
            "llama_model_default_params": Parameters,
            "llama_context_default_params": Parameters,
            "llama_batch_get_one": Parameters,
            "llama_model_load_from_file": ctypes.c_void_p,
            "llama_init_from_model": ctypes.c_void_p,
            "llama_get_logits_ith": ctypes.POINTER(ctypes.c_float),
        }.items():
            getattr(self._c, name).restype = kind
        settings = self._c.llama_model_default_params()
        self._model = ctypes.c_void_p(self._c.llama_model_load_from_file(str(path).encode(), settings))
        assert self._model

    def logits(self, control: Path | None = None) -> Tensor:
        """Logits of the prompt's last token, with a file of directions at the layers that it names."""
        c = self._c
        context = ctypes.c_void_p(c.llama_init_from_model(self._model, c.llama_context_default_params()))
        assert context
        if control is not None:
            # as llama.cpp lays it out: a row for each layer from 1 on
            rows = np.zeros((LAYERS - 1, WIDTH), np.float32)
            for tensor in gguf.GGUFReader(control).tensors:
                kind, layer = tensor.name.split(".")
                assert kind == "direction"
                rows[int(layer) - 1] = tensor.data
            data = rows.ctypes.data_as(ctypes.c_void_p)
            assert c.llama_set_adapter_cvec(context, data, ctypes.c_size_t(rows.size), WIDTH, 1, LAYERS) == 0
        tokens = (ctypes.c_int32 * len(PROMPT))(*PROMPT)
        assert c.llama_decode(context, c.llama_batch_get_one(tokens, len(PROMPT))) == 0
        logits = torch.tensor(c.llama_get_logits_ith(context, -1)[:VOCABULARY])
        c.llama_free(context)
        return logits


@pytest.fixture(scope="module")
def native(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Native:
    return Native(converted(llama, tmp_path_factory.mktemp("llama") / "model.gguf"))


def hooked(model: Any, directions: Mapping[int, Tensor]) -> Tensor:
    blocks = model.model.layers
    with (
        torch.no_grad(),
        foreign.hooked({blocks[layer]: foreign.adding(each) for layer, each in directions.items()}),
    ):
        return model(input_ids=torch.tensor([PROMPT])).logits[0, -1]


def test_the_model_is_the_same_there(llama: Any, native: Native) -> None:
    torch.testing.assert_close(native.logits(), hooked(llama, {}), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 2, 3)], ids=str)
def test_directions_move_the_logits_as_hooks_do(llama: Any, native: Native, tmp_path: Path, layers: Any) -> None:
    directions = foreign.directions(3, *layers, width=WIDTH)
    source = foreign.control_vector(tmp_path / "theirs.gguf", directions)
    vector = interop.read(source, "llamacpp", model=FACTS)
    assert interop.write(vector, tmp_path / "ours.gguf", "llamacpp") == ()
    expected = hooked(llama, directions) - hooked(llama, {})
    found = native.logits(tmp_path / "ours.gguf") - native.logits()
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    for layer in layers:  # a shift by one block would show
        other = hooked(llama, {(layer + 1) % LAYERS: directions[layer]}) - hooked(llama, {})
        assert float((found - other).abs().max()) > 0.05
