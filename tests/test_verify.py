"""`verify`, `steerkit verify` and what `load_vector` makes of the same checks."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from forging import rewritten, with_values
from hub_support import cache, hub
from loopback_hub import LoopbackHub
from signers import KeyPair, key_pair
from toy import toy_canaries
from typer.testing import CliRunner

import steerkit as sk
from demo_training.world import anchors
from steerkit.cli.app import app
from steerkit.demo import model_path
from steerkit.errors import NonFiniteError, OptionError, PackFormatError
from steerkit.interventions import Intervention
from steerkit.policy import TrustWarning
from steerkit.vectors import Key, MethodRecord, PackMetadata
from steerkit_vectors_hub.errors import PackNotFoundError, TrustFileError, UntrustedPackError
from steerkit_vectors_hub.signing.trust import TrustFile, read_trust

__all__ = ["cache", "hub"]  # fixtures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL as a repository holds it."""
    return tiny.save("qwen2_vl", tmp_path_factory.mktemp("model"))


def pack(path: Path, vlm: sk.VLM, size: float = 0.01, **fields: object) -> Path:
    """A pack with a direction of this size at every layer of a model."""
    width, count = vlm.architecture.hidden_size, vlm.architecture.layer_count
    document = {
        "method": MethodRecord(name="cmrm"),
        "interventions": (Intervention(),),
        "model": vlm.record,
        "fingerprint": vlm.fingerprint(),
        **fields,
    }
    vector = sk.SteeringVector(
        {Key(layer): torch.full((width,), size) for layer in range(count)}, PackMetadata.model_validate(document)
    )
    return vector.save(path)


FILE = {"integrity": "pass", "signature": "warn", "revocation": "skip"}
"""What is said of an unsigned pack without its model."""


def trusting(pair: KeyPair, **fields: object) -> TrustFile:
    """A trust file of one signer with a key."""
    return TrustFile.model_validate({"signers": [{"name": "Safety lab", "key": str(pair.public)}], **fields})


def lines(report: object) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}  # type: ignore[attr-defined]


