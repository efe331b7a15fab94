"""The same text model, the same vector, the same steered logits: the real libraries against the converted directions.

steerkit serves vision-language models, so the converted directions are added by plain hooks at the outputs of the
blocks that they name. Libraries that are not installed are skipped; docs/interop.md says how to install them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import steerkit as sk
from steerkit.errors import LayerRangeError, OptionError, PackFormatError
from steerkit_vectors_hub import interop
from steerkit_vectors_hub.interop import Choice, ModelFacts
from steerkit_vectors_hub.interop.repeng import from_control_vector, to_control_vector

LAYERS, WIDTH = 4, 32
FACTS = ModelFacts("LlamaForCausalLM", "llama", LAYERS)
PROMPT = torch.tensor([[1, 5, 9, 13, 40]])


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tiny seeded text model."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def repeng() -> Iterator[Any]:
    """The library; its release 0.4 names a type that NumPy 2 no longer has."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(np, "float_", np.float64, raising=False)
        yield pytest.importorskip("repeng")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=PROMPT).logits


def steered(model: Any, directions: Mapping[int, Tensor], shift: int = 0) -> Tensor:
    """Logits with directions added at the outputs of blocks."""
    blocks = model.model.layers
    with foreign.hooked({blocks[layer + shift]: foreign.adding(each) for layer, each in directions.items()}):
        return logits(model)


def by_repeng(repeng: Any, model: Any, control: Any) -> Tensor:
    wrapped = repeng.ControlModel(model, list(control.directions))
    try:
        wrapped.set_control(control)
        return logits(wrapped)
    finally:
        wrapped.unwrap()


def check(expected: Tensor, model: Any, directions: Mapping[int, Tensor]) -> None:
    """The same logits; and others one block further on, so that an off-by-one shows."""
    torch.testing.assert_close(steered(model, directions), expected, rtol=1e-5, atol=1e-5)
    for shift in (-1, 1):
        if all(0 <= layer + shift < LAYERS for layer in directions):
            assert not torch.allclose(steered(model, directions, shift), expected, atol=1e-2)
    assert not torch.allclose(logits(model), expected, atol=1e-2)


def made(*layers: int) -> dict[int, Tensor]:
    return foreign.directions(3, *layers, width=WIDTH)


@pytest.mark.parametrize("layers", [(1, 2), (2,), (0, 2), (3,)])
def test_what_repeng_exports_steers_as_in_repeng(repeng: Any, llama: Any, tmp_path: Path, layers: Any) -> None:
    control = repeng.ControlVector("llama", {layer: each.numpy() for layer, each in made(*layers).items()})
    control.export_gguf(tmp_path / "v.gguf")
    vector = interop.read(tmp_path / "v.gguf", "repeng", model=FACTS)
    check(by_repeng(repeng, llama, control), llama, vector.directions)
    assert vector.metadata.model.model_type == "llama"
    direct = from_control_vector(control, model=FACTS)
    assert direct.digest() == vector.digest()
    assert "repeng" in direct.metadata.history[0]
    if 0 not in layers:
        assert interop.read(tmp_path / "v.gguf", model=FACTS).digest() == vector.digest()


@pytest.mark.parametrize("format", ["repeng", "llamacpp"])
def test_what_is_written_steers_the_same_in_repeng(repeng: Any, llama: Any, tmp_path: Path, format: str) -> None:
    control = repeng.ControlVector("llama", {layer: each.numpy() for layer, each in made(1, 2).items()})
    vector = 0.5 * from_control_vector(control, model=FACTS)
    assert interop.write(vector, tmp_path / "w.gguf", format) == ()
    imported = repeng.ControlVector.import_gguf(tmp_path / "w.gguf")
    assert imported == 0.5 * control
    assert imported == to_control_vector(vector)
    check(by_repeng(repeng, llama, imported), llama, vector.directions)


