"""Signatures: real keys, real certificates, the real library; what each answer is, and that nothing forged passes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, get_args

import model_signing
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hub_support import cache, hub, pack
from loopback_hub import TOKEN, LoopbackHub
from private_sigstore import PrivateSigstore
from signers import YEAR, Certified, KeyPair, certified, edited, key_pair, resign, restate, statement
from test_cli import run

import steerkit as sk
from steerkit.errors import OptionError, PackFormatError
from steerkit.policy import Check
from steerkit.vectors import PACK
from steerkit_vectors_hub.cache import Store
from steerkit_vectors_hub.errors import DownloadError, OfflineError, PublishError, SigningError, TrustFileError
from steerkit_vectors_hub.resolve import Resolved, resolve
from steerkit_vectors_hub.signing.check import check_origin
from steerkit_vectors_hub.signing.library import Answer
from steerkit_vectors_hub.signing.revocation import read_revocations
from steerkit_vectors_hub.signing.trust import TrustFile, default_trust, read_trust

__all__ = ["cache", "hub"]  # fixtures


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A pack without a signature."""
    path = tmp_path / "cmrm.safetensors"
    path.write_bytes(pack(tmp_path))
    return path


@pytest.fixture
def lab(tmp_path: Path) -> KeyPair:
    return key_pair(tmp_path, "lab")


@pytest.fixture
def root(tmp_path: Path) -> Certified:
    return certified(tmp_path, "root", ca=True, since=-10 * YEAR, until=10 * YEAR)


def trusting(pair: KeyPair, **fields: Any) -> TrustFile:
    """A trust file of one signer with a key."""
    return TrustFile.model_validate({"signers": [{"name": "Safety lab", "key": str(pair.public), **fields}]})


def certifying(root: Certified, subject: str = "CN=packs,O=Example", **fields: Any) -> TrustFile:
    """A trust file of one signer with a certificate."""
    rule = {"root": str(root.path), "subject": subject, **fields}
    return TrustFile.model_validate({"signers": [{"name": "Example Ltd", "certificate": rule}]})


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".sig")


def answer(check: Check) -> tuple[str, str]:
    assert check.name in ("signature", "revocation")
    assert check.fix or check.status in ("pass", "skip")
    json.dumps(check.as_json())
    return check.status, check.details["answer"]


def origin(found: Resolved, trust: TrustFile | None = None) -> list[Check]:
    return check_origin(found.read(), signature=found.signature, ref=found.ref, trust=trust)


def check_signature(pack: Path | bytes, *, signature: Path | None, trust: TrustFile, ref: str | None = None) -> Check:
    data = pack if isinstance(pack, bytes) else pack.read_bytes()
    return check_origin(data, signature=signature, ref=ref, trust=trust)[0]


def check_revocation(pack: Path, *, signature: Path | None, trust: TrustFile, offline: bool | None = None) -> Check:
    return check_origin(pack.read_bytes(), signature=signature, ref=None, trust=trust, offline=offline)[1]


def judged(file: Path, trust: TrustFile, ref: str | None = None) -> tuple[str, str]:
    signature = beside(file)
    return answer(check_signature(file, signature=signature if signature.exists() else None, trust=trust, ref=ref))


