"""The activation fingerprint: measured without a trace, right against plain PyTorch, and telling models apart."""

from __future__ import annotations

import base64
import copy
import json
import threading
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from pydantic import ValidationError

import steerkit as sk
from steerkit.analysis import (
    RELATED,
    SAME,
    SAME_HEAD,
    check_dose,
    check_fingerprint,
    logit_difference,
    norms_of,
    probes,
    relative_doses,
    responses,
    responses_or_reason,
    state_cosines,
)
from steerkit.demo import model_path
from steerkit.errors import ModelMismatchError, OptionError, ProcessorError
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    site_label,
)
from steerkit.policy import Check, Policy, TrustWarning
from steerkit.vectors import Fingerprint, Key, LogitRecord, MethodRecord, PackMetadata


@pytest.fixture
def own() -> sk.VLM:
    """A tiny LLaVA that a test may change."""
    return sk.wrap(*tiny.build("llava"))


def vector_of(vlm: sk.VLM, fingerprint: Fingerprint | None, size: float = 0.01) -> sk.SteeringVector:
    """A small direction at every layer of a model."""
    width = vlm.architecture.hidden_size
    metadata = PackMetadata(
        method=MethodRecord(name="cmrm"),
        interventions=(Intervention(),),
        model=vlm.record,
        fingerprint=fingerprint,
    )
    return sk.SteeringVector(
        {Key(layer): torch.full((width,), size) for layer in range(vlm.architecture.layer_count)}, metadata
    )


def verdict(theirs: Fingerprint, vlm: sk.VLM) -> tuple[str, str]:
    check = check_fingerprint(theirs, responses(vlm))
    return check.status, check.message


def counted(vlm: sk.VLM) -> list[int]:
    """Grows by one with every forward pass of the first decoder block."""
    passes: list[int] = []
    block = vlm.model.get_submodule(vlm.architecture.site(0, "resid_post"))
    block.register_forward_hook(lambda module, args, output: passes.append(1))
    return passes


# -- what is measured --------------------------------------------------------------------------------------------------


def test_states_are_those_of_the_last_prompt_token_at_each_block(family: str, vlm: sk.VLM) -> None:
    """Against hooks written here, on the very inputs that the model's processor makes of the probes."""
    record = vlm.fingerprint()
    for probe in record.probes:
        inputs = vlm.inputs([probes()[probe.name]])
        vlm.reset()
        found: dict[int, torch.Tensor] = {}
        handles = []
        for layer in range(vlm.architecture.layer_count):

            def keep(module: Any, args: Any, output: Any, layer: int = layer, into: Any = found) -> None:
                into[layer] = (output[0] if isinstance(output, tuple) else output)[0, -1].detach()

            handles.append(reference.module_at(vlm.model, family, layer).register_forward_hook(keep))
        with torch.no_grad():
            target = reference.target(vlm.model, inputs)
            given = dict(inputs)
            if vlm.architecture.encoder_decoder:
                given["decoder_input_ids"] = torch.full((1, 1), target.config.get_text_config().decoder_start_token_id)
            target(**given)
        for handle in handles:
            handle.remove()
        assert np.allclose(probe.norms, [found[layer].norm() for layer in sorted(found)], rtol=1e-4)
        for row, layer in zip(probe.unit_states(), record.layers, strict=True):
            assert np.allclose(row, (found[layer] / found[layer].norm()).numpy(), atol=1e-3)
        assert bool(probe.pixel_shape) == (probe.name != "text")
        if probe.pixel_shape:
            assert probe.pixel_shape == tuple(inputs["pixel_values"].shape)
    assert record.layers[-1] == vlm.architecture.layer_count - 1
    assert PackMetadata.model_validate(vector_of(vlm, record).metadata.model_dump(mode="json")).fingerprint == record
    assert verdict(record, vlm)[0] == "pass"


def test_probes_are_not_steered_and_not_counted_by_the_blocks_around_them(own: sk.VLM) -> None:
    quiet = own.fingerprint()
    other = sk.wrap(*tiny.build("llava"))
    inputs = other.inputs(list(reference.WITH_IMAGE))
    with sk.steer(other, vector_of(other, None, 0.5), scope="all") as receipt:
        found: list[Fingerprint] = []
        inside = other.fingerprint()
        other.model.eval()
        thread = threading.Thread(target=lambda: found.append(_forgotten(other).fingerprint()))
        thread.start()
        thread.join()
        assert receipt.empty
        with torch.no_grad():
            other.model(**inputs)
        assert not receipt.empty
    assert inside == quiet == found[0]


def _forgotten(vlm: sk.VLM) -> sk.VLM:
    """The same model in another state of its parameters, so that it is measured again."""
    with torch.no_grad():
        next(vlm.model.parameters()).mul_(1.0)
    return vlm