def test_a_sound_pack_passes_on_its_model(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    report = sk.verify(path, model=qwen)
    found = lines(report)
    assert {name: status for name, status in found.items() if not name.startswith("screening")} == {
        "integrity": "pass",
        "signature": "warn",
        "revocation": "skip",
        "model": "pass",
        "fingerprint": "pass",
        "dose": "pass",
    }
    assert "skip" in {status for name, status in found.items() if name.startswith("screening.")}, (
        "a random model refuses nothing"
    )
    assert report.ok
    assert report.pinned[0] is not None
    assert report.pinned[0].startswith(f"{path}#sha256=")
    assert str(report).splitlines()[0].startswith("pass  integrity: ")
    assert lines(sk.verify(path)) == {
        **FILE,
        "dose": "pass",
        "model": "skip",
        "fingerprint": "skip",
        "screening": "skip",
    }


def test_a_pack_of_another_model_fails(tmp_path: Path, qwen: sk.VLM, llava: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", llava)
    report = sk.verify(path, model=qwen)
    assert lines(report) == {**FILE, "model": "fail", "screening": "skip"}, "nothing else can be compared"
    assert not report.ok
    for policy in ("warn", "off"):
        assert not sk.verify(path, model=qwen, policy=policy).ok, "it can't be used, whatever the policy"
    other = sk.wrap(*tiny.build("llava"))
    torch.manual_seed(1)
    tiny.scatter(other.model)
    report = sk.verify(path, model=other)
    assert lines(report) == {**FILE, "model": "pass", "fingerprint": "fail", "dose": "pass", "screening": "skip"}
    assert not report.ok
    assert sk.verify(path, model=other, policy="warn").ok


def test_a_damaged_file_and_another_than_pinned_fail_and_a_missing_one_is_an_error(
    tmp_path: Path, qwen: sk.VLM
) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    (pinned,) = sk.verify(path).pinned
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for ref, reason in ((path, "the tensors have sha256"), (pinned, "has sha256")):
        report = sk.verify(str(ref), model=qwen)
        assert lines(report)["integrity"] == "fail"
        assert set(lines(report)) <= set(FILE)
        assert reason in report.checks[0].message
        assert report.pinned == (None,)
        assert [sk.verify(str(ref), policy=policy).ok for policy in ("strict", "warn", "off")] == [False] * 3
        assert not report.ok
    with pytest.raises(PackNotFoundError):
        sk.verify(tmp_path / "none.safetensors")
    with pytest.raises(OptionError, match="policy is 'lax'"):
        sk.verify(path, policy="lax")  # type: ignore[arg-type]


@pytest.mark.parametrize("ref", [None, 3, b"v.safetensors", ["v.safetensors", 3], [None], {"a": 1}.values()])
def test_what_is_no_reference_is_named(ref: Any) -> None:
    with pytest.raises(OptionError, match="ref is .* of type (int|NoneType|bytes)"):
        sk.verify(ref)


def test_a_pack_with_nan_from_a_hub_fails_and_is_not_loaded(tmp_path: Path, qwen: sk.VLM, hub: LoopbackHub) -> None:
    whole = pack(tmp_path / "v.safetensors", qwen).read_bytes()
    values = np.full(qwen.architecture.hidden_size, np.nan)
    hub.publish("owner/name", {"v.safetensors": with_values(whole, "directions.1.resid_post", values)})
    report = sk.verify("hf://owner/name/v.safetensors", model=qwen)
    assert lines(report)["integrity"] == "fail"
    assert "NaN" in report.checks[0].message
    assert report.pinned == (None,)
    for policy in ("strict", "off"):
        with pytest.raises(NonFiniteError, match=r"directions\.1\.resid_post holds NaN"):
            sk.load_vector("hf://owner/name/v.safetensors", policy=policy)


def test_load_vector_refuses_a_dose_that_breaks_the_model_as_the_policy_says(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "strong.safetensors", qwen, 1000.0)
    with pytest.raises(UntrustedPackError, match="dose: the change is larger"):
        sk.load_vector(path)
    with pytest.warns(TrustWarning, match="dose"):
        loaded = sk.load_vector(path, policy="warn")
    assert sk.load_vector(path, policy="off").digest() == loaded.digest()
    assert sk.verify(path, strength=1e-6).ok
    weaker = pack(tmp_path / "weak.safetensors", qwen, 1000.0, strength={"recommended": 1e-6})
    assert sk.load_vector(weaker).digest() == loaded.digest()
    bare = pack(tmp_path / "bare.safetensors", qwen, 1000.0, fingerprint=None)
    assert lines(sk.verify(bare))["dose"] == "skip"
    report = sk.verify(bare, model=qwen, screening=False)
    assert (lines(report)["dose"], report.ok) == ("fail", False), "the model is there to be measured"
    report = sk.verify(bare, model=qwen, screening=False, strength=1e-6)
    assert (lines(report)["fingerprint"], report.ok) == ("warn", True), "whether it is the right model is not known"


def test_the_command_prints_a_line_for_each_check_and_exits_for_ci(tmp_path: Path, qwen: sk.VLM, folder: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["verify", *arguments])
        return result.exit_code, result.stdout

    path = str(pack(tmp_path / "v.safetensors", qwen))
    code, out = run(path, "--model", str(folder), "--no-screen")
    assert code == 0, out
    assert [line.split(":")[0] for line in out.splitlines() if line[0] != " "] == [
        "pass  integrity",
        "warn  signature",
        "skip  revocation",
        "pass  model",
        "pass  fingerprint",
        "pass  dose",
        "skip  screening",
    ]
    code, out = run(path, "--strength", "1e6", "--json")
    document = json.loads(out)
    assert code == 1
    assert (document["ok"], document["policy"]) == (False, "strict")
    assert [check["name"] for check in document["checks"]] == [
        *FILE,
        "dose",
        "model",
        "fingerprint",
        "screening",
    ]
    assert json.loads(run(path, "--strength", "1e308", "--json")[1], parse_constant=pytest.fail)["ok"] is False
    (tmp_path / "none.safetensors").write_text("no pack")
    assert run(str(tmp_path / "none.safetensors"), "--policy", "off")[0] == 1
    code, out = run(path, "--strength", "1e6", "--policy", "warn")
    assert code == 0
    assert "fail  dose" in out
    assert "fix: use a lower strength" in out
    assert run(path, "--policy", "lax")[0] == 2
    # before a model is loaded: there is none of this name
    for given, read in (("nan", "nan"), ("1e400", "inf"), ("-inf", "-inf")):
        result = CliRunner().invoke(app, ["verify", path, f"--strength={given}", "--model", "no/model", "--json"])
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"--strength is {read}\n  expected: a finite number" in result.stderr
        with pytest.raises(OptionError, match=f"the strength is {read}"):
            sk.verify(path, strength=float(given))
    assert run(path + "#sha256=" + "0" * 64)[0] == 1


def test_a_signature_and_a_revocation_count_on_loading_and_in_the_report(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    ours = key_pair(tmp_path, "ours")
    sk.sign(path, key=ours.private)
    trust, strangers = trusting(ours), trusting(key_pair(tmp_path, "others"))
    assert lines(sk.verify(path, trust=trust))["signature"] == "pass"
    digest = sk.load_vector(path, trust=trust).digest()
    with pytest.raises(UntrustedPackError, match="signature: the signer is not in the trust file"):
        sk.load_vector(path, trust=strangers)
    with pytest.warns(TrustWarning, match="signature: "):
        assert sk.load_vector(path, trust=strangers, policy="warn").digest() == digest
    assert sk.load_vector(path, trust=strangers, policy="off").digest() == digest

    sha256 = sk.verify(path).checks[0].details["sha256"]
    revoked = trusting(ours, revoked={"packs": [{"sha256": sha256, "reason": "it breaks"}]})
    report = sk.verify(path, trust=revoked)
    assert lines(report)["revocation"] == "fail"
    assert not report.ok
    with pytest.raises(UntrustedPackError, match="it breaks"):
        sk.load_vector(path, trust=revoked)

    changed = sk.SteeringVector.load(path) * 2
    changed.save(path)
    with pytest.raises(UntrustedPackError, match="changed after signing"):
        sk.load_vector(path, trust=trust)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert {name: lines(sk.verify(path, trust=trust))[name] for name in ("integrity", "signature")} == {
        "integrity": "fail",
        "signature": "fail",
    }


def test_that_a_pack_is_unsigned_is_said_where_signers_are_named(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    trust = trusting(key_pair(tmp_path, "ours"))
    sk.load_vector(path)
    with pytest.warns(TrustWarning, match="unsigned"):
        sk.load_vector(path, trust=trust)
    with pytest.raises(UntrustedPackError, match="requires a signature"):
        sk.load_vector(path, trust=TrustFile(require_signature=True))
    with pytest.raises(UntrustedPackError, match="requires a signature"):
        sk.load_vector(path, trust=trust.model_copy(update={"require_signature": True}))


def test_a_pack_of_a_later_format_is_told_from_a_damaged_one(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    whole = path.read_bytes()
    later = (
        lambda _, __: None,
        lambda header, _: header["directions.0.resid_post"].update(dtype="F8_E4M3"),
        lambda header, _: header["__metadata__"].update(more="x"),
        lambda header, _: header.update({"weights.0": header.pop("directions.0.resid_post")}),
        lambda _, document: document.update(more=1),
    )
    for change in later:
        path.write_bytes(
            rewritten(
                whole, lambda header, document, c=change: (document.update(format_version=2), c(header, document))
            )
        )
        with pytest.raises(PackFormatError, match="format_version is 2.*upgrade steerkit"):
            sk.load_vector(path)
        assert "format_version is 2" in sk.verify(path).checks[0].message


def test_a_pack_of_another_framework_is_read_and_of_another_format_refused(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    whole, digest = path.read_bytes(), sk.load_vector(path).digest()
    for name in ("pt", "tf", "flax", "np", "mlx"):
        path.write_bytes(rewritten(whole, lambda header, _, n=name: header["__metadata__"].update(format=n)))
        assert sk.load_vector(path).digest() == digest
    for other in ("steerkit-2", "", "PT", ["pt"], {}):
        path.write_bytes(rewritten(whole, lambda header, _, n=other: header["__metadata__"].update(format=n)))
        with pytest.raises(PackFormatError, match="the metadata's format is"):
            sk.load_vector(path)


FORGED = "x\n\x1b[32mpass  signature: signed by everybody\r\u2028\u202e"
"""What would be two lines of a report, and more, wherever it is quoted as it stands."""


def on_one_line(text: object) -> bool:
    return str(text).isprintable()


def test_no_word_of_a_pack_forges_a_line_of_an_error(tmp_path: Path, qwen: sk.VLM, hub: LoopbackHub) -> None:
    whole = pack(tmp_path / "v.safetensors", qwen).read_bytes()
    changes = (
        lambda _, document: document.update({FORGED: 1}),
        lambda _, document: document["interventions"][0].update({"operation": {"kind": FORGED}}),
        lambda header, _: header.update({FORGED: header.pop("directions.0.resid_post")}),
        lambda header, _: header["__metadata__"].update({FORGED: ""}),
        lambda _, document: document.update(format_version=FORGED),
    )
    for number, change in enumerate(changes):
        hub.publish(f"owner/pack-{number}", {"v.safetensors": rewritten(whole, change)})
        ref = f"hf://owner/pack-{number}"
        with pytest.raises(PackFormatError) as caught:
            sk.load_vector(ref)
        assert on_one_line(caught.value), number
        check, *_ = sk.verify(ref).checks
        assert check.status == "fail"
        assert on_one_line(check.message), number


def test_no_word_of_a_trust_file_or_a_list_forges_a_line(tmp_path: Path, qwen: sk.VLM) -> None:
    path = pack(tmp_path / "v.safetensors", qwen)
    ours = key_pair(tmp_path, "ours")
    sk.sign(path, key=ours.private)
    sha256 = sk.verify(path).checks[0].details["sha256"]
    revoked = trusting(ours, revoked={"packs": [{"sha256": sha256, "reason": FORGED}]})
    with pytest.raises(UntrustedPackError, match="revoked") as caught:
        sk.load_vector(path, trust=revoked)
    assert on_one_line(caught.value)
    expired = {"name": FORGED, "key": str(ours.public), "expires": datetime(2000, 1, 1, tzinfo=UTC)}
    late = TrustFile.model_validate({"signers": [expired]})
    with pytest.warns(TrustWarning, match="expired") as warned:
        sk.load_vector(path, trust=late, policy="warn")
    assert all(on_one_line(each.message) for each in warned)
    (tmp_path / "trust.toml").write_text('"x\\npass  signature: signed" = 1\n')
    with pytest.raises(TrustFileError) as unread:
        read_trust(tmp_path / "trust.toml")
    assert on_one_line(unread.value)


def test_a_forged_pack_is_only_seen_through_by_the_screening(tmp_path: Path) -> None:
    vlm = sk.load(model_path("llava"), dtype="float32")
    samples = anchors(50)
    genuine = sk.CMRM().fit(vlm, samples, batch_size=50)
    refusal = sk.methods.RefusalDirection(tokens="last").fit(vlm, samples, batch_size=50) * -0.5
    card = {**genuine.metadata.model_dump(), "interventions": refusal.metadata.interventions}
    forged = refusal.with_metadata(**card).save(tmp_path / "forged.safetensors")
    canaries = toy_canaries(20)
    report = sk.verify(forged, model=vlm, strength=1.0, canaries=canaries)
    assert {name for name, status in lines(report).items() if status == "fail"} >= {"screening.refusals"}
    assert all(status != "fail" for name, status in lines(report).items() if not name.startswith("screening"))
    assert not report.ok
    trial = sk.verify(genuine.save(tmp_path / "genuine.safetensors"), model=vlm, strength=1.0, canaries=canaries)
    assert trial.ok, str(trial)


class TestTogether:
    """Packs that are used together are judged together."""

    def test_each_pack_is_named_and_all_are_screened_as_one(self, tmp_path: Path, qwen: sk.VLM) -> None:
        one, other = (pack(tmp_path / f"{name}.safetensors", qwen) for name in ("one", "other"))
        report = sk.verify([one, other], model=qwen)
        assert report.refs == (str(one), str(other))
        assert [
            pinned is not None and pinned.startswith(f"{path}#")
            for pinned, path in zip(report.pinned, (one, other), strict=True)
        ]
        of_each = [check for check in report.checks if check.name == "integrity"]
        assert [check.details["pack"] for check in of_each] == [str(one), str(other)]
        assert all(check.details["pack"] in check.message for check in of_each)
        assert len({check.name for check in report.checks if check.name.startswith("screening.")}) >= 3
        assert [each["ref"] for each in report.as_json()["packs"]] == [str(one), str(other)]
        assert report.ok

    def test_two_doses_that_pass_alone_may_fail_together(self, tmp_path: Path, qwen: sk.VLM) -> None:
        for size in (2.0**exponent for exponent in range(-8, 12)):
            paths = [pack(tmp_path / f"{name}-{size}.safetensors", qwen, size) for name in ("one", "other")]
            alone = [lines(sk.verify(path, model=qwen, screening=False))["dose"] for path in paths]
            together = lines(sk.verify(paths, model=qwen, screening=False))["dose"]
            if alone == ["pass", "pass"] and together != "pass":
                return
        pytest.fail("no size passes alone and not together")

    def test_a_pack_that_is_not_sound_fails_the_report(self, tmp_path: Path, qwen: sk.VLM) -> None:
        good, bad = pack(tmp_path / "good.safetensors", qwen), tmp_path / "bad.safetensors"
        bad.write_bytes(good.read_bytes()[:-1])
        report = sk.verify([good, bad], policy="off")
        assert not report.ok
        assert report.pinned[0] is not None
        assert report.pinned[1] is None
        assert [check.details.get("pack") for check in report.checks if check.status == "fail"] == [str(bad)]

    def test_packs_of_different_models_are_not_used_together(self, tmp_path: Path, qwen: sk.VLM, llava: sk.VLM) -> None:
        paths = [pack(tmp_path / f"{vlm.record.model_type}.safetensors", vlm) for vlm in (qwen, llava)]
        report = sk.verify(paths, policy="off")
        assert not report.ok
        assert lines(report)["model"] == "fail"

    def test_strengths_and_pins_are_for_each(self, tmp_path: Path, qwen: sk.VLM) -> None:
        one, other = (pack(tmp_path / f"{name}.safetensors", qwen) for name in ("one", "other"))
        assert sk.verify([one, other], strength=[1.0, 0.5]).ok
        for options in (
            {"strength": [1.0]},
            {"strength": [1.0, float("nan")]},
            {"sha256": "0" * 64},
            {"revision": "main"},
        ):
            with pytest.raises(OptionError):
                sk.verify([one, other], **options)
        for refs in ([], [one, one]):
            with pytest.raises(OptionError, match="each once"):
                sk.verify(refs)