class TestKey:
    def test_a_trusted_signature_passes_and_names_its_signer(self, file: Path, lab: KeyPair) -> None:
        made = sk.sign(file, key=lab.private)
        assert made == beside(file)
        check = check_signature(file, signature=made, trust=trusting(lab))
        assert answer(check) == ("pass", "trusted")
        assert "Safety lab" in check.message
        assert check.details["signer"] == "Safety lab"
        assert check.details["fingerprint"] == hashlib.sha256(lab.public.read_bytes()).hexdigest()

    def test_a_pack_and_a_key_in_the_home_folder(
        self, file: Path, lab: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        made = sk.sign(f"~/{file.relative_to(tmp_path)}", key=f"~/{lab.private.relative_to(tmp_path)}")
        assert made == beside(file)
        assert judged(file, trusting(lab)) == ("pass", "trusted")

    def test_an_unsigned_pack(self, file: Path, lab: KeyPair) -> None:
        assert judged(file, TrustFile()) == ("warn", "unsigned")
        assert judged(file, trusting(lab)) == ("warn", "unsigned")
        strict = TrustFile.model_validate({**trusting(lab).model_dump(), "require_signature": True})
        assert judged(file, strict) == ("fail", "unsigned")

    def test_a_stranger(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        sk.sign(file, key=key_pair(tmp_path, "other").private)
        assert judged(file, TrustFile()) == ("warn", "unknown_signer")
        assert judged(file, TrustFile(require_signature=True)) == ("fail", "unknown_signer")
        assert judged(file, trusting(lab)) == ("fail", "unknown_signer")

    def test_a_stranger_is_not_said_to_have_signed(self, file: Path, lab: KeyPair) -> None:
        made = sk.sign(file, key=lab.private)

        def garbage(document: dict[str, Any]) -> None:
            document["dsseEnvelope"]["signatures"][0]["sig"] = b64encode(b"garbage").decode()
            document["verificationMaterial"]["publicKey"]["hint"] = "ab" * 32

        edited(made, garbage)
        check = check_signature(file, signature=made, trust=TrustFile())
        assert answer(check) == ("warn", "unknown_signer")
        assert check.message == (
            "the signer is not in the trust file: the signature names key abababababababab as its signer; "
            "not verified, since the trust file has no such key"
        )

    def test_a_stranger_who_claims_to_be_the_signer(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        made = sk.sign(file, key=key_pair(tmp_path, "other").private)
        hint = hashlib.sha256(lab.public.read_bytes()).hexdigest()
        edited(made, lambda document: document["verificationMaterial"]["publicKey"].update(hint=hint))
        assert judged(file, trusting(lab)) == ("fail", "tampered")

    def test_every_byte_of_the_pack_counts(self, file: Path, lab: KeyPair) -> None:
        sk.sign(file, key=lab.private)
        data = file.read_bytes()
        for position in (0, 20, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            assert judged(file, trusting(lab)) == ("fail", "tampered")
        file.write_bytes(data + b"\0")
        assert judged(file, trusting(lab)) == ("fail", "tampered")

    def test_another_pack_in_its_place(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        sk.sign(file, key=lab.private)
        file.write_bytes(pack(tmp_path, seed=1))
        assert judged(file, trusting(lab)) == ("fail", "tampered")
        assert judged(file, TrustFile()) == ("fail", "tampered")  # whoever signed it

    def test_a_changed_statement(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        made = sk.sign(file, key=lab.private)

        def rename(document: dict[str, Any]) -> None:
            said = statement(document)
            said["subject"][0]["name"] = "innocent.safetensors"
            restate(document, said)

        edited(made, rename)
        assert judged(file, trusting(lab)) == ("fail", "tampered")

        other = pack(tmp_path, seed=1)
        file.write_bytes(other)

        def redirect(document: dict[str, Any]) -> None:
            said = statement(document)
            digest = hashlib.sha256(other)
            said["predicate"]["resources"][0]["digest"] = digest.hexdigest()
            said["subject"][0]["digest"]["sha256"] = hashlib.sha256(digest.digest()).hexdigest()
            restate(document, said)

        edited(made, redirect)
        assert judged(file, trusting(lab)) == ("fail", "tampered")
        edited(made, lambda document: resign(document, lab.key))  # the same change by whoever holds the key
        assert judged(file, trusting(lab)) == ("pass", "trusted")

    def test_a_changed_signature(self, file: Path, lab: KeyPair) -> None:
        made = sk.sign(file, key=lab.private)

        def flip(document: dict[str, Any]) -> None:
            signed = document["dsseEnvelope"]["signatures"][0]
            raw = bytearray(b64decode(signed["sig"]))
            raw[-1] ^= 1
            signed["sig"] = b64encode(raw).decode()

        edited(made, flip)
        assert judged(file, trusting(lab)) == ("fail", "tampered")

    def test_no_random_change_passes_or_raises(self, file: Path, lab: KeyPair) -> None:
        made = sk.sign(file, key=lab.private)
        good, choose, trust = made.read_bytes(), random.Random(0), trusting(lab)
        same = json.loads(good)
        for _ in range(150):
            raw = bytearray(good)
            for _ in range(choose.choice((1, 1, 3, 20))):
                raw[choose.randrange(len(raw))] = choose.randrange(256)
            if choose.random() < 0.2:
                del raw[choose.randrange(len(raw)) :]
            made.write_bytes(raw)
            status, said = judged(file, trust)
            if status == "pass":
                assert json.loads(raw) == same  # white space, between the fields
            else:
                assert said in ("malformed", "tampered", "unknown_signer")

    def test_a_pack_may_be_renamed(self, file: Path, lab: KeyPair) -> None:
        made = sk.sign(file, key=lab.private)
        renamed = file.rename(file.with_name("0123abcd"))
        check = check_signature(renamed, signature=made, trust=trusting(lab))
        assert answer(check) == ("pass", "trusted")
        assert check.details["signed_as"] == "cmrm.safetensors"

    @pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
    def test_other_curves(self, file: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
        pair = key_pair(tmp_path, "wide", curve)
        sk.sign(file, key=pair.private)
        assert judged(file, trusting(pair)) == ("pass", "trusted")

    def test_an_encrypted_key(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = key_pair(tmp_path, "locked", password=b"open sesame")
        with pytest.raises(SigningError, match="is encrypted"):
            sk.sign(file, key=pair.private)
        with pytest.raises(SigningError, match="can't be used"):
            sk.sign(file, key=pair.private, password="wrong")
        monkeypatch.setenv("STEERKIT_KEY_PASSWORD", "open sesame")
        sk.sign(file, key=pair.private)
        assert judged(file, trusting(pair)) == ("pass", "trusted")
        sk.sign(file, key=key_pair(tmp_path, "open").private, overwrite=True)  # needs none, and is given one

    def test_validity_in_the_trust_file(self, file: Path, lab: KeyPair) -> None:
        sk.sign(file, key=lab.private)
        now, day = datetime.now(UTC), timedelta(days=1)
        assert judged(file, trusting(lab, expires=now + day, not_before=now - day)) == ("pass", "trusted")
        assert judged(file, trusting(lab, expires=now - day)) == ("fail", "expired")
        assert judged(file, trusting(lab, not_before=now + day)) == ("fail", "not_yet_valid")
        both = [
            {"name": "old entry", "key": str(lab.public), "expires": now - day},
            {"name": "new entry", "key": str(lab.public)},
        ]
        assert judged(file, TrustFile.model_validate({"signers": both})) == ("pass", "trusted")

    @pytest.mark.parametrize(
        ("ref", "expected"),
        [
            ("hf://lab/cmrm", ("pass", "trusted")),
            ("hf://lab/cmrm@v1/cmrm.safetensors", ("pass", "trusted")),
            ("https://lab.example/packs/a.safetensors", ("pass", "trusted")),
            ("https://lab.example/packs/../a.safetensors", ("fail", "out_of_scope")),
            ("https://lab.example/packs/%2e%2e/a.safetensors", ("fail", "out_of_scope")),
            ("hf://labs/cmrm", ("fail", "out_of_scope")),
            ("hf://evil/hf@v1/lab/cmrm.safetensors", ("fail", "out_of_scope")),
            (None, ("fail", "out_of_scope")),
        ],
    )
    def test_scope(self, file: Path, lab: KeyPair, ref: str | None, expected: tuple[str, str]) -> None:
        sk.sign(file, key=lab.private)
        trust = trusting(lab, refs=["hf://lab/*", "https://lab.example/packs/*"])
        assert judged(file, trust, ref) == expected


class TestCertificate:
    def signed(self, file: Path, leaf: Certified, *chain: Certified) -> Path:
        return sk.sign(
            file, key=leaf.pair.private, certificate=leaf.path, chain=[each.path for each in chain], overwrite=True
        )

    def test_a_chain_to_the_root(self, file: Path, root: Certified, tmp_path: Path) -> None:
        middle = certified(tmp_path, "middle", root, ca=True)
        leaf = certified(tmp_path, "packs", middle)
        self.signed(file, leaf, middle)
        assert judged(file, certifying(root)) == ("pass", "trusted")
        assert judged(file, certifying(root, fingerprint=leaf.fingerprint.upper())) == ("pass", "trusted")
        assert judged(file, certifying(root, fingerprint="0" * 64)) == ("fail", "unknown_signer")
        assert judged(file, certifying(root, "CN=others,O=Example")) == ("fail", "unknown_signer")
        check = check_signature(file, signature=beside(file), trust=TrustFile())
        assert answer(check) == ("warn", "unknown_signer")
        assert check.message == (
            f"the signer is not in the trust file: the signature was made with certificate {leaf.fingerprint[:16]} "
            "in the name of CN=packs,O=Example, which the trust file does not name"
        )
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        assert judged(file, certifying(root)) == ("fail", "tampered")

    def test_a_chain_with_a_gap(self, file: Path, root: Certified, tmp_path: Path) -> None:
        leaf = certified(tmp_path, "packs", certified(tmp_path, "middle", root, ca=True))
        self.signed(file, leaf)
        assert judged(file, certifying(root)) == ("fail", "unknown_signer")

    def test_an_impostor_of_the_same_name(self, file: Path, root: Certified, tmp_path: Path) -> None:
        other = certified(tmp_path, "other-root", ca=True, subject="root")
        self.signed(file, certified(tmp_path, "packs", other), other)
        check = check_signature(file, signature=beside(file), trust=certifying(root))
        assert answer(check) == ("fail", "unknown_signer")
        assert "looks like that of Example Ltd" in check.message

    def test_an_issuer_that_may_not_issue(self, file: Path, root: Certified, tmp_path: Path) -> None:
        plain = certified(tmp_path, "plain", root)
        self.signed(file, certified(tmp_path, "packs", plain), plain)
        assert judged(file, certifying(root)) == ("fail", "unknown_signer")

    def test_a_certificate_and_another_key(self, file: Path, root: Certified, tmp_path: Path) -> None:
        leaf = certified(tmp_path, "packs", root)
        made = self.signed(file, leaf)
        edited(made, lambda document: resign(document, key_pair(tmp_path, "other").key))
        assert judged(file, certifying(root)) == ("fail", "tampered")
        for trust in (
            TrustFile(),
            certifying(root, "CN=others"),
        ):  # nobody vouches for it, and it is false all the same
            assert judged(file, trust) == ("fail", "tampered")
        with pytest.raises(SigningError, match="does not match"):
            sk.sign(file, key=tmp_path / "other.key", certificate=leaf.path, overwrite=True)

    @pytest.mark.parametrize(
        ("since", "until", "expected"),
        [
            (-2 * YEAR, -YEAR, "expired"),
            (-2 * YEAR, timedelta(seconds=-1), "expired"),
            (YEAR, 2 * YEAR, "not_yet_valid"),
        ],
    )
    def test_the_clock(
        self, file: Path, root: Certified, tmp_path: Path, since: timedelta, until: timedelta, expected: str
    ) -> None:
        self.signed(file, certified(tmp_path, "packs", root, since=since, until=until))
        assert judged(file, certifying(root)) == ("fail", expected)

    def test_an_issuer_that_has_expired(self, file: Path, root: Certified, tmp_path: Path) -> None:
        middle = certified(tmp_path, "middle", root, ca=True, since=-3 * YEAR, until=timedelta(hours=-1))
        self.signed(file, certified(tmp_path, "packs", middle), middle)
        assert judged(file, certifying(root)) == ("fail", "expired")

    def test_a_certificate_for_something_else(self, file: Path, root: Certified, tmp_path: Path) -> None:
        leaf = certified(tmp_path, "packs", root, signs=False)
        with pytest.raises(SigningError, match="digitalSignature"):
            self.signed(file, leaf)
        model_signing.signing.Config().use_certificate_signer(
            private_key=leaf.pair.private, signing_certificate=leaf.path, certificate_chain=[root.path]
        ).sign(file, beside(file))
        assert judged(file, certifying(root)) == ("fail", "malformed")
        assert judged(file, TrustFile()) == ("fail", "malformed")

    def test_no_damaged_certificate_passes_or_raises(self, file: Path, root: Certified, tmp_path: Path) -> None:
        middle = certified(tmp_path, "middle", root, ca=True)
        made = self.signed(file, certified(tmp_path, "packs", middle), middle)
        revoked = {"keys": [{"fingerprint": "0" * 64, "reason": "another"}]}
        trust = TrustFile.model_validate({**certifying(root).model_dump(), "revoked": revoked})
        assert judged(file, trust) == ("pass", "trusted")
        good, choose = made.read_bytes(), random.Random(0)

        def damage(document: dict[str, Any]) -> None:
            certificate = choose.choice(document["verificationMaterial"]["x509CertificateChain"]["certificates"])
            raw = bytearray(b64decode(certificate["rawBytes"]))
            raw[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
            certificate["rawBytes"] = b64encode(raw).decode()

        for _ in range(100):
            made.write_bytes(good)
            edited(made, damage)
            assert judged(file, trust)[0] == "fail"
            assert check_revocation(file, signature=made, trust=trust).status == "pass"


class TestKeyless:
    """By a private Sigstore instance, and that its real verifier lets nobody else pass."""

    ISSUER = "https://accounts.example"

    @pytest.fixture
    def instance(self) -> PrivateSigstore:
        return PrivateSigstore()

    @pytest.fixture
    def public(self) -> dict[str, Any]:
        """What a client knows of the public instance; the library has it for use without a network."""
        import sigstore

        folder = Path(sigstore.__file__).parent / "_store" / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": json.loads((folder / "trusted_root.json").read_bytes()),
            "signingConfig": json.loads((folder / "signing_config.v0.2.json").read_bytes()),
        }

    @pytest.fixture
    def config(self, instance: PrivateSigstore, public: dict[str, Any], tmp_path: Path) -> Path:
        return instance.trust_config(tmp_path / "sigstore.json", public)

    def trusting(self, config: Path, issuer: str = ISSUER, **fields: Any) -> TrustFile:
        rule = {"identity": "me@lab.example", "issuer": issuer, "trust_config": str(config)}
        return TrustFile.model_validate({"signers": [{"name": "me", "keyless": rule, **fields}]})

    def signed(self, file: Path, pair: KeyPair, instance: PrivateSigstore, account: str = "me@lab.example") -> Path:
        made = sk.sign(file, key=pair.private, overwrite=True)
        return edited(made, lambda document: instance.endorse(document, pair, account, self.ISSUER))

    def test_an_account(self, file: Path, lab: KeyPair, instance: PrivateSigstore, config: Path) -> None:
        self.signed(file, lab, instance)
        assert judged(file, self.trusting(config)) == ("pass", "trusted")
        assert judged(file, self.trusting(config, expires=datetime.now(UTC))) == ("fail", "expired")
        assert judged(file, self.trusting(config, refs=["hf://lab/*"])) == ("fail", "out_of_scope")
        assert judged(file, self.trusting(config, issuer="https://others.example")) == ("fail", "tampered")
        assert judged(file, TrustFile()) == ("warn", "unknown_signer")
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        assert judged(file, self.trusting(config)) == ("fail", "tampered")

    def test_another_account(self, file: Path, lab: KeyPair, instance: PrivateSigstore, config: Path) -> None:
        made = self.signed(file, lab, instance, "you@lab.example")
        check = check_signature(file, signature=made, trust=self.trusting(config))
        assert answer(check) == ("fail", "unknown_signer")
        assert "you@lab.example" in check.message

    def test_another_instance(
        self, file: Path, lab: KeyPair, instance: PrivateSigstore, public: dict[str, Any], tmp_path: Path
    ) -> None:
        self.signed(file, lab, instance)
        (tmp_path / "public.json").write_text(json.dumps(public))
        assert judged(file, self.trusting(tmp_path / "public.json")) == ("fail", "tampered")

    def test_another_key(
        self, file: Path, lab: KeyPair, instance: PrivateSigstore, config: Path, tmp_path: Path
    ) -> None:
        made = self.signed(file, lab, instance)
        edited(made, lambda document: resign(document, key_pair(tmp_path, "other").key))
        assert judged(file, self.trusting(config)) == ("fail", "tampered")
        assert judged(file, TrustFile()) == ("fail", "tampered")

    @pytest.mark.parametrize("part", ["inclusionPromise", "inclusionProof"])
    def test_a_log_that_does_not_hold_it(
        self, file: Path, lab: KeyPair, instance: PrivateSigstore, config: Path, tmp_path: Path, part: str
    ) -> None:
        other = tmp_path / "other.safetensors"
        other.write_bytes(pack(tmp_path, seed=1))
        elsewhere = json.loads(self.signed(other, lab, instance).read_bytes())
        (entry,) = elsewhere["verificationMaterial"]["tlogEntries"]
        made = self.signed(file, lab, instance)
        edited(made, lambda document: document["verificationMaterial"]["tlogEntries"][0].update({part: entry[part]}))
        assert judged(file, self.trusting(config)) == ("fail", "tampered")

    def test_without_the_trust_root_nothing_passes(
        self, file: Path, lab: KeyPair, instance: PrivateSigstore, config: Path
    ) -> None:
        self.signed(file, lab, instance)
        config.unlink()
        assert judged(file, self.trusting(config)) == ("fail", "unchecked")

    def test_an_account_needs_a_network(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEERKIT_OFFLINE", "1")
        with pytest.raises(OfflineError, match="account"):
            sk.sign(file, keyless=True)


class TestFile:
    """A signature is of one pack and nothing else, and both libraries agree on it."""

    def by_the_library(self, target: Path, made: Path, pair: KeyPair, *ignored: Path) -> None:
        config = model_signing.signing.Config().use_elliptic_key_signer(private_key=pair.private)
        config.set_hashing_config(model_signing.hashing.Config().set_ignored_paths(paths=ignored))
        config.sign(target, made)

    def test_the_library_reads_ours_and_we_read_its(self, file: Path, lab: KeyPair) -> None:
        made = sk.sign(file, key=lab.private)
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=lab.public).verify(file, made)
        self.by_the_library(file, made, lab)
        assert "ignore_paths" in statement(json.loads(made.read_bytes()))["predicate"]["serialization"]
        assert judged(file, trusting(lab)) == ("pass", "trusted")

    @pytest.mark.parametrize("ignored", [(), ("cmrm.safetensors",)], ids=["all", "without the pack"])
    def test_a_signature_of_a_folder(self, file: Path, lab: KeyPair, tmp_path: Path, ignored: tuple[str, ...]) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "README.md").write_text("read me")
        moved = file.rename(folder / file.name)
        made = tmp_path / "made.sig"
        self.by_the_library(folder, made, lab, *(folder / each for each in ignored))
        check = check_signature(moved, signature=made, trust=trusting(lab))
        assert answer(check) == ("fail", "malformed")
        assert "resources" in check.message

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d.update(mediaType="application/json"), "mediaType"),
            (lambda d: d.update(more=1), "more"),
            (lambda d: d["dsseEnvelope"]["signatures"].append(d["dsseEnvelope"]["signatures"][0]), "signatures"),
            (lambda d: d["dsseEnvelope"]["signatures"].clear(), "signatures"),
            (lambda d: d["dsseEnvelope"].update(payloadType="text/plain"), "payloadType"),
            (lambda d: d["dsseEnvelope"].update(payload_type="application/vnd.in-toto+json"), "payload_type"),
            (lambda d: d["dsseEnvelope"].update(payload="%%%"), "payload"),
            (lambda d: d["verificationMaterial"].pop("publicKey"), "0 keys"),
            (lambda d: d["verificationMaterial"]["publicKey"].pop("hint"), "hint"),
            (lambda d: d["verificationMaterial"].update(certificate={"rawBytes": "AAAA"}), "2 keys"),
            (lambda d: d["verificationMaterial"].update(tlogEntries=[{}]), "log entries"),
            (
                lambda d: restate(d, {**statement(d), "predicateType": "https://model_signing/Digests/v0.1"}),
                "predicate",
            ),
            (lambda d: restate(d, {**statement(d), "subject": statement(d)["subject"] * 2}), "subject"),
            (
                lambda d: restate(d, {**statement(d), "subject": [{"name": "x", "digest": {"sha256": "0" * 64}}]}),
                "subject",
            ),
        ],
    )
    def test_whatever_is_no_signature_of_one_pack(
        self, file: Path, lab: KeyPair, change: Callable[[dict[str, Any]], None], said: str
    ) -> None:
        made = edited(sk.sign(file, key=lab.private), change)
        edited(made, lambda document: document["dsseEnvelope"]["signatures"] and resign(document, lab.key))
        check = check_signature(file, signature=made, trust=trusting(lab))
        assert answer(check) == ("fail", "malformed")
        assert said in check.message

    @pytest.mark.parametrize(
        "raw", [b"", b"null", b"[" * 100_000, b'{"a": 1, "a": 2}', b"\xff", b" " * 300_000], ids=range(6)
    )
    def test_whatever_is_not_even_a_bundle(self, file: Path, lab: KeyPair, raw: bytes) -> None:
        beside(file).write_bytes(raw)
        assert judged(file, trusting(lab)) == ("fail", "malformed")

    def test_a_folder_in_its_place(self, file: Path) -> None:
        beside(file).mkdir()
        assert judged(file, TrustFile()) == ("fail", "malformed")

    def test_the_bytes_that_are_loaded_are_judged(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        made, good, evil = sk.sign(file, key=lab.private), file.read_bytes(), pack(tmp_path, seed=1)
        assert answer(check_signature(evil, signature=made, trust=trusting(lab)))[1] == "tampered"  # the file is good
        file.write_bytes(evil)
        assert answer(check_signature(good, signature=made, trust=trusting(lab)))[1] == "trusted"

    def test_a_link_is_what_it_leads_to(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        made, link = sk.sign(file, key=lab.private), tmp_path / "link.safetensors"
        link.symlink_to(file)
        assert answer(check_signature(link, signature=made, trust=trusting(lab)))[1] == "trusted"
        link.unlink()
        other = tmp_path / "other.safetensors"
        other.write_bytes(pack(tmp_path, seed=1))
        link.symlink_to(other)
        assert answer(check_signature(link, signature=made, trust=trusting(lab)))[1] == "tampered"

    def test_without_the_library_no_signer_passes(
        self, file: Path, lab: KeyPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, trust = sk.sign(file, key=lab.private), trusting(lab)
        monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
        check = check_signature(file, signature=made, trust=trust)
        assert answer(check) == ("fail", "unchecked")
        assert "steerkit-vlm[sign]" in check.fix
        monkeypatch.setitem(sys.modules, "model_signing.signing", None)
        with pytest.raises(SigningError, match="model-signing"):
            sk.sign(file, key=lab.private, overwrite=True)

    def test_without_the_library_a_certificate_is_only_named(
        self, file: Path, root: Certified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leaf = certified(tmp_path, "packs", root)
        made = sk.sign(file, key=leaf.pair.private, certificate=leaf.path)
        monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
        check = check_signature(file, signature=made, trust=TrustFile())
        assert answer(check) == ("warn", "unknown_signer")
        assert f"names certificate {leaf.fingerprint[:16]} as its signer; not verified, since" in check.message


class TestSigning:
    def test_only_packs_are_signed(self, tmp_path: Path, lab: KeyPair) -> None:
        other = tmp_path / "other.safetensors"
        other.write_bytes(b"not a pack at all")
        with pytest.raises(PackFormatError):
            sk.sign(other, key=lab.private)
        assert not beside(other).exists()

    def test_a_signature_is_not_overwritten_unasked(self, file: Path, lab: KeyPair) -> None:
        before = sk.sign(file, key=lab.private).read_bytes()
        with pytest.raises(OptionError, match="exists"):
            sk.sign(file, key=lab.private)
        assert beside(file).read_bytes() == before
        assert sk.sign(file, key=lab.private, overwrite=True).read_bytes() != before

    @pytest.mark.parametrize(
        "options", [{}, {"keyless": True, "key": "k"}, {"certificate": "c"}, {"key": "k", "chain": ["c"]}]
    )
    def test_one_way_must_be_chosen(self, file: Path, options: dict[str, Any]) -> None:
        with pytest.raises(OptionError, match="not clear"):
            sk.sign(file, **options)

    def test_keys_that_cannot_sign(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        key = rsa.generate_private_key(65537, 2048)
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (tmp_path / "rsa.key").write_bytes(key.private_bytes(*pem))
        with pytest.raises(SigningError, match="RSAPrivateKey"):
            sk.sign(file, key=tmp_path / "rsa.key")
        for path in (lab.public, tmp_path / "none.key"):
            with pytest.raises(SigningError, match="can't be used"):
                sk.sign(file, key=path)
        assert not beside(file).exists()


class TestTrustFile:
    def written(self, folder: Path, text: str) -> Path:
        path = folder / "trust.toml"
        path.write_text(text)
        return path

    def test_every_field(self, tmp_path: Path, lab: KeyPair, root: Certified) -> None:
        (tmp_path / "revoked.toml").write_text("updated = 2026-01-01\n")
        trust = read_trust(
            self.written(
                tmp_path,
                f"""
                require_signature = true
                revocations = ["revoked.toml", "https://lab.example/revoked.toml"]

                [[signers]]
                name = "by path"
                key = "lab.pub"
                refs = ["hf://lab/*"]
                not_before = 2026-01-01
                expires = 2036-01-01T12:00:00+01:00

                [[signers]]
                name = "inline"
                key = '''{lab.public.read_text()}'''

                [[signers]]
                name = "certified"
                certificate = {{ root = "root.pem", subject = "CN=packs,O=Example" }}

                [[signers]]
                name = "account"
                keyless = {{ identity = "me@lab.example", issuer = "https://accounts.example" }}

                [[revoked.packs]]
                sha256 = "{"0" * 64}"
                reason = "it removes refusals"
                date = 2026-02-03

                [[revoked.keys]]
                fingerprint = "{":".join(["AB"] * 32)}"
                reason = "lost"
                """,
            )
        )
        by_path, inline, *_ = trust.signers
        assert by_path.key == inline.key == lab.public.read_text()
        assert by_path.not_before == datetime(2026, 1, 1, tzinfo=UTC)
        assert by_path.expires == datetime(2036, 1, 1, 11, tzinfo=UTC)
        assert trust.revocations == (str(tmp_path / "revoked.toml"), "https://lab.example/revoked.toml")
        assert trust.revoked.keys[0].fingerprint == "ab" * 32

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("require_signature = \nx = 1", "line 1"),
            ("requires_signature = true", "requires_signature"),
            ("[[signers]]\nname = 'x'", r"signers\.0: .*exactly one"),
            ("[[signers]]\nname = ''\nkey = 'lab.pub'", r"signers\.0\.name"),
            ("[[signers]]\nname = 'x'\nkey = 'none.pub'", r"signers\.0\.key: .*none\.pub"),
            ("[[signers]]\nname = 'x'\nkey = 'lab.key'", r"signers\.0\.key: .*private key"),
            ("[[signers]]\nname = 'x'\nkey = 'root.pem'", r"signers\.0\.key"),
            ("[[signers]]\nname = 'x'\nkey = 'rsa.pub'", r"signers\.0\.key: .*RSA"),
            ("[[signers]]\nname = 'x'\nkey = 'lab.pub'\nexpires = 2026-01-01T00:00:00", r"signers\.0\.expires"),
            (
                "[[signers]]\nname = 'x'\nkey = 'lab.pub'\nnot_before = 2026-01-02\nexpires = 2026-01-01",
                r"signers\.0: .*no signature would ever count",
            ),
            ("[[signers]]\nname = 'x'\ncertificate = { root = 'root.pem' }", r"signers\.0\.certificate: .*subject or"),
            (
                "[[signers]]\nname = 'x'\ncertificate = { root = 'lab.pub', subject = 'CN=x' }",
                r"signers\.0\.certificate\.root",
            ),
            ("[[signers]]\nname = 'x'\nkeyless = { identity = 'x' }", r"signers\.0\.keyless\.issuer"),
            ("revocations = ['http://lab.example/revoked.toml']", r"revocations\.0: .*not encrypted"),
            ("[[revoked.packs]]\nsha256 = 'abc'\nreason = 'x'", r"revoked\.packs\.0\.sha256"),
            ("#" * 2**20 + "##", "bytes"),
        ],
    )
    def test_a_mistake_is_named(self, tmp_path: Path, lab: KeyPair, root: Certified, text: str, said: str) -> None:
        public = rsa.generate_private_key(65537, 2048).public_key()
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        (tmp_path / "rsa.pub").write_bytes(public.public_bytes(*form))
        with pytest.raises(TrustFileError, match=said) as caught:
            read_trust(self.written(tmp_path, text))
        assert "trust.toml" in caught.value.problem
        assert "Value error" not in caught.value.problem

    def test_where_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STEERKIT_TRUST", raising=False)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        assert default_trust() == TrustFile()
        (tmp_path / "steerkit").mkdir()
        self.written(tmp_path / "steerkit", "require_signature = true")
        assert default_trust().require_signature
        monkeypatch.setenv("STEERKIT_TRUST", str(tmp_path / "mine.toml"))
        with pytest.raises(TrustFileError, match=r"mine\.toml"):  # what is named must be there
            default_trust()

    def test_a_link_that_leads_nowhere_is_not_the_same_as_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("STEERKIT_TRUST", raising=False)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        (tmp_path / "steerkit").mkdir()
        (tmp_path / "steerkit" / "trust.toml").symlink_to(tmp_path / "moved.toml")
        with pytest.raises(TrustFileError, match="No such file"):
            default_trust()
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "steerkit" / "trust.toml"))
        assert default_trust() == TrustFile()

    def test_a_home_folder_that_there_is_not(
        self, tmp_path: Path, lab: KeyPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for text in (
            '[[signers]]\nname = "lab"\nkey = "~nobody-here/lab.pub"',
            'revocations = ["~nobody-here/revoked.toml"]',
            '[[signers]]\nname = "a"\nkeyless = { identity = "a", issuer = "b", trust_config = "~nobody-here/c" }',
        ):
            with pytest.raises(TrustFileError, match="home folder"):
                read_trust(self.written(tmp_path, text))
        monkeypatch.setenv("STEERKIT_TRUST", "~nobody-here/trust.toml")
        with pytest.raises(TrustFileError, match="STEERKIT_TRUST.*nobody-here"):
            default_trust()
        with pytest.raises(TrustFileError, match="revoked.*can't be read"):
            read_revocations(TrustFile(revocations=("revoked\0.toml",)))


def list_of(updated: str = "2026-01-01", **entries: dict[str, str]) -> str:
    tables = [f"[[{kind}]]\n" + "".join(f"{k} = '{v}'\n" for k, v in entry.items()) for kind, entry in entries.items()]
    return f"updated = {updated}\n" + "\n".join(tables)


class TestRevocation:
    def both(self, file: Path, trust: TrustFile) -> list[tuple[str, str]]:
        signature = beside(file) if beside(file).exists() else None
        return [
            answer(check_signature(file, signature=signature, trust=trust)),
            answer(check_revocation(file, signature=signature, trust=trust)),
        ]

    def listing(self, trust: TrustFile, *places: str | Path) -> TrustFile:
        return TrustFile.model_validate({**trust.model_dump(), "revocations": [str(place) for place in places]})

    def test_nothing_is_revoked(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        sk.sign(file, key=lab.private)
        assert self.both(file, trusting(lab)) == [("pass", "trusted"), ("skip", "no_lists")]
        (tmp_path / "revoked.toml").write_text(list_of(packs={"sha256": "0" * 64, "reason": "another"}))
        trust = self.listing(trusting(lab), tmp_path / "revoked.toml")
        assert self.both(file, trust) == [("pass", "trusted"), ("pass", "not_revoked")]

    def test_a_pack(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (tmp_path / "revoked.toml").write_text(list_of(packs={"sha256": digest, "reason": "it removes refusals"}))
        trust = self.listing(trusting(lab), tmp_path / "revoked.toml")
        check = check_revocation(file, signature=None, trust=trust)
        assert answer(check) == ("fail", "revoked")
        assert "it removes refusals" in check.message

    def test_a_key(self, file: Path, lab: KeyPair) -> None:
        sk.sign(file, key=lab.private)
        entry = {"fingerprint": hashlib.sha256(lab.public.read_bytes()).hexdigest(), "reason": "lost"}
        trust = TrustFile.model_validate({**trusting(lab).model_dump(), "revoked": {"keys": [entry]}})
        assert self.both(file, trust) == [("fail", "revoked"), ("fail", "revoked")]
        alone = TrustFile.model_validate({"revoked": {"keys": [entry]}})
        assert self.both(file, alone) == [("fail", "revoked"), ("fail", "revoked")]

    @pytest.mark.parametrize("which", ["leaf", "middle", "key of the leaf"])
    def test_a_certificate_of_the_chain(self, file: Path, root: Certified, tmp_path: Path, which: str) -> None:
        middle = certified(tmp_path, "middle", root, ca=True)
        leaf = certified(tmp_path, "packs", middle)
        sk.sign(file, key=leaf.pair.private, certificate=leaf.path, chain=[middle.path])
        fingerprint = {
            "leaf": leaf.fingerprint,
            "middle": middle.fingerprint,
            "key of the leaf": hashlib.sha256(leaf.pair.public.read_bytes()).hexdigest(),
        }[which]
        entry = {"fingerprint": fingerprint, "reason": "stolen"}
        trust = TrustFile.model_validate({**certifying(root).model_dump(), "revoked": {"keys": [entry]}})
        assert self.both(file, trust) == [("fail", "revoked"), ("fail", "revoked")]

    @pytest.mark.parametrize("text", ["", "updated = 1", "updated = 2026-01-01\nmore = 1", "["])
    def test_a_malformed_list_is_an_error(self, file: Path, tmp_path: Path, text: str) -> None:
        (tmp_path / "revoked.toml").write_text(text)
        with pytest.raises(TrustFileError, match=r"revoked\.toml"):
            check_revocation(file, signature=None, trust=self.listing(TrustFile(), tmp_path / "revoked.toml"))
        with pytest.raises(TrustFileError, match="none"):
            check_revocation(file, signature=None, trust=self.listing(TrustFile(), tmp_path / "none.toml"))


class TestRevocationOnTheWeb:
    @pytest.fixture
    def trust(self, hub: LoopbackHub) -> TrustFile:
        return TrustFile(revocations=(f"{hub.delivery}/revoked.toml",))

    def put(self, hub: LoopbackHub, text: str) -> None:
        hub.objects["revoked"] = text.encode()

    def age(self, hours: float) -> None:
        (copy,) = (Store.default().root / "revocations").iterdir()
        then = datetime.now(UTC).timestamp() - hours * 3600
        os.utime(copy, (then, then))

    def asked(self, file: Path, trust: TrustFile, offline: bool | None = None) -> tuple[str, str]:
        return answer(check_revocation(file, signature=None, trust=trust, offline=offline))

    def test_it_is_read_kept_and_renewed(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        self.put(hub, list_of())
        assert self.asked(file, trust) == ("pass", "not_revoked")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.put(hub, list_of("2026-01-02", packs={"sha256": digest, "reason": "harmful"}))
        assert self.asked(file, trust) == ("pass", "not_revoked")  # asked for less than an hour ago
        assert len(hub.asked("GET", "revoked")) == 1
        self.age(hours=2)
        assert self.asked(file, trust) == ("fail", "revoked")
        del hub.objects["revoked"]
        self.age(hours=2)
        assert self.asked(file, trust) == ("fail", "revoked")
        self.age(hours=24 * 8)
        assert self.asked(file, trust, offline=True) == ("fail", "revoked")

    def test_an_old_copy_is_worth_a_warning(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        self.put(hub, list_of())
        assert self.asked(file, trust) == ("pass", "not_revoked")
        self.age(hours=24 * 6)
        assert self.asked(file, trust, offline=True) == ("pass", "not_revoked")
        self.age(hours=24 * 8)
        assert self.asked(file, trust, offline=True) == ("warn", "stale")
        assert self.asked(file, trust) == ("pass", "not_revoked")

    @pytest.mark.parametrize("answered", [None, "<html>", "updated = 2026-01-01\n" + "#" * 2**22])
    def test_a_list_that_was_never_had_fails(
        self, hub: LoopbackHub, file: Path, trust: TrustFile, answered: str | None
    ) -> None:
        if answered is not None:
            self.put(hub, answered)
        assert self.asked(file, trust) == ("fail", "unavailable")
        assert self.asked(file, trust, offline=True) == ("fail", "unavailable")

    def test_it_does_not_go_back(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.put(hub, list_of("2026-01-02", packs={"sha256": digest, "reason": "harmful"}))
        assert self.asked(file, trust) == ("fail", "revoked")
        self.put(hub, list_of("2026-01-01"))
        self.age(hours=2)
        assert self.asked(file, trust) == ("fail", "revoked")

    OTHERS: ClassVar = [{"sha256": digit * 64, "reason": "another"} for digit in "12"]

    @pytest.mark.parametrize("answered", ["older", "fewer", "of the year 9999"])
    def test_going_back_is_noticed_at_once(self, hub: LoopbackHub, file: Path, trust: TrustFile, answered: str) -> None:
        later = datetime.now(UTC) + timedelta(days=2)
        served = {
            "older": list_of("2026-01-01", packs=self.OTHERS[0]),
            "fewer": list_of("2026-01-02", packs=self.OTHERS[1]),
            "of the year 9999": list_of(later.isoformat()),
        }
        self.put(hub, list_of("2026-01-02", packs=self.OTHERS[0]))
        assert self.asked(file, trust) == ("pass", "not_revoked")
        self.put(hub, served[answered])
        self.age(hours=2)
        assert self.asked(file, trust) == ("warn", "rolled_back")
        assert set(read_revocations(trust).packs) == {"1" * 64}
        self.put(hub, list_of("2026-01-03"))
        assert self.asked(file, trust) == ("pass", "not_revoked")
        assert not read_revocations(trust).packs

    def test_a_list_may_grow_on_one_day(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        self.put(hub, list_of(packs=self.OTHERS[0]))
        assert self.asked(file, trust) == ("pass", "not_revoked")
        second = "\n[[packs]]\nsha256 = '{}'\nreason = 'harmful'\n"
        self.put(hub, list_of(packs=self.OTHERS[0]) + second.format(hashlib.sha256(file.read_bytes()).hexdigest()))
        self.age(hours=2)
        assert self.asked(file, trust) == ("fail", "revoked")

    def test_a_first_list_of_the_year_9999_is_none(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        self.put(hub, list_of("9999-12-31"))
        assert self.asked(file, trust) == ("fail", "unavailable")
        self.put(hub, list_of())
        assert self.asked(file, trust) == ("pass", "not_revoked")

    def test_a_copy_of_the_year_9999_keeps_no_list_out(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        self.put(hub, list_of())
        assert self.asked(file, trust) == ("pass", "not_revoked")
        (copy,) = (Store.default().root / "revocations").iterdir()
        copy.write_text(list_of("9999-12-31"))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.put(hub, list_of("2026-01-02", packs={"sha256": digest, "reason": "harmful"}))
        assert self.asked(file, trust) == ("fail", "revoked")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_a_copy_of_another_user_is_not_believed(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        """In a cache that others can write to, they could say that nothing was revoked, and be asked for an hour."""
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.put(hub, list_of("2026-01-02", packs={"sha256": digest, "reason": "harmful"}))
        assert self.asked(file, trust) == ("fail", "revoked")
        (copy,) = (Store.default().root / "revocations").iterdir()
        copy.write_text(list_of("2026-01-03"))
        assert self.asked(file, trust) == ("pass", "not_revoked")  # of one's own, it is
        os.chown(copy, 65534, -1)
        assert self.asked(file, trust, offline=True) == ("fail", "unavailable")
        assert self.asked(file, trust) == ("fail", "revoked")
        assert "harmful" in copy.read_text(), "it was replaced"
        theirs = copy.with_name("theirs")
        theirs.write_text(list_of("2026-01-03"))
        copy.unlink()
        copy.symlink_to(theirs)
        assert self.asked(file, trust) == ("fail", "revoked")
        assert not copy.is_symlink()

    def test_an_old_list_undoes_nothing_while_the_clock_is_behind(
        self, hub: LoopbackHub, file: Path, trust: TrustFile
    ) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.put(hub, list_of("2026-01-01"))
        assert self.asked(file, trust) == ("pass", "not_revoked")
        (copy,) = (Store.default().root / "revocations").iterdir()
        ahead = (datetime.now(UTC) + timedelta(days=30)).isoformat()  # as a clock that is a month behind sees a copy
        copy.write_text(list_of(ahead, packs={"sha256": digest, "reason": "harmful"}))
        for offline in (False, True):
            self.age(hours=2)
            assert self.asked(file, trust, offline=offline) == ("fail", "revoked")
        copy.write_text(list_of(ahead, packs=self.OTHERS[0]))
        assert self.asked(file, trust) == ("warn", "rolled_back")
        assert set(read_revocations(trust).packs) == {"1" * 64}
        assert "1" * 64 in copy.read_text()

    def test_a_list_that_is_held_back_expires(self, hub: LoopbackHub, file: Path, trust: TrustFile) -> None:
        now = datetime.now(UTC)
        for days, expected in ((1, ("pass", "not_revoked")), (-1, ("warn", "stale"))):
            until = (now + timedelta(days=days)).isoformat()
            self.put(hub, f"updated = {(now + timedelta(minutes=-days)).isoformat()}\nexpires = {until}\n")
            for copy in (Store.default().root / "revocations").glob("*"):
                copy.unlink()
            assert self.asked(file, trust) == expected

    def test_a_list_on_disk_that_has_expired_is_worth_a_warning(self, file: Path, tmp_path: Path) -> None:
        for name, day, expected in (
            ("a", "2026-01-02", ("warn", "stale")),
            ("b", "9999-01-01", ("pass", "not_revoked")),
        ):
            (tmp_path / name).write_text(f"updated = 2026-01-01\nexpires = {day}\n")
            found = check_revocation(file, signature=None, trust=TrustFile(revocations=(str(tmp_path / name),)))
            assert answer(found) == expected

    def test_a_list_on_disk_of_the_future_is_an_error(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "revoked.toml").write_text(list_of("9999-12-31"))
        with pytest.raises(TrustFileError, match="in the future"):
            check_revocation(file, signature=None, trust=TrustFile(revocations=(str(tmp_path / "revoked.toml"),)))


class TestHub:
    """Each answer for a pack that came over the network, and once more without it."""

    def origin(self, ref: str, trust: TrustFile) -> list[tuple[str, str]]:
        found = []
        for offline in (False, True):
            resolved = resolve(ref, offline=offline)
            found.append(
                [
                    answer(each)
                    for each in check_origin(
                        resolved.read(), signature=resolved.signature, ref=resolved.ref, trust=trust
                    )
                ]
            )
        assert found[0] == found[1]
        return found[0]

    def publish(self, hub: LoopbackHub, file: Path, **more: bytes) -> str:
        files = {file.name: file.read_bytes(), "README.md": b"# A pack", **more}
        if beside(file).exists():
            files[beside(file).name] = beside(file).read_bytes()
        return hub.publish("someone/pack", files)

    def test_unsigned(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        self.publish(hub, file)
        assert self.origin("hf://someone/pack", trusting(lab))[0] == ("warn", "unsigned")

    def test_trusted_scoped_and_revoked(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        sk.sign(file, key=lab.private)
        commit = self.publish(hub, file)
        pinned = resolve("hf://someone/pack").pinned
        for ref in ("hf://someone/pack", f"hf://someone/pack@{commit}/{file.name}", pinned):
            assert self.origin(ref, trusting(lab))[0] == ("pass", "trusted")
            assert self.origin(ref, trusting(lab, refs=["hf://someone/*"]))[0] == ("pass", "trusted")
            assert self.origin(ref, trusting(lab, refs=["hf://else/*"]))[0] == ("fail", "out_of_scope")
        entry = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "reason": "harmful"}
        trust = TrustFile.model_validate({**trusting(lab).model_dump(), "revoked": {"packs": [entry]}})
        assert self.origin("hf://someone/pack", trust) == [("pass", "trusted"), ("fail", "revoked")]
        assert len(hub.asked("GET", f"{file.name}.sig")) == 1  # of one commit, once

    def test_a_stranger(self, hub: LoopbackHub, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        sk.sign(file, key=key_pair(tmp_path, "other").private)
        self.publish(hub, file)
        assert self.origin("hf://someone/pack", trusting(lab))[0] == ("fail", "unknown_signer")

    def test_tampered(self, hub: LoopbackHub, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        sk.sign(file, key=lab.private)
        file.write_bytes(pack(tmp_path, seed=1))
        self.publish(hub, file)
        assert self.origin("hf://someone/pack", trusting(lab))[0] == ("fail", "tampered")

    def test_expired(self, hub: LoopbackHub, file: Path, root: Certified, tmp_path: Path) -> None:
        leaf = certified(tmp_path, "packs", root, until=timedelta(seconds=-1))
        sk.sign(file, key=leaf.pair.private, certificate=leaf.path)
        self.publish(hub, file)
        assert self.origin("hf://someone/pack", certifying(root))[0] == ("fail", "expired")

    def test_a_signature_that_comes_later(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        self.publish(hub, file)
        assert self.origin("hf://someone/pack", trusting(lab))[0] == ("warn", "unsigned")
        sk.sign(file, key=lab.private)
        self.publish(hub, file)
        assert self.origin("hf://someone/pack", trusting(lab))[0] == ("pass", "trusted")
        assert len(hub.asked("GET", hashlib.sha256(file.read_bytes()).hexdigest())) == 1  # the pack, once

    def aged(self, cache: Path, hours: float = 2) -> None:
        """Let the records of the cache be older."""
        then = datetime.now(UTC).timestamp() - hours * 3600
        for record in (cache / "records").iterdir():
            os.utime(record, (then, then))

    def judged(self, ref: str, trust: TrustFile, offline: bool | None = None) -> tuple[str, str]:
        found = resolve(ref, offline=offline)
        return answer(origin(found, trust)[0])

    def test_a_pinned_pack_is_asked_for_a_later_signature_once_an_hour(
        self, hub: LoopbackHub, cache: Path, file: Path, lab: KeyPair
    ) -> None:
        hub.objects["a"] = file.read_bytes()
        url = f"{hub.delivery}/a.safetensors"
        pinned = resolve(url).pinned
        assert self.judged(pinned, trusting(lab)) == ("warn", "unsigned")
        hub.objects["a.safetensors.sig"] = sk.sign(file, key=lab.private).read_bytes()
        hub.requests.clear()
        assert self.judged(pinned, trusting(lab)) == ("warn", "unsigned")
        self.aged(cache)
        assert self.judged(pinned, trusting(lab), offline=True) == ("warn", "unsigned")
        assert not hub.requests  # within the hour, and offline
        assert self.judged(pinned, trusting(lab)) == ("pass", "trusted")
        asked = len(hub.requests)
        assert not [request for request in hub.asked("GET") if not request.path.endswith(".sig")]  # no pack
        self.aged(cache)
        for offline in (False, True):
            assert self.judged(pinned, trusting(lab), offline) == ("pass", "trusted")
            assert self.judged(url, trusting(lab), offline=True) == ("pass", "trusted")
        assert len(hub.requests) == asked  # what has a signature is not asked again

    def test_in_vain_it_is_asked_once_an_hour_too(
        self, hub: LoopbackHub, cache: Path, file: Path, lab: KeyPair
    ) -> None:
        hub.objects["a"] = file.read_bytes()
        pinned = resolve(f"{hub.delivery}/a.safetensors").pinned
        hub.requests.clear()
        for _ in range(2):
            self.aged(cache)
            for _ in range(3):
                assert self.judged(pinned, trusting(lab)) == ("warn", "unsigned")
        assert len(hub.asked("GET", ".sig")) == 2

    @pytest.mark.parametrize("fault", ["gone", "unreachable", "another's", "damaged"])
    def test_a_pinned_pack_does_not_need_the_server(
        self, hub: LoopbackHub, cache: Path, file: Path, lab: KeyPair, tmp_path: Path, fault: str
    ) -> None:
        """Nor does it become another's where the server goes on to a newer pack."""
        hub.objects["a"] = file.read_bytes()
        pinned = resolve(f"{hub.delivery}/a.safetensors").pinned
        expected = ("warn", "unsigned")
        if fault == "gone":
            del hub.objects["a"]
        elif fault == "unreachable":
            hub.stop()
        elif fault == "another's":
            file.write_bytes(pack(tmp_path, seed=1))
            hub.objects["a"] = file.read_bytes()
            hub.objects["a.safetensors.sig"] = sk.sign(file, key=lab.private).read_bytes()
        else:
            hub.objects["a.safetensors.sig"] = b"{}"
            expected = ("fail", "malformed")
        self.aged(cache)
        assert self.judged(pinned, trusting(lab)) == expected

    @pytest.mark.parametrize("large", [True, False])
    def test_a_pinned_pack_of_a_branch_and_one_of_a_commit(
        self, hub: LoopbackHub, cache: Path, file: Path, lab: KeyPair, large: bool
    ) -> None:
        first = hub.publish("someone/pack", {file.name: file.read_bytes()}, large=large)
        resolve("hf://someone/pack")
        branch = f"hf://someone/pack#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"
        commit = resolve(branch).pinned
        assert first in commit
        sk.sign(file, key=lab.private)
        second = self.publish(hub, file)
        self.aged(cache)
        hub.requests.clear()
        assert self.judged(commit, trusting(lab)) == ("warn", "unsigned")
        assert not hub.requests  # a commit never gains a file
        assert self.judged(branch, trusting(lab)) == ("pass", "trusted")
        assert second in resolve(branch, offline=True).pinned
        assert self.judged(commit, trusting(lab)) == ("warn", "unsigned")
        assert not hub.asked("GET", hashlib.sha256(file.read_bytes()).hexdigest())

    def test_a_pinned_pack_of_a_branch_that_went_on(
        self, hub: LoopbackHub, cache: Path, file: Path, lab: KeyPair, tmp_path: Path
    ) -> None:
        first = hub.publish("someone/pack", {file.name: file.read_bytes()})
        branch = resolve("hf://someone/pack").ref + f"#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"
        file.write_bytes(pack(tmp_path, seed=1))
        sk.sign(file, key=lab.private)
        self.publish(hub, file)
        self.aged(cache)
        assert self.judged(branch, trusting(lab)) == ("warn", "unsigned")
        assert first in resolve(branch).pinned

    def test_a_pinned_pack_of_a_file_system(self, cache: Path, file: Path, lab: KeyPair) -> None:
        import fsspec

        system = fsspec.filesystem("memory")
        system.pipe("/packs/cmrm.safetensors", file.read_bytes())
        try:
            pinned = resolve("memory://packs").pinned
            system.pipe("/packs/cmrm.safetensors.sig", sk.sign(file, key=lab.private).read_bytes())
            assert self.judged(pinned, trusting(lab)) == ("warn", "unsigned")
            self.aged(cache)
            assert self.judged(pinned, trusting(lab)) == ("pass", "trusted")
        finally:
            system.rm("/packs", recursive=True)

    def test_a_signature_that_is_lost_from_the_cache(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        sk.sign(file, key=lab.private)
        self.publish(hub, file)
        pinned = resolve("hf://someone/pack").pinned
        kept = resolve(pinned).signature
        assert kept is not None
        for damage in (kept.unlink, lambda: kept.write_bytes(b"{}")):
            damage()
            found = resolve(pinned, offline=True)
            assert answer(origin(found, trusting(lab))[0]) == ("fail", "malformed")
            assert self.origin(pinned, trusting(lab))[0] == ("pass", "trusted")

    def test_too_large_a_signature(self, hub: LoopbackHub, file: Path) -> None:
        beside(file).write_bytes(b" " * 2**19)
        self.publish(hub, file)
        with pytest.raises(DownloadError):
            resolve("hf://someone/pack")

    def test_a_web_server(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        data = file.read_bytes()
        name = hashlib.sha256(data).hexdigest() + ".safetensors"
        hub.objects[name.partition(".")[0]] = data
        url = f"{hub.delivery}/{name}"
        assert self.origin(url, trusting(lab))[0] == ("warn", "unsigned")
        hub.objects[f"{name}.sig"] = sk.sign(file, key=lab.private).read_bytes()
        assert self.origin(url, trusting(lab))[0] == ("pass", "trusted")
        pinned = f"{url}#sha256={hashlib.sha256(data).hexdigest()}"
        assert self.origin(pinned, trusting(lab))[0] == ("pass", "trusted")

    def test_a_web_server_with_a_page_for_what_is_not_there(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        data = file.read_bytes()
        hub.objects["a"] = data
        for page in (b"<!DOCTYPE html><p>Not found", b" " * 2**19):
            hub.faults.page = page
            assert self.origin(f"{hub.delivery}/a.safetensors", trusting(lab))[0] == ("warn", "unsigned")

    def test_a_copy_that_is_pinned_has_the_signature_of_another(
        self, hub: LoopbackHub, file: Path, lab: KeyPair
    ) -> None:
        pin = hashlib.sha256(file.read_bytes()).hexdigest()
        hub.publish("a/unsigned", {file.name: file.read_bytes()})
        resolve("hf://a/unsigned")
        sk.sign(file, key=lab.private)
        self.publish(hub, file)
        resolve("hf://someone/pack")
        assert self.origin(f"hf://else/where#sha256={pin}", trusting(lab))[0] == ("pass", "trusted")

    def test_a_file_system(self, cache: Path, file: Path, lab: KeyPair) -> None:
        import fsspec

        system = fsspec.filesystem("memory")
        system.pipe("/packs/cmrm.safetensors", file.read_bytes())
        assert self.origin("memory://packs", trusting(lab))[0] == ("warn", "unsigned")
        system.pipe("/packs/cmrm.safetensors.sig", sk.sign(file, key=lab.private).read_bytes())
        try:
            assert self.origin("memory://packs", trusting(lab))[0] == ("pass", "trusted")
        finally:
            system.rm("/packs", recursive=True)

    def test_a_file_system_that_lists_nothing(
        self, cache: Path, file: Path, lab: KeyPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As an object store without the right to list, it refuses what is not there, instead of missing it."""
        from fsspec.implementations.memory import MemoryFileSystem
        from fsspec.registry import _registry

        class Shy(MemoryFileSystem):
            protocol = "gs"
            store = {}
            pseudo_dirs = [""]

            @classmethod
            def _strip_protocol(cls, path: str) -> str:
                return "/" + path.removeprefix("gs://").strip("/")

            def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
                if "r" in mode and path not in self.store:
                    raise PermissionError("403")
                return super()._open(path, mode, **options)

        monkeypatch.setitem(_registry, "gs", Shy)
        Shy().pipe("/packs/cmrm.safetensors", file.read_bytes())
        assert self.origin("gs://packs/cmrm.safetensors", trusting(lab))[0] == ("warn", "unsigned")
        Shy().pipe("/packs/cmrm.safetensors.sig", sk.sign(file, key=lab.private).read_bytes())
        assert self.origin("gs://packs/cmrm.safetensors", trusting(lab))[0] == ("pass", "trusted")

    def test_this_machine(self, cache: Path, file: Path, lab: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
        sk.sign(file, key=lab.private)
        assert self.origin(str(file), trusting(lab))[0] == ("pass", "trusted")
        text = f"[[signers]]\nname = 'lab'\nkey = '{lab.public}'\n"
        (file.parent / "trust.toml").write_text(text)
        monkeypatch.setenv("STEERKIT_TRUST", str(file.parent / "trust.toml"))
        found = resolve(str(file.parent))
        assert answer(origin(found)[0]) == ("pass", "trusted")


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the hub's client's own
class TestPublishing:
    @pytest.fixture(autouse=True)
    def _token(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)

    def judged(self, trust: TrustFile) -> tuple[str, str]:
        found = resolve("hf://someone/pack")
        return answer(origin(found, trust)[0])

    def test_sign_push_and_pull(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        done = run("pack", "sign", file, "--key", lab.private, "--json")
        assert done.code == 0, done.err
        shown = json.loads(done.out)
        assert shown["signature"] == str(beside(file))
        assert shown["fingerprint"] == hashlib.sha256(lab.public.read_bytes()).hexdigest()
        assert run("pack", "sign", file, "--key", lab.private).code == 1
        assert run("pack", "sign", file, "--key", lab.private, "--force").code == 0
        done = run("push", file, "someone/pack")
        assert done.code == 0, done.err
        assert f"uploaded  {PACK}.sig" in done.err
        assert self.judged(trusting(lab)) == ("pass", "trusted")

        out = tmp_path / "out" / "pulled.safetensors"
        done = run("pull", "hf://someone/pack", "-o", out, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["signature"] == str(beside(out))
        assert judged(out, trusting(lab)) == ("pass", "trusted")

    def test_a_pulled_file_has_its_own_signature_or_none(self, hub: LoopbackHub, file: Path, lab: KeyPair) -> None:
        sk.sign(file, key=lab.private)
        hub.publish("someone/pack", {"a.safetensors": file.read_bytes()})
        done = run("pull", "hf://someone/pack", "-o", file, "--force")
        assert done.code == 0, done.err
        assert not beside(file).exists()

    def test_a_signature_is_not_replaced_unasked(self, hub: LoopbackHub, file: Path, tmp_path: Path) -> None:
        hub.publish("someone/pack", {"a.safetensors": file.read_bytes()})
        out = tmp_path / "new.safetensors"
        beside(out).write_bytes(b"mine")
        assert run("pull", "hf://someone/pack", "-o", out).code == 1
        assert beside(out).read_bytes() == b"mine"

    def test_a_signature_of_another_pack_is_not_published(
        self, hub: LoopbackHub, file: Path, lab: KeyPair, tmp_path: Path
    ) -> None:
        sk.sign(file, key=lab.private)
        done = run("push", file, "someone/pack", "--description", "changed")
        assert done.code == 1
        assert "--sign-key" in done.err
        with pytest.raises(PublishError, match="is of a file"):
            sk.SteeringVector.from_bytes(pack(tmp_path, seed=1)).push_to_hub("someone/pack", signature=beside(file))
        assert not hub.requests
        done = run("push", file, "someone/pack", "--description", "changed", "--sign-key", lab.private)
        assert done.code == 0, done.err
        assert self.judged(trusting(lab)) == ("pass", "trusted")

    def test_an_unsigned_update_takes_the_old_signature_away(
        self, hub: LoopbackHub, file: Path, lab: KeyPair, tmp_path: Path
    ) -> None:
        sk.SteeringVector.load(file).push_to_hub("someone/pack", sign_key=lab.private)
        assert self.judged(trusting(lab)) == ("pass", "trusted")
        done = sk.SteeringVector.from_bytes(pack(tmp_path, seed=1)).push_to_hub("someone/pack")
        assert hub.repositories["someone/pack"].commits[str(done.revision)] == dict(done.files)
        assert self.judged(trusting(lab)) == ("warn", "unsigned")

    def test_a_dry_run_shows_the_signature(self, file: Path, lab: KeyPair, tmp_path: Path) -> None:
        vector = sk.SteeringVector.load(file)
        done = vector.push_to_hub("someone/pack", dry_run=True, sign_key=lab.private)
        assert set(done.files) >= {PACK, f"{PACK}.sig"}
        for name in (PACK, f"{PACK}.sig"):
            (tmp_path / name).write_bytes(done.files[name])
        assert judged(tmp_path / PACK, trusting(lab)) == ("pass", "trusted")


def test_the_page_shows_what_is_accepted(tmp_path: Path, lab: KeyPair, root: Certified) -> None:
    page = (Path(__file__).parents[1] / "docs/signing.md").read_text(encoding="utf-8")
    signers, revoked = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    lists, _, entries = revoked.partition("\n")
    (tmp_path / "trust.toml").write_text(f"{lists}\n{signers}{entries}")
    trust = read_trust(tmp_path / "trust.toml")
    assert len(trust.signers) == 3
    assert len(trust.revocations) == 2
    assert trust.revoked.packs
    assert trust.revoked.keys
    for name in (
        *{*get_args(Answer)} - {"lookalike"},  # which is reported as an unknown signer
        "unknown_signer",
        "unsigned",
        "malformed",
        "revoked",
        "not_revoked",
        "no_lists",
        "stale",
        "unavailable",
    ):
        assert f"`{name}`" in page