def test_what_a_model_caches_between_calls_is_put_back(qwen: sk.VLM) -> None:
    inner = qwen.model.model
    before = inner.rope_deltas
    inner.rope_deltas = marker = torch.tensor([[7]])
    try:
        _forgotten(qwen).fingerprint()
        assert inner.rope_deltas is marker
    finally:
        inner.rope_deltas = before


def test_it_is_measured_once_until_parameters_or_processor_change(own: sk.VLM) -> None:
    passes = counted(own)
    first = own.fingerprint()
    assert len(passes) == 3
    assert own.fingerprint() == first
    assert sk.wrap(own.model, own.processor).fingerprint() == first
    assert len(passes) == 3
    with torch.no_grad():  # written in place
        own.model.get_submodule(own.architecture.site(0, "mlp_out")).down_proj.weight.mul_(0.5)
    assert own.fingerprint() != first
    assert len(passes) == 6
    block = own.model.get_submodule(own.architecture.site(0, "mlp_out"))
    block.down_proj.weight = torch.nn.Parameter(block.down_proj.weight * 2)  # replaced: as it was
    assert own.fingerprint() == first
    assert len(passes) == 9
    own.processor.chat_template = "Be brief. " + own.processor.chat_template
    assert own.fingerprint() != first
    assert len(passes) == 12


def test_what_can_not_be_measured_says_why(own: sk.VLM) -> None:
    with pytest.raises(ProcessorError, match="needs the model's processor"):
        sk.wrap(own.model).fingerprint()
    own.model.train()
    with pytest.raises(OptionError, match="training mode"):
        own.fingerprint()
    own.model.eval()
    with torch.device("meta"):
        skeleton = type(own.model)(own.model.config).eval()
    with pytest.raises(OptionError, match="no weights"):
        sk.wrap(skeleton, own.processor).fingerprint()


# -- what it tells apart -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_model_in_another_type_is_the_same(vlm: sk.VLM, dtype: torch.dtype) -> None:
    theirs = vlm.fingerprint()
    other = sk.wrap(copy.deepcopy(vlm.model).to(dtype), vlm.processor)
    assert verdict(theirs, other)[0] == "pass"
    assert min(state_cosines(theirs, responses(other)).values()) >= SAME


def test_other_weights_are_another_model(own: sk.VLM) -> None:
    theirs = own.fingerprint()
    torch.manual_seed(1)
    tiny.scatter(own.model)
    status, message = verdict(theirs, own)
    assert (status, "another model of this shape" in message) == ("fail", True)
    assert min(state_cosines(theirs, responses(own)).values()) < RELATED


