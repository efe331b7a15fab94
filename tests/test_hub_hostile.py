"""Hubs, web servers and caches of others that do what they should not, met by the real clients."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hub_support import cache, hub, pack, vector
from loopback_hub import LoopbackHub

from steerkit_vectors_hub.cache import Store
from steerkit_vectors_hub.errors import (
    CacheError,
    DownloadError,
    HubError,
    OfflineError,
    PackNotFoundError,
)
from steerkit_vectors_hub.refs import parse_ref
from steerkit_vectors_hub.resolve import resolve
from steerkit_vectors_hub.sources import base, huggingface, source_of
from steerkit_vectors_hub.sources.huggingface import published

__all__ = ["cache", "hub"]  # fixtures

COMMIT = "0" * 39 + "1"
ENDLESS = object()
"""A body that goes on for as long as it is read."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pack(tmp_path_factory.mktemp("made"))


Answer = tuple[int, dict[str, str], Any]


@contextmanager
def serving(answer: Callable[[str, str], Answer], seen: list[dict[str, str]] | None = None) -> Iterator[str]:
    """A server that answers each method and path as it is told: a status, headers, and a body or ENDLESS.

    The headers of what it is asked are noted in `seen`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if seen is not None:
                seen.append({key.lower(): value for key, value in self.headers.items()})
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            self.send_header("Connection", "close")
            for key, value in headers.items():
                self.send_header(key, value)
            if body is ENDLESS:
                self.send_header("Transfer-Encoding", "chunked")
            elif "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if body is not ENDLESS:
                self.wfile.write(body)
                self.close_connection = True
                return
            chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
            try:
                while True:
                    self.wfile.write(chunk)
            except OSError:
                self.close_connection = True

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def described(**fields: Any) -> bytes:
    """A hub's description of a repository with one pack."""
    file = {"rfilename": "a.safetensors", "size": 8, "blobId": COMMIT}
    return json.dumps({"id": "someone/pack", "sha": COMMIT, "siblings": [file], **fields}).encode()


def sibling(**fields: Any) -> bytes:
    return described(siblings=[{"rfilename": "a.safetensors", "size": 8, **fields}])


DESCRIPTIONS = {
    **{f"json {text}": text.encode() for text in ("1", "null", "true", '"text"', "[]", "[1]", "{}", "NaN", "[" * 99)},
    **{f"sha {value!r}": described(sha=value) for value in (1, None, [], {}, "main", "0" * 41, COMMIT.upper() + "\n")},
    **{f"siblings {value!r}": described(siblings=value) for value in (1, "a", {}, [1], [[]], [None], [{}])},
    **{f"name {value!r}": sibling(rfilename=value) for value in (1, None, [], {"a": 1})},
    **{f"size {value!r}": sibling(size=value) for value in (-1, "x", [], 1.5, 2**31 + 1, 10**30)},
    **{f"lfs {value!r}": sibling(lfs=value) for value in (1, [], "x", {}, {"sha256": "../x", "size": 1})},
    **{f"blob {value!r}": sibling(blobId=value) for value in (1, [], {})},
    "no json": b"<html>",
    "nothing": b"",
    "no text": b"\xff\xfe{}",
    "a key twice": b'{"sha": "a", "sha": "b"}',
    "too many values": b'{"siblings": [' + b"1," * 2**20 + b"1]}",
    "endless": ENDLESS,
}


