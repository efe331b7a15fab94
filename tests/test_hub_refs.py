"""References: how they are read, and packs that need no network."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import known_implementations
from hub_support import cache, pack, vector

import steerkit as sk
from steerkit_vectors_hub import bundled, errors
from steerkit_vectors_hub.errors import (
    AccessError,
    DigestMismatchError,
    DownloadError,
    HubError,
    PackNotFoundError,
    ReferenceFormatError,
)
from steerkit_vectors_hub.refs import FILE_SYSTEMS, Ref, parse_ref
from steerkit_vectors_hub.resolve import resolve
from steerkit_vectors_hub.sources import base
from steerkit_vectors_hub.sources.web import _Redirects

__all__ = ["cache"]  # a fixture

PIN = "a" * 64
WEB = ("http", "https")


class TestReading:
    @pytest.mark.parametrize(
        ("text", "ref"),
        [
            ("hf://a/b", Ref("hf", "a/b")),
            ("hf://a/b@v1", Ref("hf", "a/b", "v1")),
            ("hf://a/b/c/d.safetensors", Ref("hf", "a/b", None, "c/d.safetensors")),
            ("hf://a/b@refs/pr/7/d.safetensors", Ref("hf", "a/b", "refs/pr/7", "d.safetensors")),
            ("hf://a/b@x%2Fy", Ref("hf", "a/b", "x/y")),
            (f"hf://a/b@v1#sha256={PIN}", Ref("hf", "a/b", "v1", None, PIN)),
            ("https://h/a.safetensors?x=1", Ref("web", "https://h/a.safetensors?x=1")),
            ("http://localhost:1/a", Ref("web", "http://localhost:1/a")),
            ("s3://bucket/a", Ref("fsspec", "s3://bucket/a")),
            ("cmrm-llava-demo", Ref("bundled", "cmrm-llava-demo")),
            ("./cmrm-llava-demo", Ref("path", "./cmrm-llava-demo")),
            ("a.safetensors", Ref("path", "a.safetensors")),
            ("sftp://me@h/a", Ref("fsspec", "sftp://me@h/a")),
            ("gs://bucket/a", Ref("fsspec", "gs://bucket/a")),
            ("abfs://me@account.example.net/a", Ref("fsspec", "abfs://me@account.example.net/a")),
            ("HF://models/a/b", Ref("hf", "a/b")),
            ("https://h/a::b", Ref("web", "https://h/a::b")),
            (f"C#/a.safetensors#sha256={PIN.upper()}", Ref("path", "C#/a.safetensors", sha256=PIN)),
        ],
    )
    def test_a_reference_is_read_and_written(self, text: str, ref: Ref) -> None:
        assert parse_ref(text) == ref
        assert parse_ref(str(ref)) == ref

    @pytest.mark.parametrize(
        ("page", "ref"),
        [
            ("https://huggingface.co/a/b", "hf://a/b"),
            ("https://huggingface.co/a/b/", "hf://a/b"),
            ("https://hf.co/a/b/tree/main", "hf://a/b@main"),
            ("https://huggingface.co/a/b/blob/v1/c/d.safetensors", "hf://a/b@v1/c/d.safetensors"),
            ("https://huggingface.co/a/b/blob/x%2Fy/README.md", "hf://a/b@x%2Fy"),
        ],
    )
    def test_a_page_of_the_hub_is_no_pack(self, page: str, ref: str) -> None:
        with pytest.raises(ReferenceFormatError) as caught:
            parse_ref(page)
        assert caught.value.fix == f"write {ref}"
        parse_ref(ref)

    @pytest.mark.parametrize(
        ("url", "fix"),
        [
            ("https://h/a b.safetensors?x=%20&y", "https://h/a%20b.safetensors?x=%20&y"),
            ("https://h/päck.safetensors", "https://h/p%C3%A4ck.safetensors"),
            ("https://h\N{LATIN SMALL LETTER A WITH DIAERESIS}/a", "xn--"),
        ],
    )
    def test_what_a_url_quotes_is_not_taken_for_a_bad_network(self, url: str, fix: str) -> None:
        with pytest.raises(ReferenceFormatError) as caught:
            parse_ref(url)
        assert fix in str(caught.value.fix)

    def test_a_file_of_the_hub_is_one(self) -> None:
        url = "https://huggingface.co/a/b/resolve/main/c.safetensors"
        assert parse_ref(url) == Ref("web", url)

    @pytest.mark.parametrize(
        ("text", "hint"), [("owner/name", "hf://owner/name"), (str(Path("hf://owner/name")), "two slashes")]
    )
    def test_what_is_no_path_may_have_been_meant_for_a_repository(self, text: str, hint: str) -> None:
        with pytest.raises(PackNotFoundError, match=hint):
            resolve(text)

    def test_a_file_url_is_a_path(self) -> None:
        assert parse_ref("file:///a%20b") == Ref("path", "/a b")

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                " ",
                "a\0b",
                "hf://a",
                "hf://a/",
                "hf:///b",
                "hf://a/b@",
                "hf://a/b/../c.safetensors",
                "hf://a/b/c.bin",
            ),
            *(
                "hf://../b",
                "hf://a/b--c",
                "hf://a/b@..",
                "http://h/a",
                "https://u:p@h/a",
                "https://h/a#b",
                "https://h/a\nb",
                "s3://bucket/a\x1b[2J",
                "https:///a",
            ),
            *(
                "a#sha256=12",
                "a#sha256=" + "g" * 64,
                "a#SHA256=" + PIN,
                f"a#sha256={PIN}&x",
                "https://h/a#sha-256=" + PIN,
            ),
        ],
    )
    def test_a_malformed_reference_is_refused(self, text: str) -> None:
        with pytest.raises(ReferenceFormatError):
            parse_ref(text)

    @pytest.mark.parametrize(
        "text",
        ["s3://u:secret@bucket/a", "https://u:secret@h/a", "http://u:secret@h/a", "sftp://u:secret@h/a"],
    )
    def test_a_password_is_refused(self, text: str) -> None:
        with pytest.raises(ReferenceFormatError):
            parse_ref(text)

    @pytest.mark.parametrize(
        "text",
        [
            *("s3://u:secret@bucket/a", "https://u:secret@h/a", "ftp://u:secret@h/a", "sftp://u:secret@h/a"),
            *("zip://a::ftp://u:secret@localhost/b", "https://u:secret@h/a b", "http://u:secret@h/a\n"),
            *("https://u:secret@[h/a", "https://u:secret@h/a#sha-256=1", "https://u:secret@h/a#sha256=1"),
        ],
    )
    def test_no_message_repeats_a_password(self, text: str) -> None:
        with pytest.raises(ReferenceFormatError) as caught:
            parse_ref(text)
        error = caught.value
        assert "secret" not in f"{error} {error.expected} {error.fix}"

    @pytest.mark.parametrize("protocol", sorted(set(known_implementations) - {*FILE_SYSTEMS, "hf", "file", *WEB}))
    def test_no_other_protocol_of_fsspec_is_spoken(self, protocol: str) -> None:
        for text in (f"{protocol}://h/a", f"{protocol.upper()}://h/a", f"{protocol}://"):
            with pytest.raises(ReferenceFormatError, match="not a protocol by which packs are fetched"):
                parse_ref(text)

    @pytest.mark.parametrize("inner", ["https://h/a", "file:///a", "s3://b/a", "memory://a", "hf://a/b/c.safetensors"])
    @pytest.mark.parametrize(
        "outer", ["simplecache", "filecache", "zip://a", "reference://a", "s3://a/b", "memory://a"]
    )
    def test_no_protocol_is_chained_with_another(self, outer: str, inner: str) -> None:
        with pytest.raises(ReferenceFormatError, match="chains protocols"):
            parse_ref(f"{outer}::{inner}")

    @pytest.mark.parametrize("text", ["hf://datasets/a/b", "hf://spaces/a/b", "hf://buckets/a/b", "hf://dataset/a/b"])
    def test_packs_are_in_repositories_of_models(self, text: str) -> None:
        with pytest.raises(ReferenceFormatError):
            parse_ref(text)

    def test_a_reference_file_runs_nothing(self, tmp_path: Path) -> None:
        """A file of references can hold templates, and four releases of fsspec ran what stood in them."""
        ran = tmp_path / "ran"
        template = "{{ cycler.__init__.__globals__.os.system('touch " + str(ran) + "') }}"
        document = {"version": 1, "templates": {"u": template}, "refs": {"a.safetensors": ["{{u}}", 0, 1]}}
        (tmp_path / "refs.json").write_text(json.dumps(document))
        for ref in (f"reference://a.safetensors::file://{tmp_path}/refs.json", f"reference://{tmp_path}/refs.json"):
            with pytest.raises(ReferenceFormatError):
                resolve(ref)
        assert not ran.exists()

    def test_two_different_answers_are_refused(self) -> None:
        with pytest.raises(ReferenceFormatError, match="revision"):
            parse_ref("hf://a/b@v1", revision="v2")
        with pytest.raises(ReferenceFormatError, match="sha256"):
            parse_ref(f"a#sha256={PIN}", sha256="b" * 64)
        with pytest.raises(ReferenceFormatError, match="hf://"):
            parse_ref("a.safetensors", revision="v1")
        assert parse_ref(f"hf://a/b@v1#sha256={PIN}", revision="v1", sha256=PIN.upper()).sha256 == PIN


class TestThisMachine:
    def test_a_file_and_a_folder(self, tmp_path: Path) -> None:
        path = vector().save(tmp_path / "one" / "a.safetensors")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (tmp_path / "one" / "notes.txt").write_text("x")
        for ref in (str(path), str(path.parent), f"{path}#sha256={digest}", f"file://{path}"):
            loaded = sk.load_vector(ref)
            assert loaded.source == f"{path}#sha256={digest}"
            assert loaded.digest() == vector().digest()
        assert sk.load_vector(path).digest() == vector().digest()
        with pytest.raises(DigestMismatchError):
            sk.load_vector(path, sha256=PIN)

    def test_a_folder_of_none_or_several(self, tmp_path: Path) -> None:
        with pytest.raises(PackNotFoundError, match=r"no \.safetensors file"):
            resolve(str(tmp_path))
        for name in ("b", "a"):
            vector().save(tmp_path / f"{name}.safetensors")
        with pytest.raises(ReferenceFormatError, match=r"a\.safetensors, b\.safetensors"):
            resolve(str(tmp_path))

    def test_a_bundled_pack_by_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundled, "FOLDER", tmp_path / "packs")
        vector().save(tmp_path / "packs" / "cmrm-llava-demo.safetensors")
        monkeypatch.chdir(tmp_path)
        vector(1).save(tmp_path / "cmrm-llava-demo" / "other.safetensors")
        loaded = sk.load_vector("cmrm-llava-demo")
        assert loaded.digest() == vector().digest()
        assert str(loaded.source).startswith("cmrm-llava-demo#sha256=")
        assert sk.load_vector("./cmrm-llava-demo").digest() == vector(1).digest()
        with pytest.raises(PackNotFoundError, match="Did you mean 'cmrm-llava-demo'"):
            resolve("cmrm-lava-demo")
        with pytest.raises(PackNotFoundError, match="does not exist"):
            resolve("./nothing")

    @pytest.mark.parametrize("ref", ["~nosuchuser/a.safetensors", "a/" * 2500, "a" * 300])
    def test_a_path_that_can_not_be(self, ref: str) -> None:
        with pytest.raises(PackNotFoundError, match="check the path"):
            resolve(ref)

    def test_a_folder_that_may_not_be_read(self, tmp_path: Path) -> None:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0)
        root = os.geteuid() == 0
        if root:  # whom nothing is closed to
            os.seteuid(65534)
        try:
            with pytest.raises(AccessError, match="may not be read"):
                resolve(str(folder))
        finally:
            if root:
                os.seteuid(0)

    def test_a_name_as_long_as_names_can_be(self, tmp_path: Path) -> None:
        path = tmp_path / ("a" * 242 + ".safetensors")
        path.write_bytes(pack(tmp_path))
        assert resolve(str(path)).signature is None

    def test_a_changed_vector_has_no_source(self, tmp_path: Path) -> None:
        loaded = sk.load_vector(vector().save(tmp_path / "a.safetensors"))
        assert (loaded * 2).source is None
        assert loaded.with_metadata(license="MIT").source is None


@pytest.mark.usefixtures("cache")
class TestFilesystems:
    @pytest.fixture
    def memory(self, tmp_path: Path) -> bytes:
        data = pack(tmp_path)
        system = fsspec.filesystem("memory")
        system.store.clear()
        system.pipe("/bucket/a.safetensors", data)
        return data

    def test_a_file_and_a_folder(self, memory: bytes) -> None:
        for ref in ("memory://bucket/a.safetensors", "memory://bucket"):
            assert resolve(ref).read() == memory
        assert not resolve("memory://bucket/a.safetensors").transferred
        fsspec.filesystem("memory").store.clear()
        assert resolve("memory://bucket/a.safetensors", offline=True).read() == memory
        with pytest.raises(PackNotFoundError):
            resolve("memory://bucket/a.safetensors")

    def test_a_name_that_a_store_lists_chains_nothing(self, memory: bytes) -> None:
        fsspec.filesystem("memory").pipe({"/other/a": memory, "/other/a::b.safetensors": b"x"})
        with pytest.raises(ReferenceFormatError, match="chains protocols"):  # fsspec would open /other/a
            resolve("memory://other")

    def test_a_changed_file_is_transferred_again(self, memory: bytes, tmp_path: Path) -> None:
        assert resolve("memory://bucket/a.safetensors").read() == memory
        newer = pack(tmp_path, seed=1)
        fsspec.filesystem("memory").pipe("/bucket/a.safetensors", newer)
        assert resolve("memory://bucket/a.safetensors").read() == newer
        pinned = hashlib.sha256(memory).hexdigest()
        assert resolve(f"memory://bucket/a.safetensors#sha256={pinned}").read() == memory

    def test_a_signature_beside_a_file(self, memory: bytes) -> None:
        fsspec.filesystem("memory").pipe("/bucket/a.safetensors.sig", b"{}")
        found = resolve("memory://bucket/a.safetensors")
        assert found.signature is not None
        assert found.signature.read_bytes() == b"{}"

    def test_a_file_that_is_none_of_a_packs_size_is_refused(
        self, memory: bytes, monkeypatch: pytest.MonkeyPatch, cache: Path
    ) -> None:
        monkeypatch.setattr(base, "MAX_FILE", len(memory) - 1)
        with pytest.raises(DownloadError, match=f"at most {len(memory) - 1}"):
            resolve("memory://bucket/a.safetensors")
        assert not list((cache / "blobs").glob("*"))
        fsspec.filesystem("memory").pipe("/bucket/a.safetensors.sig", b"{" * (base.MAX_SIGNATURE + 1))
        monkeypatch.undo()
        with pytest.raises(DownloadError, match=f"at most {base.MAX_SIGNATURE}"):
            resolve("memory://bucket/a.safetensors")

    def test_an_unknown_protocol(self) -> None:
        with pytest.raises(ReferenceFormatError, match="nonsense://"):
            resolve("nonsense://x/a.safetensors")
        with pytest.raises(ReferenceFormatError, match="fsspec"):
            resolve("gs://x/a.safetensors")


@pytest.mark.parametrize("target", ["http://example.org/a", "ftp://h/a", "file:///etc/passwd", "http://127.0.0.1/a"])
def test_an_encrypted_address_leads_to_no_open_one(target: str) -> None:
    import urllib.request

    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(DownloadError, match="leads to"):
        _Redirects().redirect_request(request, None, 302, "", {}, target)


def test_every_error_is_documented_and_crosses_a_process_boundary() -> None:
    page = (Path(__file__).parents[1] / "docs" / "hub.md").read_text(encoding="utf-8")
    classes = [each for each in vars(errors).values() if isinstance(each, type) and each.__module__ == errors.__name__]
    kinds = [each for each in classes if each is not HubError]
    assert len(kinds) == 13
    for kind in kinds:
        base, also = kind.__bases__
        assert base is HubError
        assert f"| `{kind.__name__}` | `{also.__name__}` | {kind.__doc__} |" in page
        error = pickle.loads(pickle.dumps(kind("p", expected="e", fix="f")))
        assert type(error) is kind
        assert (error.problem, error.expected, error.fix, str(error)) == ("p", "e", "f", "p. Expected: e. Fix: f.")