def test_changed_weights_are_a_relative(own: sk.VLM) -> None:
    theirs = own.fingerprint()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in own.model.parameters():
            parameter.add_(0.08 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0.0)
    cosine = min(state_cosines(theirs, responses(own)).values())
    assert RELATED < cosine < SAME, cosine
    assert verdict(theirs, own)[0] == "warn"


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "template": (lambda p: setattr(p, "chat_template", "Be brief. " + p.chat_template), "another chat template"),
    "normalisation": (lambda p: setattr(p.image_processor, "image_mean", [0.1, 0.1, 0.1]), "pixel values"),
    "no normalisation": (lambda p: setattr(p.image_processor, "do_normalize", False), "pixel values"),
    "resampling": (lambda p: setattr(p.image_processor, "resample", 0), "pixel values"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_template_or_image_processor_is_refused(own: sk.VLM, change: str) -> None:
    theirs = own.fingerprint()
    apply, problem = CHANGES[change]
    apply(own.processor)
    status, message = verdict(theirs, own)
    assert status == "fail"
    assert problem in message


def test_another_number_of_pixels_is_refused(qwen: sk.VLM) -> None:
    theirs = qwen.fingerprint()
    processor = copy.deepcopy(qwen.processor)
    size = processor.image_processor.size
    processor.image_processor.size = {
        "shortest_edge": size["shortest_edge"],
        "longest_edge": size["longest_edge"] // 2,
    }
    status, message = verdict(theirs, sk.wrap(qwen.model, processor))
    assert status == "fail"
    assert "another image processor" in message


# -- what steer makes of it --------------------------------------------------------------------------------------------


def answer(vlm: sk.VLM) -> list[str]:
    return vlm.generate([sk.Sample("What is this?")], max_new_tokens=2)


def test_fit_writes_it_and_steer_says_nothing_on_the_same_model(own: sk.VLM, anchors: list[sk.Sample]) -> None:
    fitted = sk.CMRM(layers=(1,), alpha=0.1).fit(own, anchors[:2])
    assert fitted.metadata.fingerprint == own.fingerprint()
    passes = counted(own)
    block = sk.steer(own, fitted)
    with block as receipt:
        answer(own)
    with block:
        answer(own)
    assert len(passes) == 4, "two answers of two tokens; the probes were measured by fit"
    assert [(check.name, check.status) for check in receipt.checks] == [
        ("model", "pass"),
        ("fingerprint", "pass"),
        ("dose", "pass"),
    ]


def test_another_model_is_refused_as_the_policy_says(own: sk.VLM, llava: sk.VLM) -> None:
    vector = vector_of(own, own.fingerprint())
    torch.manual_seed(1)
    tiny.scatter(own.model)
    with pytest.raises(ModelMismatchError, match="another model of this shape"), sk.steer(own, vector):
        pass
    with pytest.warns(TrustWarning, match="another model of this shape"), sk.steer(own, vector, policy="warn"):
        answer(own)
    with sk.steer(own, vector, policy="off") as receipt:
        answer(own)
    assert receipt.checks[1].status == "fail"
    with sk.steer(llava, vector):
        answer(llava)


def test_a_model_that_changes_after_the_first_block_is_noticed_by_the_second(own: sk.VLM) -> None:
    block = sk.steer(own, vector_of(own, own.fingerprint()))
    with block:
        answer(own)
    torch.manual_seed(1)
    tiny.scatter(own.model)
    with pytest.raises(ModelMismatchError), block:
        pass


def test_without_a_fingerprint_it_is_skipped_in_silence(own: sk.VLM) -> None:
    inputs = own.inputs([sk.Sample("What is this?")])
    for model, dose in ((own, "pass"), (own.model, "skip")):
        with sk.steer(model, vector_of(own, None)) as receipt, torch.no_grad():
            own.model(**inputs)
        found = {check.name: check for check in receipt.checks}
        assert (found["fingerprint"].status, found["dose"].status) == ("skip", dose)
        assert "carries none" in found["fingerprint"].message
        _forgotten(own)
    assert "needs the model's processor" in found["dose"].message
    assert isinstance(responses_or_reason(sk.wrap(own.model)), ProcessorError)


def test_of_a_raw_model_it_is_said_once_that_it_may_be_another(own: sk.VLM) -> None:
    inputs = own.inputs([sk.Sample("What is this?")])
    vector = vector_of(own, own.fingerprint())
    torch.manual_seed(1)
    tiny.scatter(own.model)
    other = vector_of(own, own.fingerprint())
    _forgotten(own)
    passes = counted(own)

    def steered(policy: Policy, *vectors: sk.SteeringVector) -> tuple[Check, list[str]]:
        passes.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with sk.steer(own.model, vectors, policy=policy) as receipt, torch.no_grad():
                own.model(**inputs)
        assert len(passes) == 1
        assert receipt.checks[-1].status == "pass", "the dose is judged by the norms in the pack"
        return receipt.checks[1], [str(each.message) for each in caught if each.category is TrustWarning]

    assert steered("off", vector)[1] == []
    check, said = steered("strict", vector)
    assert check.status == "warn"
    assert len(said) == 1
    assert "can't be told without its processor" in said[0]
    assert "sk.wrap(model, processor)" in said[0]
    check, said = steered("strict", 0.5 * vector)
    assert (check.status, said) == ("warn", [])
    assert len(steered("warn", vector, other)[1]) == 2


def test_a_raw_model_that_was_measured_with_its_processor_is_known(own: sk.VLM) -> None:
    """As where a vector was fitted on it a moment ago."""
    inputs = own.inputs([sk.Sample("What is this?")])
    vector = vector_of(own, own.fingerprint())
    passes = counted(own)
    with sk.steer(own.model, vector) as receipt, torch.no_grad():
        own.model(**inputs)
    assert [check.status for check in receipt.checks] == ["pass"] * 3
    assert len(passes) == 1
    torch.manual_seed(1)
    tiny.scatter(own.model)
    with pytest.warns(TrustWarning, match="without its processor"), sk.steer(own.model, vector), torch.no_grad():
        own.model(**inputs)
    own.fingerprint()
    with pytest.raises(ModelMismatchError, match="another model of this shape"), sk.steer(own.model, vector):
        pass


def test_a_dose_is_judged_without_a_fingerprint_and_measured_once(own: sk.VLM) -> None:
    """Leaving the fingerprint out of a pack does not switch the check off where the model is there."""
    passes = counted(own)
    strong = vector_of(own, None, 100.0)
    block = sk.steer(own, vector_of(own, None))
    for _ in range(2):
        with block:
            answer(own)
    assert len(passes) == 3 + 4, "the probes once, and two answers of two tokens"
    with pytest.raises(ModelMismatchError, match="dose: the change is larger"), sk.steer(own, strong):
        pass
    assert len(passes) == 7, "they are known"
    with torch.no_grad():  # a model whose states are as long as what is added
        for layer in range(own.architecture.layer_count):
            own.model.get_submodule(own.architecture.site(layer, "mlp_out")).down_proj.weight.mul_(1e6)
    with sk.steer(own, strong):
        answer(own)
    assert len(passes) == 12


def test_the_dose_for_a_raw_model_is_judged_by_the_pack_and_by_shares(own: sk.VLM) -> None:
    known, unknown = vector_of(own, own.fingerprint()), vector_of(own, None)
    _forgotten(own)
    with pytest.raises(ModelMismatchError, match="dose"), sk.steer(own.model, [known, unknown], strength=1e5):
        pass
    share = unknown.with_metadata(interventions=[Intervention(operation=Ablate())])
    with pytest.raises(ModelMismatchError, match="dose: .* 11 at layer"), sk.steer(own.model, share, strength=11.0):
        pass
    inputs = own.inputs([sk.Sample("What is this?")])
    with sk.steer(own.model, unknown, strength=1e5) as receipt, torch.no_grad():
        own.model(**inputs)
    assert receipt.checks[-1].status == "skip"


# -- the head ----------------------------------------------------------------------------------------------------------


def _own_head(vlm: sk.VLM) -> torch.nn.Parameter:
    """The weights of the head, no longer tied to the embeddings."""
    head: Any = vlm.model.get_output_embeddings()  # type: ignore[operator]
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return head.weight


def _likeliest(vlm: sk.VLM) -> int:
    with torch.no_grad():
        return int(vlm.model(**vlm.inputs([probes()["text"]])).logits[0, -1].argmax())


def _negate_row(vlm: sk.VLM) -> None:
    row = _likeliest(vlm)
    with torch.no_grad():
        _own_head(vlm)[row].neg_()


def _randomise(vlm: sk.VLM) -> None:
    weight = _own_head(vlm)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std())