class TestHub:
    @pytest.fixture
    def answering(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface, "MAX_ANSWER", 2**22)

    @pytest.mark.usefixtures("answering")
    @pytest.mark.parametrize("name", DESCRIPTIONS)
    def test_a_description_of_wrong_types_is_a_download_error(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda *_: (200, {"Content-Type": "application/json"}, DESCRIPTIONS[name])) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises((DownloadError, PackNotFoundError)) as caught:
                resolve("hf://someone/pack")
        assert len(str(caught.value)) < 2000

    @pytest.mark.usefixtures("answering")
    @pytest.mark.parametrize(
        "name",
        [each for each in DESCRIPTIONS if each.startswith("json") and each != "json []"] + ["endless", "no json"],
    )
    def test_a_list_of_repositories_of_wrong_types(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda *_: (200, {}, DESCRIPTIONS[name])) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(DownloadError):
                published("llava")

    @pytest.mark.usefixtures("answering")
    @pytest.mark.parametrize("status", [200, 206, 404, 401, 500])
    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"Content-Length": "1000"}, b"{}"),
            ({"Content-Length": "x"}, b"{}"),
            ({"Content-Encoding": "gzip"}, b"no gzip"),
            ({"Content-Type": "application/json", "X-Error-Code": "GatedRepo"}, b"[1]"),
            ({}, ENDLESS),
        ],
    )
    def test_an_answer_that_is_no_http(
        self, status: int, headers: dict[str, str], body: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving(lambda *_: (status, headers, body)) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(HubError):
                resolve("hf://someone/pack")

    @pytest.mark.usefixtures("answering")
    @pytest.mark.parametrize("place", ["/", "//", "http://", "https://[", "", "/\x01"])
    def test_redirects_without_end_or_to_nowhere(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda *_: (302, {"Location": place}, b"")) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            for ref in ("hf://someone/pack", f"{url}/a.safetensors"):
                with pytest.raises(HubError):
                    resolve(ref)

    @pytest.mark.usefixtures("answering")
    @pytest.mark.parametrize("status", [302, 404, 401, 500])
    @pytest.mark.parametrize("described_first", [True, False])
    def test_a_refusal_or_a_redirect_without_end(
        self, status: int, described_first: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of the description, or of the file that it announced."""

        def answer(method: str, path: str) -> Answer:
            if described_first and path.startswith("/api/"):
                return 200, {}, described()
            if described_first and method == "HEAD":
                return 200, {"ETag": '"a"', "X-Repo-Commit": COMMIT, "Content-Length": "8"}, b""
            return status, {"Location": "/elsewhere"}, ENDLESS

        with serving(answer) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(DownloadError, match=f"at most {2**22}"):
                resolve("hf://someone/pack")

    @pytest.mark.usefixtures("answering")
    @pytest.mark.parametrize("status", [200, 404])
    def test_a_bomb_of_gzip_is_not_unpacked(self, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
        bomb = gzip.compress(b" " * 2**27, 1)
        assert len(bomb) > 2**22 // 64
        with serving(lambda *_: (status, {"Content-Encoding": "gzip"}, bomb)) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(DownloadError, match=f"at most {2**22 // 64}"):
                resolve("hf://someone/pack")

    def test_the_bound_is_of_ones_own_calls(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import HfApi, get_session

        hub.publish("someone/pack", {"a.safetensors": b"x"})
        hooks = get_session().event_hooks
        monkeypatch.setattr(huggingface, "MAX_ANSWER", 3)
        with huggingface.translated("it"):
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(HfApi(endpoint=hub.url).model_info, "someone/pack").result().id == "someone/pack"
            with pytest.raises(DownloadError, match="at most 3"):
                HfApi(endpoint=hub.url).model_info("someone/pack")
        assert get_session().event_hooks == hooks
        assert HfApi(endpoint=hub.url).model_info("someone/pack").id == "someone/pack"

    def test_the_token_does_not_follow_a_redirect(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        ours: list[dict[str, str]] = []
        theirs: list[dict[str, str]] = []
        with serving(lambda *_: (200, {}, b"[]"), theirs) as other:
            place = other.replace("127.0.0.1", "localhost")
            with serving(lambda *_: (302, {"Location": place}, b""), ours) as url:
                monkeypatch.setenv("HF_ENDPOINT", url)
                with pytest.raises(DownloadError):
                    resolve("hf://someone/pack")
        assert ours[0]["authorization"] == "Bearer hf_secret"
        assert theirs
        assert not [each for each in theirs if "hf_secret" in str(each)]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"ETag": '"a"'},
            {"X-Repo-Commit": COMMIT},
            {"ETag": '"../../a"', "X-Repo-Commit": COMMIT},
            {"ETag": '"a"', "X-Repo-Commit": "../../main"},
            {"ETag": '"a"', "X-Repo-Commit": COMMIT, "X-Linked-Size": "x", "X-Xet-Hash": "../a"},
        ],
    )
    @pytest.mark.parametrize("body", [b"12345678", b"1234567", b"", b"123456789", ENDLESS])
    def test_a_file_with_wrong_headers(
        self, cache: Path, headers: dict[str, str], body: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)

        def answer(method: str, path: str) -> Answer:
            return (200, {}, described()) if path.startswith("/api/") else (200, headers, body)

        with serving(answer) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(HubError):
                resolve("hf://someone/pack")
        assert not [path for path in (cache / "work").rglob("*") if path.is_file()]

    @pytest.mark.parametrize(
        "answer", ["1", "null", "[]", "[1]", "{}", '{"url": 1, "files": 2, "commitOid": []}', "<html>"]
    )
    def test_a_push_that_is_answered_by_wrong_types(
        self, cache: Path, answer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_any")
        with serving(lambda *_: (200, {}, answer.encode())) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            with pytest.raises(DownloadError):
                vector().push_to_hub("someone/pack", private=True)


class TestWeb:
    def test_a_body_without_end_leaves_nothing(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "MAX_FILE", 2**24)
        with serving(lambda *_: (200, {}, ENDLESS)) as url, pytest.raises(DownloadError, match=f"at most {2**24}"):
            resolve(f"{url}/a.safetensors")
        assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]

    @pytest.mark.parametrize("length", [str(2**31 + 1), "9" * 18])
    def test_an_announced_size_beyond_the_bound_is_not_transferred(self, cache: Path, length: str) -> None:
        asked = []

        def answer(method: str, path: str) -> Answer:
            asked.append(method)
            return 200, {"Content-Length": length}, b"x"

        with serving(answer) as url, pytest.raises(DownloadError, match=r"at most"):
            resolve(f"{url}/a.safetensors")
        assert asked == ["HEAD"]

    @pytest.mark.parametrize(
        ("status", "headers"),
        [
            (206, {"Content-Range": "bytes 5-9/10"}),
            (206, {}),
            (200, {"Content-Length": "1000"}),
            (200, {"Content-Length": "-1"}),
            (200, {"ETag": '"' + "x" * 60_000 + '"'}),
            (200, {"Content-Encoding": "gzip"}),
            (204, {}),
            (416, {}),
            (599, {}),
        ],
    )
    def test_answers_that_make_no_sense(
        self, cache: Path, status: int, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving(lambda *_: (status, headers, b"{}")) as url, pytest.raises((HubError, ValueError)) as caught:
            resolve(f"{url}/a.safetensors")
        assert type(caught.value).__module__.startswith("steerkit")
        assert not list((cache / "blobs").glob("*"))

    def test_a_signature_without_end(self, cache: Path, data: bytes) -> None:
        def answer(method: str, path: str) -> Answer:
            return (200, {}, ENDLESS) if path.endswith(".sig") else (200, {}, data)

        with serving(answer) as url:
            assert resolve(f"{url}/a.safetensors").signature is None  # blanks: many servers answer with a page


class TestCacheOfOthers:
    """Links that somebody with a right to write to the cache has put where a transfer writes."""

    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        folder = tmp_path / "mine"
        folder.mkdir()
        for name in ("thesis", "part", "etag"):
            (folder / name).write_text("mine")
        return folder

    @pytest.fixture(params=["hub", "web"])
    def ref(self, request: pytest.FixtureRequest, hub: LoopbackHub, data: bytes) -> str:
        hub.publish("someone/pack", {"a.safetensors": data})
        digest = hashlib.sha256(data).hexdigest()
        return "hf://someone/pack" if request.param == "hub" else f"{hub.delivery}/{digest}.safetensors"

    @staticmethod
    def intact(mine: Path) -> None:
        assert {path.name: path.read_text() for path in mine.iterdir()} == dict.fromkeys(
            ("thesis", "part", "etag"), "mine"
        )

    @pytest.mark.parametrize("name", ["blobs", "records", "locks", "work"])
    def test_a_folder_that_is_a_link_is_not_written_through(self, ref: str, cache: Path, mine: Path, name: str) -> None:
        cache.mkdir(exist_ok=True)
        (cache / name).symlink_to(mine)
        with pytest.raises(CacheError, match="symbolic link"):
            resolve(ref)
        self.intact(mine)

    @pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
    def test_a_file_that_is_a_link_is_replaced(
        self, ref: str, cache: Path, mine: Path, data: bytes, link: Callable[[Path, Path], None]
    ) -> None:
        found = resolve(ref)
        for path in [*(cache / "blobs").iterdir(), *(cache / "records").iterdir()]:
            path.unlink()
            link(path, mine / "thesis")
        assert resolve(ref).read() == data
        assert found.read() == data
        self.intact(mine)

    @pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
    def test_what_a_transfer_left_may_be_links(
        self, ref: str, mine: Path, data: bytes, link: Callable[[Path, Path], None]
    ) -> None:
        for folder in self.places(ref):
            link(folder / "part", mine / "part")
            link(folder / "etag", mine / "etag")
            if link is Path.symlink_to:
                (folder / "unused").symlink_to(mine)
        assert resolve(ref).read() == data
        self.intact(mine)

    def test_the_folder_of_a_transfer_may_be_a_link(self, ref: str, mine: Path) -> None:
        for folder in self.places(ref):
            folder.rmdir()
            folder.symlink_to(mine)
        with pytest.raises(CacheError, match="symbolic link"):
            resolve(ref)
        self.intact(mine)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_nobody_works_in_a_folder_of_another_user(self, ref: str) -> None:
        for folder in self.places(ref):
            os.chown(folder, 65534, -1)
        with pytest.raises(CacheError, match="another user"):
            resolve(ref)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_a_record_of_another_user_is_not_believed(self, ref: str, cache: Path, tmp_path: Path) -> None:
        """Else it would say which pack a reference leads to, without a network."""
        evil = Store.default().keep(pack(tmp_path, seed=7))
        resolve(ref)
        for path in (cache / "records").iterdir():
            path.write_text(json.dumps({**json.loads(path.read_bytes()), "sha256": evil}))
        assert resolve(ref, offline=True).sha256 == evil  # of one's own, it is
        for path in (cache / "records").iterdir():
            os.chown(path, 65534, -1)
        with pytest.raises(OfflineError):
            resolve(ref, offline=True)
        assert resolve(ref).sha256 != evil

    def test_a_device_and_a_fifo_in_the_place_of_a_pack(self, ref: str, cache: Path) -> None:
        blob = resolve(ref).path
        blob.unlink()
        os.mkfifo(blob)
        with pytest.raises(OfflineError):
            resolve(ref, offline=True)
        with pytest.raises(CacheError, match="not a regular file"):
            resolve(ref)
        blob.unlink()
        for path in (cache / "records").iterdir():
            path.unlink()
            os.mkfifo(path)
        with pytest.raises(OfflineError):
            resolve(ref, offline=True)

    @staticmethod
    def places(ref: str) -> list[Path]:
        """The folders that transfers of a reference work in: of the pack, and of its signature."""
        parsed = parse_ref(ref)
        target = source_of(parsed.kind).locate(parsed)
        key = parse_ref(f"{ref}@{target.revision}/{target.file}").key if parsed.kind == "hf" else parsed.key
        folders = []
        for each in (key, f"{key} signature"):
            with Store.default().work(each) as folder:
                folders.append(folder)
        return folders


class TestDisk:
    @pytest.mark.parametrize("kind", ["hub", "web", "memory"])
    def test_a_limit_of_the_size_of_files(self, hub: LoopbackHub, data: bytes, kind: str, tmp_path: Path) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        digest = hashlib.sha256(data).hexdigest()
        refs = {"hub": "hf://someone/pack", "web": f"{hub.delivery}/{digest}.safetensors", "memory": "memory://a"}
        code = """if True:
            import resource, sys, fsspec
            from steerkit_vectors_hub.resolve import resolve
            fsspec.filesystem("memory").pipe("/a", open(sys.argv[2], "rb").read())
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            resolve(sys.argv[1])
        """
        (tmp_path / "pack").write_bytes(data)
        command = [sys.executable, "-c", code, refs[kind], str(tmp_path / "pack")]
        error = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr.splitlines()[-1]
        assert error.startswith("steerkit_vectors_hub.errors.CacheError"), error
        assert not [path for path in (Store.default().root / "work").rglob("*") if path.name == "part"]

    @pytest.mark.parametrize("folder", ["x" * 300, "y/" * 2500, "file/below", "/proc/1/nowhere", "/dev/null/cache"])
    def test_a_cache_that_can_not_be(
        self, hub: LoopbackHub, data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
    ) -> None:
        (tmp_path / "file").touch()
        hub.publish("someone/pack", {"a.safetensors": data})
        monkeypatch.setenv("STEERKIT_CACHE", str(tmp_path / folder))
        with pytest.raises(CacheError, match="STEERKIT_CACHE"):
            resolve("hf://someone/pack")
        with pytest.raises(OfflineError):
            resolve("hf://someone/pack", offline=True)
        assert Store.default().records() == []

    def test_files_of_the_cache_have_the_mode_of_the_umask(self, hub: LoopbackHub, data: bytes, cache: Path) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        before = os.umask(0o002)
        try:
            resolve("hf://someone/pack")
        finally:
            os.umask(before)
        files = [*(cache / "blobs").iterdir(), *(cache / "records").iterdir()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o664}

    def test_a_name_that_is_too_long_for_a_file(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a" * 300 + ".safetensors": data})
        with pytest.raises((CacheError, DownloadError)):
            resolve("hf://someone/pack")
