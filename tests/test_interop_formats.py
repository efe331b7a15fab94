"""Each foreign format: what the other library does with a file is what steerkit does with the converted one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import tiny
import torch
from foreign import adding, hooked
from torch import Tensor, nn

import steerkit as sk
from steerkit.errors import LayerRangeError, ModelMismatchError, OptionError, PackFormatError, UnknownNameError
from steerkit_vectors_hub import interop
from steerkit_vectors_hub.interop import Choice, ModelFacts, steering_vectors

FACTS = ModelFacts("LlavaForConditionalGeneration", "llava", 4)
REFERENCE = foreign.directions(9, 2)[2]


def _astra(blocks: list[nn.Module], number: int, direction: Tensor) -> AbstractContextManager[None]:
    """Published form: at the last token, away from the direction as far as the token points along it."""

    def change(h: Tensor) -> Tensor:
        last = h[:, -1]
        along = nn.functional.cosine_similarity(last - REFERENCE, direction[None]).clamp(0, 1)
        moved = last - (3.0 * along * last.norm(dim=-1))[:, None] * direction / direction.norm()
        return torch.cat([h[:, :-1], moved[:, None]], dim=1)

    return hooked({blocks[number - 1]: change})


def _read_astra(folder: Path, number: int, direction: Tensor) -> tuple[Path, Choice]:
    path = foreign.astra(folder / "jb_diff_attr_activations.pt", {number: direction})
    return path, Choice(reference=foreign.astra(folder / "reference_activations.pt", {number: REFERENCE}))


def _output(blocks: list[Any], number: int, direction: Tensor, dose: float = 1.0) -> AbstractContextManager[None]:
    return hooked({blocks[number]: adding(direction, dose)})


@dataclass
class Case:
    """A format: a file with one direction under a number, and what its library does with it."""

    format: str
    file: Callable[[Path, int, Tensor], Path | tuple[Path, Choice]]
    applied: Callable[[list[Any], int, Tensor], AbstractContextManager[None]] = _output
    strength: float = 1.0
    block: int = 2
    detected: bool = True


def caa_folder(folder: Path, directions: dict[int, Tensor], *models: str) -> Path:
    """A file for each layer, and for each model of its own name."""
    (folder / "vectors").mkdir()
    for layer, direction in directions.items():
        for model in models or ("_Llama-2-7b-chat-hf",):
            foreign.pickled(folder / "vectors" / f"vec_layer_{layer}{model}.pt", direction)
    return folder / "vectors"


CASES = {
    "llamacpp": Case("llamacpp", lambda f, n, d: foreign.control_vector(f / "v.gguf", {n: d})),
    "repeng": Case("repeng", lambda f, n, d: foreign.control_vector(f / "v.gguf", {n: d}), detected=False),
    "steering-vectors": Case(
        "steering-vectors",
        lambda f, n, d: foreign.pickled(f / "v.pt", {"layer_activations": {n: d}, "layer_type": "decoder_block"}),
        detected=False,
    ),
    "steering-vectors, mlp": Case(
        "steering-vectors",
        lambda f, n, d: foreign.pickled(f / "v.pt", {"layer_activations": {n: d}, "layer_type": "mlp"}),
        lambda blocks, n, d: hooked({blocks[n].mlp: adding(d)}),
        detected=False,
    ),
    "steering-vectors, bare": Case(
        "steering-vectors",
        lambda f, n, d: (foreign.pickled(f / "v.pt", {n: d}), Choice(site="attn_out")),
        lambda blocks, n, d: hooked({blocks[n].self_attn: adding(d)}),
        detected=False,
    ),
    "steering-lite": Case(
        "steering-lite",
        lambda f, n, d: foreign.lite(f / "v.safetensors", {n: d}),
        lambda blocks, n, d: _output(blocks, n, d, 2.0),
    ),
    "steering-lite, ablation": Case(
        "steering-lite",
        lambda f, n, d: foreign.lite(f / "v.safetensors", {n: d / d.norm()}, method="directional_ablation", coeff=0.5),
        lambda blocks, n, d: hooked(
            {blocks[n]: lambda h: h - (h @ d)[..., None] * d / d.norm() ** 2 + 0.5 * d / d.norm()}
        ),
    ),
    "activation-steering": Case(
        "activation-steering",
        lambda f, n, d: foreign.svec(f / "v.svec", {n: d}),
        lambda blocks, n, d: hooked({blocks[n]: adding(d)}, at_input=True),
        block=1,
    ),
    "steerkit-probe": Case(
        "steerkit-probe",
        lambda f, n, d: foreign.probe(f / "v.probe.safetensors", n, d, settings={"auto_alpha": "1.500000"}),
    ),
    "steerkit-probe, resid_pre": Case(
        "steerkit-probe",
        lambda f, n, d: foreign.probe(f / "v.probe.safetensors", n, d, "resid_pre"),
        lambda blocks, n, d: hooked({blocks[n]: adding(d)}, at_input=True),
        block=1,
    ),
    "easyedit": Case("easyedit", lambda f, n, d: foreign.pickled(f / f"layer_{n}.pt", d), detected=False),
    "astra": Case("astra", _read_astra, _astra, strength=3.0, block=1, detected=False),
    "tensors, TransformerLens": Case(
        "tensors", lambda f, n, d: foreign.pickled(f / "v.pt", {f"blocks.{n}.hook_resid_post": d}), detected=False
    ),
    "tensors, CAA": Case("tensors", lambda f, n, d: foreign.pickled(f / f"vec_layer_{n}_Llama-2-7b-chat-hf.pt", d)),
    "tensors, persona vectors": Case(
        "tensors",
        lambda f, n, d: (
            foreign.pickled(f / "evil_response_avg_diff.pt", foreign.stack(5, {n: d})),
            Choice(layers=(n,)),
        ),
        lambda blocks, n, d: _output(blocks, n - 1, d),
        block=1,
    ),
    "tensors, refusal direction": Case(
        "tensors",
        lambda f, n, d: foreign.refusal_direction(f, n, d),
        lambda blocks, n, d: hooked({blocks[n]: adding(d)}, at_input=True),
        block=1,
    ),
    "tensors, npy stack": Case(
        "tensors",
        lambda f, n, d: (foreign.numpy_file(f / "v.npy", foreign.stack(4, {n: d}).numpy()), Choice(layers=(n,))),
    ),
    "tensors, npz": Case("tensors", lambda f, n, d: foreign.numpy_file(f / "v.npz", {f"layer_{n}": d.numpy()})),
    "tensors, big-endian by columns": Case(
        "tensors",
        lambda f, n, d: (
            foreign.numpy_file(f / "v.npy", np.asfortranarray(foreign.stack(4, {n: d}).numpy().astype(">f8"))),
            Choice(layers=(n,)),
        ),
    ),
    "tensors, npz of hidden states": Case(
        "tensors",
        lambda f, n, d: (
            foreign.numpy_file(f / "v.npz", {str(n): d.numpy()}),
            Choice(numbering="hidden_states"),
        ),
        lambda blocks, n, d: _output(blocks, n - 1, d),
        block=1,
    ),
    "tensors, safetensors": Case("tensors", lambda f, n, d: foreign.plain(f / "v.safetensors", {f"layer_{n}": d})),
    "tensors, module paths": Case(
        "tensors", lambda f, n, d: foreign.plain(f / "v.safetensors", {f"model.layers.{n}": d})
    ),
    "tensors, a direction's number": Case(
        "tensors", lambda f, n, d: foreign.plain(f / "v.safetensors", {f"direction.{n}": d})
    ),
    "tensors, by number": Case("tensors", lambda f, n, d: foreign.pickled(f / "v.pt", {n: d[None]}), detected=False),
    "tensors, a folder of CAA": Case("tensors", lambda f, n, d: (caa_folder(f, {n: d, 0: d}), Choice(layers=(n,)))),
    "tensors, a folder of one file": Case(
        "tensors",
        lambda f, n, d: (
            foreign.pickled(f / "evil_response_avg_diff.pt", foreign.stack(5, {n: d})).parent,
            Choice(layers=(n,)),
        ),
        lambda blocks, n, d: _output(blocks, n - 1, d),
        block=1,
        detected=False,
    ),
    "tensors, a batch of one": Case(
        "tensors",
        lambda f, n, d: (
            foreign.numpy_file(f / "v.npy", foreign.stack(4, {n: d})[:, None].numpy()),
            Choice(layers=(n,)),
        ),
    ),
    "tensors, one row": Case("tensors", lambda f, n, d: foreign.numpy_file(f / f"layer_{n}.npy", d[None].numpy())),
    "tensors, npz of file names": Case(
        "tensors", lambda f, n, d: foreign.numpy_file(f / "v.npz", {f"{n}.npy": d.numpy()})
    ),
    "tensors, written for torch": Case(
        "tensors", lambda f, n, d: foreign.plain(f / "v.safetensors", {str(n): d}, {"format": "pt"})
    ),
    "tensors, at the MLP": Case(
        "tensors",
        lambda f, n, d: (foreign.pickled(f / "v.pt", {f"layer_{n}": d}), Choice(site="mlp_out")),
        lambda blocks, n, d: hooked({blocks[n].mlp: adding(d)}),
        detected=False,
    ),
    "tensors, bare": Case("tensors", lambda f, n, d: (foreign.numpy_file(f / "v.npy", d.numpy()), Choice(layers=(n,)))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_converted_vector_does_what_the_library_does(case: Case, llava: sk.VLM, tmp_path: Path, picture: Any) -> None:
    number = 2
    direction = 3 * foreign.directions(1, number)[number]
    made = case.file(tmp_path, number, direction)
    path, choice = made if isinstance(made, tuple) else (made, Choice())
    vector = interop.read(path, None if case.detected else case.format, model=FACTS, choice=choice)
    assert {key.layer for key in vector.tensors} == {case.block}

    inputs = llava.inputs([sk.Sample("How do I bake a cake?", (picture(0),))])
    blocks = list(llava.model.model.language_model.layers)

    def logits() -> Tensor:
        with torch.no_grad():
            return llava.model(**inputs).logits

    plain = logits()
    with sk.steer(llava, vector, strength=case.strength, policy="off"):
        steered = logits()
    with case.applied(blocks, number, direction):
        expected = logits()
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    for wrong in (number - 1, number + 1):
        with case.applied(blocks, wrong, direction):
            assert not torch.allclose(steered, logits(), atol=1e-2), "the test can't see an off-by-one"


def test_every_format_states_its_convention_and_is_tested() -> None:
    assert {case.format for case in CASES.values()} == set(interop.format_names())
    for name in interop.format_names():
        reader = interop.get_format(name)
        assert reader.title
        assert "block" in reader.convention


def test_history_says_where_a_vector_comes_from(tmp_path: Path) -> None:
    path = foreign.control_vector(tmp_path / "happy.gguf", foreign.directions(0, 1, 3), hint="mistral")
    vector = interop.read(path, "repeng", model=ModelFacts("MistralForCausalLM", "llava", 4, id="me/model"))
    origin, note = vector.metadata.history
    assert "repeng" in origin
    assert "happy.gguf sha256 " in origin
    assert note == "the file says model type 'mistral'"
    assert vector.metadata.model.id == "me/model"
    assert (vector.metadata.license, vector.metadata.anchors, vector.metadata.metrics) == (None, None, ())
    assert sk.SteeringVector.load(vector.save(tmp_path / "pack.safetensors")).digest() == vector.digest()


def test_facts_come_from_a_configuration_and_must_fit(tmp_path: Path) -> None:
    facts = ModelFacts.from_config(tiny.save("llava", tmp_path / "model"))
    assert (facts.architecture, facts.model_type, facts.layer_count, facts.hidden_size) == (
        "LlavaForConditionalGeneration",
        "llava",
        4,
        48,
    )
    narrow = foreign.control_vector(tmp_path / "narrow.gguf", foreign.directions(0, 1, width=32))
    with pytest.raises(ModelMismatchError, match="hidden_size 32"):
        interop.read(narrow, "llamacpp", model=facts)
    deep = foreign.control_vector(tmp_path / "deep.gguf", foreign.directions(0, 1, 4))
    with pytest.raises(LayerRangeError, match="block 4"):
        interop.read(deep, "llamacpp", model=facts)
    assert set(interop.read(deep, "llamacpp", model=facts, choice=Choice(layers=(1,))).directions) == {1}
    with pytest.raises(OptionError, match="does not say which model"):
        interop.read(deep, "llamacpp", model=ModelFacts("Some"))
    with pytest.raises(OptionError, match="holds no config"):
        ModelFacts.from_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(OptionError, match="can't be used"):
        ModelFacts.from_config(tmp_path)


def test_facts_of_a_configuration_are_those_of_the_model(family: str, vlm: sk.VLM, tmp_path: Path) -> None:
    facts, record = ModelFacts.from_config(tiny.save(family, tmp_path)), vlm.record
    assert (facts.architecture, facts.model_type) == (record.architecture, record.model_type)
    assert (facts.layer_count, facts.hidden_size) == (record.layer_count, record.hidden_size)


def test_layers_that_no_block_has_are_refused(tmp_path: Path) -> None:
    both = foreign.directions(0, 0, 2)
    with pytest.raises(PackFormatError, match=r"direction\.0"):
        interop.read(foreign.control_vector(tmp_path / "zero.gguf", both), model=FACTS)
    svec = foreign.svec(tmp_path / "zero.svec", both)
    with pytest.raises(LayerRangeError, match="input of block 0"):
        interop.read(svec, model=FACTS)
    assert set(interop.read(svec, model=FACTS, choice=Choice(layers=(2,))).directions) == {1}
    for layer, where in ((-1, "the embedding"), (4, "the final norm")):
        path = foreign.probe(tmp_path / "edge.safetensors", layer, both[2])
        with pytest.raises(LayerRangeError, match=where):
            interop.read(path, model=FACTS)
    path = foreign.probe(tmp_path / "edge.safetensors", 0, both[2], "resid_pre")
    with pytest.raises(LayerRangeError, match="input of block 0"):
        interop.read(path, model=FACTS)
    for index, where in ((0, "embedding"), (4, "final norm")):
        path, choice = _read_astra(tmp_path, index, both[2])
        with pytest.raises(LayerRangeError, match=where):
            interop.read(path, "astra", model=FACTS, choice=choice)


def test_what_is_ambiguous_is_asked(tmp_path: Path) -> None:
    two = foreign.directions(0, 1, 2)
    bare = foreign.pickled(tmp_path / "v.pt", two)
    with pytest.raises(OptionError, match="--from"):
        interop.read(bare, model=FACTS)
    with pytest.raises(OptionError, match="where its directions are added"):
        interop.read(bare, "steering-vectors", model=FACTS)
    activations = foreign.astra(tmp_path / "a.pt", two)
    with pytest.raises(OptionError, match="reference"):
        interop.read(activations, "astra", model=FACTS)
    with pytest.raises(LayerRangeError, match="steers one of them"):
        interop.read(activations, "astra", model=FACTS, choice=Choice(reference=activations))
    with pytest.raises(OptionError, match="'reference' means nothing"):
        interop.read(bare, "easyedit", model=FACTS, choice=Choice(reference=bare))
    with pytest.raises(UnknownNameError, match="Did you mean 'llamacpp'"):
        interop.read(bare, "lamacpp", model=FACTS)
    with pytest.raises(LayerRangeError, match="nothing for layer 7"):
        interop.read(bare, "steering-vectors", model=FACTS, choice=Choice(layers=(7,), site="resid_post"))


def test_other_directions_of_a_probe(tmp_path: Path) -> None:
    direction = foreign.directions(0, 1)[1]
    path = foreign.probe(tmp_path / "v.probe.safetensors", 1, direction, settings={"auto_alpha": "1.500000"})
    chosen = interop.read(path, model=FACTS, choice=Choice(direction="mass_mean"))
    assert torch.equal(chosen.directions[1], -direction)
    assert chosen.metadata.strength.recommended == 1.5
    assert "somebody/model" in chosen.metadata.model.id
    with pytest.raises(OptionError, match="no direction 'lda'"):
        interop.read(path, model=FACTS, choice=Choice(direction="lda"))
    with pytest.raises(ModelMismatchError, match="layer_count 4"):
        interop.read(path, model=ModelFacts("Any", "any", 5))


def test_a_folder_of_easyedit(tmp_path: Path) -> None:
    given = foreign.directions(0, 0, 3)
    for layer, direction in given.items():
        foreign.pickled(tmp_path / f"layer_{layer}_act_trim0.35.pt", direction)
    (tmp_path / "notes.txt").write_text("not a vector")
    vector = interop.read(tmp_path, "easyedit", model=FACTS)
    assert set(vector.directions) == {0, 3}
    assert all(torch.equal(vector.directions[layer], given[layer]) for layer in given)
    assert "layer_0_act_trim0.35.pt sha256" in vector.metadata.history[0]
    assert "notes.txt" not in vector.metadata.history[0]
    foreign.pickled(tmp_path / "layer_3.pt", given[3])
    with pytest.raises(PackFormatError, match="two files name layer 3"):
        interop.read(tmp_path, "easyedit", model=FACTS)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "spherical"}, "method 'spherical'"),
        ({"target_submodule": "mlp.down_proj"}, "something else"),
        ({"coeff": 0.0}, "coeff 0.0"),
        ({"layers": [7]}, "names layers"),
        ({"layers": "all"}, "layers 'all'"),
    ],
)
def test_steering_lite_refuses_what_it_would_change(tmp_path: Path, config: Any, said: str) -> None:
    path = foreign.lite(tmp_path / "v.safetensors", foreign.directions(0, 1), **config)
    with pytest.raises(PackFormatError, match=said):
        interop.read(path, model=FACTS)


def test_layer_norms_have_no_site(tmp_path: Path) -> None:
    value = {"layer_activations": foreign.directions(0, 1), "layer_type": "input_layernorm"}
    with pytest.raises(PackFormatError, match="input_layernorm"):
        interop.read(foreign.pickled(tmp_path / "v.pt", value), "steering-vectors", model=FACTS)
    assert "decoder_block" in steering_vectors._SITES


def test_hidden_states_of_a_stack_are_those_of_transformers(llava: sk.VLM, tmp_path: Path, picture: Any) -> None:
    """Row N of a stack is measured at `hidden_states[N]`: that is where the converted vector must be seen."""
    rows = 3 * torch.stack([foreign.directions(1, row)[row] for row in range(5)])
    path = foreign.pickled(tmp_path / "kind_prompt_last_diff.pt", rows)
    inputs = llava.inputs([sk.Sample("How do I bake a cake?", (picture(0),))])
    for row in (1, 2, 3):
        vector = interop.read(path, model=FACTS, choice=Choice(layers=(row,)))
        with torch.no_grad():
            plain = llava.model(**inputs, output_hidden_states=True).hidden_states
            with sk.steer(llava, vector, policy="off"):
                steered = llava.model(**inputs, output_hidden_states=True).hidden_states
        assert all(torch.equal(plain[below], steered[below]) for below in range(row))
        torch.testing.assert_close(steered[row] - plain[row], rows[row].expand_as(plain[row]), rtol=0, atol=1e-4)
    with pytest.raises(LayerRangeError, match=r"holds \[1, 2, 3\]"):
        interop.read(path, model=FACTS)
    for edge in (0, 4):
        with pytest.raises(LayerRangeError, match=f"index {edge} of output_hidden_states"):
            interop.read(path, model=FACTS, choice=Choice(layers=(edge,)))


@pytest.mark.parametrize(
    ("made", "choice", "error", "said"),
    [
        (lambda f: foreign.pickled(f / "vec_layer_x.pt", torch.ones(48)), Choice(), OptionError, "of which layer"),
        (lambda f: foreign.numpy_file(f / "v.npy", np.ones((3, 48))), Choice(), PackFormatError, "3 rows.* 4 blocks"),
        (lambda f: foreign.numpy_file(f / "v.npy", np.ones((2, 4, 48))), Choice(), PackFormatError, "shape"),
        (
            lambda f: foreign.numpy_file(f / "v.npy", np.ones((5, 48))),
            Choice(numbering="block"),
            OptionError,
            "5 rows for 4 blocks",
        ),
        (
            lambda f: foreign.numpy_file(f / "v.npz", {"layer_1": np.ones(48), "block_1": np.ones(48)}),
            Choice(),
            PackFormatError,
            "two keys name layer 1",
        ),
        (lambda f: foreign.pickled(f / "v.pt", {"mean": torch.ones(48)}), Choice(), PackFormatError, "names no layer"),
        (lambda f: foreign.pickled(f / "v.pt", {True: torch.ones(48)}), Choice(), PackFormatError, "names no layer"),
        (lambda f: foreign.pickled(f / "v.pt", {1: [1.0]}), Choice(), PackFormatError, "a list"),
        (
            lambda f: foreign.pickled(f / "v.pt", {1: torch.ones(48)}),
            Choice(site="mlp_out", numbering="block_input"),
            OptionError,
            "no input of their own",
        ),
        (lambda f: caa_folder(f, {1: torch.ones(48)}, "_a", "_b"), Choice(), PackFormatError, "more than the layer"),
        (
            lambda f: caa_folder(f, {1: torch.ones(48), 2: torch.ones(2, 48)}),
            Choice(),
            PackFormatError,
            "layer_2_.*shape",
        ),
        (lambda f: foreign.pickled(f / "v.pt", torch.tensor(1.0)), Choice(), PackFormatError, "shape"),
        (lambda f: foreign.refusal_direction(f, 0, torch.ones(48)), Choice(), LayerRangeError, "input of block 0"),
        (lambda f: foreign.refusal_direction(f, "2", torch.ones(48)), Choice(), PackFormatError, "layer is '2'"),
    ],
)
def test_plain_tensors_that_say_too_little_are_refused(
    tmp_path: Path, made: Any, choice: Choice, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        interop.read(made(tmp_path), "tensors", model=FACTS, choice=choice)


@pytest.mark.parametrize(
    ("name", "said", "choice"),
    [
        ("vision_tower.encoder.layers.{}", "encoder", None),
        ("visual.blocks.{}", "visual", None),
        ("audio_tower.layers.{}", "audio", None),
        ("attn_heads.layer_{}", "heads", None),
        ("resid_mid.layer_{}", "mid", None),
        ("resid_pre.layer_{}", "pre", Choice(numbering="block_input")),
        ("input_layer_{}", "input", Choice(numbering="block_input")),
        ("mlp.layer_{}", "mlp", Choice(site="mlp_out")),
        ("self_attn/layers/{}", "attn", Choice(site="attn_out")),
    ],
)
def test_a_name_that_says_another_place_is_not_taken_for_the_output_of_a_block(
    tmp_path: Path, name: str, said: str, choice: Choice | None
) -> None:
    direction = foreign.directions(2, 2)[2]
    path = foreign.pickled(tmp_path / "v.pt", {name.format(2): direction})
    with pytest.raises(OptionError, match=f"says '{said}'"):
        interop.read(path, "tensors", model=FACTS)
    if choice is not None:
        vector = interop.read(path, "tensors", model=FACTS, choice=choice)
        block, site = (1, "resid_post") if choice.site is None else (2, choice.site)
        assert torch.equal(vector.tensors[sk.Key(block, site)], direction)


@pytest.mark.parametrize("name", ["vision_layer_2.pt", "layer_2_mlp.pt", "resid_pre_layer_2.pt"])
def test_a_file_whose_name_says_another_place_is_refused_too(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    for layer in "23":
        foreign.pickled(tmp_path / "folder" / name.replace("2", layer), torch.ones(48))
    for path in (tmp_path / "folder" / name, tmp_path / "folder"):
        with pytest.raises(OptionError, match="not the output of a decoder block"):
            interop.read(path, "tensors", model=FACTS)
    named = foreign.pickled(tmp_path / "vec_layer_2_Llama-3.2-11B-Vision-Instruct.pt", torch.ones(48))
    assert list(interop.read(named, "tensors", model=FACTS).directions) == [2]


def test_an_error_of_a_direction_has_one_expectation(tmp_path: Path) -> None:
    path = foreign.pickled(tmp_path / "v.pt", {1: torch.zeros(48)})
    with pytest.raises(PackFormatError, match="is zero") as caught:
        interop.read(path, "tensors", model=FACTS)
    assert str(caught.value).count("Expected:") == str(caught.value).count("Fix:") == 1


def test_a_stack_with_the_hidden_size_first_is_turned_round_where_the_width_is_known(tmp_path: Path) -> None:
    for blocks in (4, 5):
        given = foreign.stack(blocks, foreign.directions(1, 2))
        path = foreign.pickled(tmp_path / "v.pt", given.T.contiguous())
        known = ModelFacts("Any", "any", 4, hidden_size=48)
        vector = interop.read(path, "tensors", model=known, choice=Choice(layers=(2,)))
        assert torch.equal(vector.directions[2 if blocks == 4 else 1], given[2])
        with pytest.raises(PackFormatError, match="48 rows"):
            interop.read(path, "tensors", model=FACTS, choice=Choice(layers=(2,)))


def test_what_a_number_was_taken_for_is_in_the_history(tmp_path: Path) -> None:
    path = foreign.numpy_file(tmp_path / "v.npz", {"2": np.ones(48)})
    for numbering, said in ((None, "the output of block N"), ("block_input", "the input of block N")):
        vector = interop.read(path, model=FACTS, choice=Choice(numbering=numbering))
        assert vector.metadata.history[1] == f"number N was taken as {said}"