def _double(vlm: sk.VLM) -> None:
    weight = _own_head(vlm)
    with torch.no_grad():
        weight.mul_(2)


def _swap_norm(vlm: sk.VLM) -> None:
    norm = vlm.model.model.language_model.norm  # type: ignore[union-attr]
    with torch.no_grad():
        norm.weight.copy_(1 + torch.randn(norm.weight.shape, generator=torch.Generator().manual_seed(0)))  # type: ignore[union-attr]


@pytest.mark.parametrize("edit", [_negate_row, _randomise, _double, _swap_norm])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_an_edited_head_is_another_model(edit: Callable[[sk.VLM], None], name: str) -> None:
    """The hidden states are what they were: only what becomes of the last of them tells."""
    vlm = sk.wrap(*tiny.build(name))
    theirs = vlm.fingerprint()
    assert verdict(theirs, vlm)[0] == "pass"
    edit(vlm)
    assert min(state_cosines(theirs, responses(vlm)).values()) >= SAME
    status, message = verdict(theirs, vlm)
    assert status == "warn"
    assert "the norm or the head at the end of the model has changed" in message
    with pytest.warns(TrustWarning, match="norm or the head"), sk.steer(vlm, vector_of(vlm, theirs)):
        vlm.generate([sk.Sample("Hello")], max_new_tokens=1)


def test_a_head_that_is_tied_to_the_embeddings_is_seen() -> None:
    """Tokens of no prompt: their embeddings are read by the head alone."""
    vlm = sk.load(model_path("llava"), dtype="float32")
    head: Any = vlm.model.get_output_embeddings()  # type: ignore[operator]
    assert head.weight is vlm.model.get_input_embeddings().weight  # type: ignore[operator]
    theirs = vlm.fingerprint()
    given = {token for sample in probes().values() for token in vlm.inputs([sample])["input_ids"].flatten().tolist()}
    with torch.no_grad():
        for token in torch.randperm(len(head.weight), generator=torch.Generator().manual_seed(0))[:20].tolist():
            if token not in given:
                head.weight[token] *= -3
    assert min(state_cosines(theirs, responses(vlm)).values()) >= SAME
    assert verdict(theirs, vlm)[0] == "warn"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "instructblip-llama"])
def test_the_head_is_the_same_in_another_precision(name: str) -> None:
    theirs = sk.wrap(*tiny.build(name)).fingerprint()
    for change in (torch.float16, torch.bfloat16, "int8", "padded"):
        vlm = sk.wrap(*tiny.build(name))
        if isinstance(change, torch.dtype):
            vlm.model.to(change)
        elif change == "int8":
            with torch.no_grad():
                for module in vlm.model.modules():
                    if isinstance(module, torch.nn.Linear):
                        scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                        module.weight.copy_((module.weight / scale).round() * scale)
        else:  # a vocabulary of a multiple of 64
            vlm.model.resize_token_embeddings(512, mean_resizing=False)  # type: ignore[operator]
        assert verdict(theirs, vlm)[0] == "pass", change
        difference = logit_difference(theirs, responses(vlm))
        assert difference is not None
        assert difference < SAME_HEAD / 2