def test_a_trained_control_vector_survives_the_round_trip(repeng: Any, llama: Any, tmp_path: Path) -> None:
    def tokens(texts: list[str], **ignored: Any) -> Any:
        ids = torch.tensor([[ord(letter) % 64 for letter in text] for text in texts])
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    entries = [repeng.DatasetEntry(f"{letter} good", f"{letter} evil") for letter in "abcdef"]
    control = repeng.ControlVector.train(llama, tokens, entries)
    assert set(control.directions) == {1, 2, 3}
    control.export_gguf(tmp_path / "v.gguf")
    vector = interop.read(tmp_path / "v.gguf", "repeng", model=FACTS, choice=Choice(layers=(2, 3)))
    interop.write(vector, tmp_path / "w.gguf", "repeng")
    back = repeng.ControlVector.import_gguf(tmp_path / "w.gguf")
    assert {layer: each.tolist() for layer, each in back.directions.items()} == {
        layer: control.directions[layer].tolist() for layer in (2, 3)
    }


def test_gguf_files_say_what_llama_cpp_wants(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    vector = interop.read(
        foreign.control_vector(tmp_path / "v.gguf", made(1, 3)), model=FACTS, choice=Choice(layers=(3,))
    )
    interop.write(vector.to("bfloat16"), tmp_path / "w.gguf", "llamacpp")
    reader = gguf.GGUFReader(tmp_path / "w.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 1
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type.name, tensor.data.shape) == ("direction.3", "F32", (WIDTH,))
    torch.testing.assert_close(torch.from_numpy(tensor.data.copy()), vector.to("bfloat16").directions[3].float())


def test_layer_0_is_an_error_for_llama_cpp_and_never_a_shift(tmp_path: Path) -> None:
    vector = interop.read(foreign.control_vector(tmp_path / "v.gguf", made(0, 2)), "repeng", model=FACTS)
    with pytest.raises(LayerRangeError, match="layer 0"):
        interop.write(vector, tmp_path / "w.gguf", "llamacpp")
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]
    interop.write(vector.select([2]), tmp_path / "w.gguf", "llamacpp")
    assert set(interop.read(tmp_path / "w.gguf", "llamacpp", model=FACTS).directions) == {2}


@pytest.mark.parametrize("layer_type", ["decoder_block", "self_attn", "mlp"])
def test_steering_vectors_saved_as_they_are(llama: Any, tmp_path: Path, layer_type: Any) -> None:
    library = pytest.importorskip("steering_vectors")
    theirs = library.SteeringVector(made(1, 2), layer_type)
    torch.save(theirs, tmp_path / "v.pt")
    vector = interop.read(tmp_path / "v.pt", "steering-vectors", model=FACTS)
    with theirs.apply(llama):
        expected = logits(llama)
    modules = [
        {"decoder_block": block, "self_attn": block.self_attn, "mlp": block.mlp}[layer_type]
        for block in llama.model.layers
    ]
    for shift in (-1, 0, 1):
        changes = {modules[layer + shift]: foreign.adding(each) for layer, each in vector.directions.items()}
        with foreign.hooked(changes):
            assert torch.allclose(logits(llama), expected, atol=1e-5) is (shift == 0)
    assert not torch.allclose(logits(llama), expected, atol=1e-2)


def test_objects_that_are_no_control_vectors_are_refused() -> None:
    class Fake:
        model_type = "llama"
        directions: Any = None

    fake = Fake()
    for directions, error in (
        (None, OptionError),
        ({}, PackFormatError),
        ({"1": np.ones(4)}, PackFormatError),
        ({1: np.ones((2, 4))}, PackFormatError),
        ({1: np.full(4, np.nan)}, sk.SteerKitError),
        ({1: np.zeros(4)}, PackFormatError),
        ({1: np.ones(4), 2: np.ones(5)}, PackFormatError),
    ):
        fake.directions = directions
        with pytest.raises(error):
            from_control_vector(fake, model=FACTS)  # type: ignore[arg-type]


def test_without_the_packages_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign.control_vector(tmp_path / "v.gguf", made(1))
    vector = interop.read(path, model=FACTS)
    for name in ("gguf", "repeng"):
        monkeypatch.setitem(sys.modules, name, None)
    assert torch.equal(interop.read(path, model=FACTS).directions[1], vector.directions[1]), "reading needs no package"
    with pytest.raises(OptionError, match="gguf") as caught:
        interop.write(vector, tmp_path / "w.gguf", "llamacpp")
    assert "steerkit-vlm[gguf]" in (caught.value.fix or "")
    with pytest.raises(OptionError, match="repeng can't be imported"):
        to_control_vector(vector)