def test_a_pack_without_logits_is_compared_as_before(llava: sk.VLM) -> None:
    document = llava.fingerprint().model_dump(mode="json")
    assert all("logits" in probe for probe in document["probes"])
    for probe in document["probes"]:
        del probe["logits"]
    older = Fingerprint.model_validate(document)
    assert older.model_dump(mode="json") == document, "as it was written"
    assert logit_difference(older, responses(llava)) is None
    status, message = verdict(older, llava)
    assert status == "pass"
    assert "the pack keeps no logits, so an edited head would not show" in message


def test_the_logits_are_those_of_the_model(llava: sk.VLM) -> None:
    for probe in llava.fingerprint().probes:
        with torch.no_grad():
            logits = llava.model(**llava.inputs([probes()[probe.name]])).logits[0, -1]
        assert probe.logits is not None
        assert probe.logits.vocabulary == len(logits) == 400
        assert list(probe.logits.top) == logits.topk(32).indices.tolist()
        assert probe.logits.tokens[32:].tolist() == list(range(400)), "a small vocabulary is kept whole"
        expected = torch.cat([logits[list(probe.logits.top)], logits]) - logits.mean()
        assert np.allclose(probe.logits.logits(), expected.numpy(), atol=2e-3 * float(expected.abs().max()))
    assert len(LogitRecord.sampled(152_064)) == 1024


# -- the record --------------------------------------------------------------------------------------------------------


def _broken(record: Fingerprint, **fields: object) -> dict[str, Any]:
    document = record.model_dump(mode="json")
    document["probes"][1].update(fields)
    return document


def test_a_forged_record_is_refused(llava: sk.VLM) -> None:
    record = llava.fingerprint()
    metadata = vector_of(llava, record).metadata.model_dump(mode="json")
    state = record.probes[1].states[0]
    logits = record.model_dump(mode="json")["probes"][1]["logits"]
    nan = base64.b64encode(np.full(48, np.nan, "<f2").tobytes()).decode()
    wide = base64.b64encode((np.ones(64) / 8).astype("<f2").tobytes()).decode()
    count = len(record.layers)
    for forged in (
        _broken(record, states=["!" + state[1:], *record.probes[1].states[1:]]),
        _broken(record, states=[nan] * count),
        _broken(record, states=[wide] * count),
        _broken(record, states=[state] * (count - 1)),
        _broken(record, states=[base64.b64encode(bytes(96)).decode()] * count),
        _broken(record, states=["A" * (2**20 + 1)] * count),
        _broken(record, norms=[1.0]),
        _broken(record, norms=[-1.0] * 4),
        _broken(record, norms=[1e-320] * 4),  # what is divided by it overflows
        _broken(record, norms=[1e300] * 4),  # what is divided by it is nothing
        _broken(record, pixels=[1e308] * len(record.probes[1].pixels)),
        _broken(record, pixels=[0.5] * 1000),
        _broken(record, logits={**logits, "vocabulary": 401}),
        _broken(record, logits={**logits, "values": "!" + logits["values"][1:]}),
        _broken(record, logits={**logits, "values": nan}),
        _broken(record, logits={**logits, "values": base64.b64encode(bytes(2 * 432)).decode()}),
        _broken(record, logits={**logits, "top": [400, *logits["top"][1:]]}),
        _broken(record, logits={**logits, "top": list(range(65))}),
        _broken(record, logits={**logits, "head": 1}),
        {**record.model_dump(mode="json"), "layers": [0, 1, 2, 9]},
        {**record.model_dump(mode="json"), "layers": [3, 2, 1, 0]},
        {**record.model_dump(mode="json"), "version": 2},
    ):
        with pytest.raises(ValidationError):
            PackMetadata.model_validate({**metadata, "fingerprint": forged})


# -- the dose ----------------------------------------------------------------------------------------------------------

NORMS = {0: 10.0, 1: 20.0, 2: 20.0, 3: 40.0}


def doses(llava: sk.VLM, intervention: Intervention, strength: float = 1.0, size: float = 1.0) -> dict[int, float]:
    vector = vector_of(llava, None, size / 48**0.5)
    changed = sk.SteeringVector(
        {} if isinstance(intervention.operation.direction, MeasuredContrast) else vector.tensors,
        vector.metadata.model_copy(update={"interventions": (intervention,)}),
    )
    return relative_doses([changed], [strength], NORMS)


def test_a_dose_is_relative_and_adds_up_along_the_depth(llava: sk.VLM) -> None:
    """Directions of norm 5 at each of four layers: 5, 10, 15 and 20 in sum."""
    assert doses(llava, Intervention(), size=5.0) == pytest.approx({0: 0.5, 1: 0.5, 2: 0.75, 3: 0.5}, rel=1e-5)
    assert doses(llava, Intervention(strength={2: -2.0}, layers=(2,)), 3.0, 5.0) == pytest.approx({2: 1.5}, rel=1e-5)
    vector = vector_of(llava, None, 5.0 / 48**0.5)
    assert max(relative_doses([vector, -vector], [1.0, 1.0], NORMS).values()) == pytest.approx(0.5)


def test_doses_of_other_operations(llava: sk.VLM) -> None:
    assert doses(llava, Intervention(operation=Ablate(), layers=(1,)), 0.5) == {1: 0.5}
    assert doses(llava, Intervention(operation=Scale(factor=4.0), layers=(1,)), 0.5) == {1: 1.5}
    assert doses(llava, Intervention(operation=Add(relative=True), layers=(0,)), -0.25) == {0: 0.25}
    bounded = LinearStrength(measure=Measure(kind="cosine"), slope=1.0, minimum=-3.0, maximum=2.0)
    assert doses(llava, Intervention(strength=bounded, layers=(0,)), size=10.0) == pytest.approx({0: 3.0}, rel=1e-5)
    assert doses(llava, Intervention(operation=Add(direction=MeasuredContrast()))) == {}


FIXED = Measure(kind="projection", layer=1)
"""Read once on the prompt."""

ANEW = Measure(kind="projection")
"""Read at each steered token and layer."""


def opposed(llava: sk.VLM, first: dict[str, Any], second: dict[str, Any], count: int = 8) -> float:
    """The dose of so many pairs of opposite additions at layer 1, of 0.5 each, that differ in what is given."""
    vector = vector_of(llava, None, 10.0 / 48**0.5)
    pair = [{"layers": (1,), "strength": sign, **changed} for sign, changed in ((1.0, first), (-1.0, second))]
    return relative_doses([vector.with_metadata(interventions=pair * count)], [1.0], NORMS)[1]


def line(slope: float, measure: Measure = FIXED) -> dict[str, Any]:
    return {"strength": LinearStrength(measure=measure, slope=slope, minimum=-1.0, maximum=1.0)}


def gated(measure: Measure, above: bool = True) -> dict[str, Any]:
    return {"gate": Gate(measure=measure, threshold=0.0, above=above)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"prompts": "with_image"}, {"prompts": "without_image"}),
        ({"prompts": "with_image"}, {}),
        ({"phase": "prompt"}, {"phase": "generation"}),
        ({"tokens": "image"}, {"tokens": "text"}),
        ({"tokens": "last"}, {"tokens": "all"}),
        (gated(FIXED), gated(FIXED, above=False)),
        (gated(FIXED), {}),
        (gated(ANEW), gated(ANEW)),  # the first may close the gate of the second
        (line(1.0), line(-1.0)),
        (line(1.0, ANEW), line(1.0, ANEW)),
        ({"norm_preserving": True}, {"norm_preserving": True}),
    ],
)
def test_additions_that_need_not_meet_do_not_cancel(
    llava: sk.VLM, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Eight pairs that look like nothing in sum, and move some tokens by four times the hidden state."""
    assert opposed(llava, first, second) >= 4.0 - 1e-6


@pytest.mark.parametrize(
    "shared",
    [{}, {"prompts": "with_image", "tokens": "image", "phase": "prompt"}, gated(FIXED), gated(FIXED, above=False)],
)
def test_additions_that_always_meet_cancel(llava: sk.VLM, shared: dict[str, Any]) -> None:
    assert opposed(llava, shared, shared) == pytest.approx(0.5)


def test_the_worst_combination_counts_and_no_worse(llava: sk.VLM) -> None:
    """Of prompts with an image and without, each meets its own; what two strengths undo of each other is none's sum."""
    assert opposed(llava, {"prompts": "with_image"}, {"prompts": "without_image"}, 1) == pytest.approx(0.5)
    assert opposed(llava, {}, {"prompts": "with_image", "strength": -0.5}, 2) == pytest.approx(1.0)
    rules = [
        {"strength": LinearStrength(measure=FIXED, slope=1.0, minimum=min(0.0, far), maximum=max(0.0, far))}
        for far in (1.0, -1.0)
    ]
    assert opposed(llava, *rules, 1) == pytest.approx(0.5)
    many = vector_of(llava, None, 10.0 / 48**0.5).with_metadata(
        interventions=[
            {"layers": (1,), **gated(FIXED.model_copy(update={"layer": layer}), above)}
            for layer in (0, 1)
            for above in (True, False)
        ]
        * 2
        + [{"layers": (1,), "tokens": tokens} for tokens in ("image", "text", "system")]
    )
    assert relative_doses([many], [1.0], NORMS)[1] == pytest.approx(5.5)


def test_what_is_removed_in_between_is_not_given_back(llava: sk.VLM) -> None:
    """`+d`, the part along d removed, `-d`: what is left is `-d`, though the sum is nothing."""
    vector = vector_of(llava, None, 10.0 / 48**0.5)
    change, back = {"layers": (1,)}, {"layers": (1,), "strength": -1.0}
    removed = {"layers": (1,), "operation": {"kind": "ablate"}, "strength": 0.1}
    for interventions, dose in (
        ([change, removed, back], 1.0),
        ([change, removed, back, change, removed, back], 2.0),
        ([removed, change, back], 0.5),
        ([change, back, removed], 0.5),
    ):
        steering = vector.with_metadata(interventions=interventions)
        assert relative_doses([steering], [1.0], NORMS)[1] == pytest.approx(dose)


def test_shares_of_the_state_add_up(llava: sk.VLM) -> None:
    """Each is below the limit; together they are not. What only takes away is never more than the whole."""
    vector = vector_of(llava, None, 1.0)
    for operation, layers, count, dose in (
        (Add(relative=True), (1,), 3, 2.7),
        (Scale(factor=2.0), (1,), 3, 2.7),
        (Scale(factor=2.0), (1, 2, 3), 1, 0.9),
        (Ablate(), (1, 2, 3), 3, 0.9),
        (Scale(factor=0.0), (1, 2, 3), 3, 0.9),
    ):
        repeated = [Intervention(operation=operation, layers=layers, strength=0.9)] * count
        found = relative_doses([vector.with_metadata(interventions=repeated)], [1.0], NORMS)
        assert found[max(layers)] == pytest.approx(dose), (operation, layers)


def test_what_is_measured_on_the_prompt_is_judged_by_its_bound(llava: sk.VLM) -> None:
    contrast = MeasuredContrast(positive="text", negative="blank")
    state = MeasuredContrast(positive="text", negative=None, form="literal")
    bounded = LinearStrength(measure=FIXED, slope=1.0, minimum=-31.0, maximum=1.0)
    plain = vector_of(llava, None)
    cases: list[tuple[Any, Any, float, float, str]] = [
        (Add(direction=contrast), 1.0, 1.0, 2.0, "pass"),
        (Add(direction=contrast), 3.0, 1.0, 6.0, "pass"),
        (Add(direction=contrast), 4.0, 1.0, 8.0, "warn"),
        (Add(direction=contrast), 1.0, -1e6, 2e6, "fail"),
        (Add(direction=contrast), bounded, 1.0, 62.0, "fail"),
        (Add(direction=state), 1.0, 4.0, 4.0, "pass"),
        (AddProjection(contrast=contrast), 1.0, 1.5, 3.0, "pass"),
        (AddProjection(contrast=contrast), 1e6, 1.0, 2e6, "fail"),
    ]
    for operation, strength, given, bound, status in cases:
        intervention = Intervention(operation=operation, layers=(2,), strength=strength)
        tensors = plain.tensors if isinstance(operation, AddProjection) else {}
        if strength is bounded:
            tensors = {Key(1): plain.tensors[Key(1)]}
        metadata = plain.metadata.model_copy(update={"interventions": (intervention,)})
        for norms in (NORMS, None):  # they don't matter
            check = check_dose([sk.SteeringVector(tensors, metadata)], [given], norms)
            assert (check.status, check.details["bound_by_layer"]) == (status, {"2": bound}), (operation, strength)
    copies = plain.metadata.model_copy(
        update={"interventions": (Intervention(operation=Add(direction=contrast), layers=(2,)),) * 3}
    )
    assert check_dose([sk.SteeringVector({}, copies)], [1.0], NORMS).details["bound_by_layer"] == {"2": 6.0}


def test_where_the_norms_are_not_known_shares_and_absurd_strengths_are_judged(llava: sk.VLM) -> None:
    record = llava.record
    cases: list[tuple[Any, str, Any, float, str]] = [
        ("head_out", "language", Add(), 15.0, "skip"),
        ("head_out", "language", Add(), 1000.0, "warn"),
        ("head_out", "language", Ablate(), 1.0, "pass"),
        ("head_out", "language", Scale(factor=0.0), 30.0, "fail"),
        ("mlp_out", "vision", Add(relative=True), 0.5, "pass"),
        ("mlp_out", "vision", Add(relative=True), 1000.0, "fail"),
        ("mlp_out", "vision", Add(), -1000.0, "warn"),
    ]
    for site, tower, operation, strength, status in cases:
        key = Key(1, site, tower=tower)
        vector = sk.SteeringVector(
            {key: torch.ones(record.width(site, tower))},
            vector_of(llava, None).metadata.model_copy(
                update={
                    "interventions": (
                        Intervention(operation=operation, site=site, tower=tower, tokens="all", phase="prompt"),
                    )
                }
            ),
        )
        check = check_dose([vector], [strength], NORMS)
        assert check.status == status, (site, operation, strength, check)
        assert site_label(site, tower) in check.message


@pytest.mark.parametrize(
    ("minimum", "maximum", "dose"),
    [
        (60.0, None, 3.0),  # held at three times the norm of 20
        (None, -60.0, 3.0),
        (50.0, 60.0, 2.5),
        (2.0, None, 1.0),  # a coordinate is at most the norm: what is taken from it is, too
        (None, 0.0, 1.0),  # what points along the direction is taken away
        (-5.0, 10.0, 0.75),
        (-30.0, 30.0, 0.0),  # no coordinate is that large
    ],
)
def test_the_dose_of_a_clamp(llava: sk.VLM, minimum: float | None, maximum: float | None, dose: float) -> None:
    clamp = Intervention(operation=Clamp(minimum=minimum, maximum=maximum), layers=(1,))
    assert doses(llava, clamp, -0.5) == pytest.approx({1: 0.5 * dose})
    vector = vector_of(llava, None).with_metadata(interventions=[clamp])
    assert check_dose([vector], [100.0], NORMS).status == ("fail" if dose else "pass")


def test_what_overflows_is_a_finite_figure_and_fails(llava: sk.VLM) -> None:
    """JSON has no infinity, and NaN would be below every limit."""
    zero = torch.zeros(48)
    zero[0] = 1.0
    plain = vector_of(llava, None)
    vector = sk.SteeringVector({Key(1): zero}, plain.metadata).with_metadata(interventions=[{"strength": 1e200}])
    for strength in (1.0, 1e200, -1e308):
        check = check_dose([vector, vector], [strength, -strength], {**NORMS, 1: 1e-6})
        assert check.status == "fail"
        json.dumps(check.as_json(), allow_nan=False)


def test_a_layer_out_of_proportion_to_the_others_is_named(llava: sk.VLM) -> None:
    """A direction that was scaled by itself stands out, however small it is beside the hidden state."""
    even = vector_of(llava, None, 0.05 / 48**0.5)
    assert check_dose([even], [1.0], NORMS).status == "pass"
    usual = even.tensors[sk.Key(2)].clone()
    for factor, status in ((5.0, "pass"), (30.0, "warn")):
        odd = sk.SteeringVector({**even.tensors, sk.Key(2): factor * usual}, even.metadata)
        check = check_dose([even, odd], [1.0, 1.0], NORMS)
        assert check.status == status
        assert ("stands out" in check.message) is (status == "warn")
    assert "0.075 at layer 2, the median is 0.0037" in check.message
    # nor does it help to write each layer as an intervention of its own, or to add steps that do nothing
    apart = odd.with_metadata(
        interventions=[{"layers": (layer,)} for layer in range(4)] + [{"layers": (0, 1), "strength": 0.0}] * 9
    )
    assert "0.075 at layer 2, the median is 0.0037" in check_dose([apart], [1.0], NORMS).message
    # where three layers are steered, none can be called the odd one out
    assert check_dose([odd.select([1, 2, 3])], [1.0], NORMS).status == "pass"


def test_large_doses_are_named_by_layer_and_refused_when_nothing_of_the_model_is_left(llava: sk.VLM) -> None:
    vector = vector_of(llava, None, 5.0 / 48**0.5)
    found = {strength: check_dose([vector], [strength], NORMS) for strength in (1.0, 1.6, 20.0)}
    assert [check.status for check in found.values()] == ["pass", "warn", "fail"]
    assert "1.2 at layer 2" in found[1.6].message
    assert "layer 0" not in found[1.6].message
    assert check_dose([vector], [1.0], None).status == "skip"

    record = llava.fingerprint()
    norms = norms_of(record)
    assert norms == pytest.approx(
        {layer: np.mean([probe.norms[layer] for probe in record.probes]) for layer in range(4)}
    )
    strong = vector_of(llava, record, 100.0)
    with pytest.raises(ModelMismatchError, match="dose: the change is larger"), sk.steer(llava, strong):
        pass
    with pytest.warns(TrustWarning, match="dose"), sk.steer(llava, vector_of(llava, record, 1.0)):
        answer(llava)


@pytest.mark.parametrize("name", ["llava", "qwen3"])
def test_a_template_that_writes_the_date_is_the_same_on_another_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Llama 3.2 does; the prompts themselves have the date of their day."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 1, 12)

    def dated_model() -> sk.VLM:
        model, processor = tiny.build(name)
        processor.chat_template = "Today: {{ strftime_now('%d %b %Y') }}\n" + processor.chat_template
        return sk.wrap(model, processor)

    before = dated_model().fingerprint()
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    after = dated_model()
    prompts = after.format
    assert prompts is not None
    assert "12 Jan 2031" in prompts.render(sk.Sample("What day is it?"), 0)
    check = check_fingerprint(before, responses(after))
    assert (check.status, after.fingerprint()) == ("pass", before)
