"""Downloads with the real client of the Hugging Face hub, from a hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_support import cache, hub, loading, pack, vector
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter
from loopback_hub import TOKEN, LoopbackHub

import steerkit as sk
from steerkit.errors import PackFormatError
from steerkit_vectors_hub.errors import (
    AccessError,
    CacheError,
    DigestMismatchError,
    DownloadError,
    OfflineError,
    PackNotFoundError,
    ReferenceFormatError,
)
from steerkit_vectors_hub.refs import parse_ref
from steerkit_vectors_hub.resolve import resolve
from steerkit_vectors_hub.sources import base
from steerkit_vectors_hub.sources.huggingface import HuggingFaceSource, bounded

__all__ = ["cache", "hub"]  # fixtures


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pack(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pack(tmp_path_factory.mktemp("made"), seed=1)


class TestHub:
    @pytest.mark.parametrize("large", [True, False])
    def test_a_pack_is_loaded_with_commit_and_digest(self, hub: LoopbackHub, data: bytes, large: bool) -> None:
        commit = hub.publish("someone/pack", {"README.md": b"x", "cmrm.safetensors": data}, large=large)
        loaded = sk.load_vector("hf://someone/pack")
        assert loaded.digest() == vector().digest()
        assert loaded.source == f"hf://someone/pack@{commit}/cmrm.safetensors#sha256={sha(data)}"
        assert resolve(loaded.source).read() == data
        assert resolve("hf://someone/pack/cmrm.safetensors").revision == commit

    def test_a_second_load_transfers_nothing(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"cmrm.safetensors": data})
        assert resolve("hf://someone/pack").transferred
        before = len(hub.asked("GET", sha(data)))
        assert not resolve("hf://someone/pack").transferred
        assert len(hub.asked("GET", sha(data))) == before == 1

    @pytest.mark.parametrize("large", [True, False])
    def test_a_branch_moves_and_a_commit_stays(self, hub: LoopbackHub, data: bytes, newer: bytes, large: bool) -> None:
        first = hub.publish("someone/pack", {"a.safetensors": data}, large=large)
        assert resolve("hf://someone/pack").sha256 == sha(data)
        second = hub.publish("someone/pack", {"a.safetensors": newer})
        assert resolve("hf://someone/pack").revision == second
        assert resolve("hf://someone/pack@main").sha256 == sha(newer)
        assert resolve("hf://someone/pack", revision=first).sha256 == sha(data)
        hub.requests.clear()
        assert resolve(f"hf://someone/pack@{first}/a.safetensors").sha256 == sha(data)
        assert not hub.requests

    def test_a_branch_with_a_slash(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data}, branch="refs/pr/3")
        hub.publish("someone/pack", {"a.safetensors": data}, branch="try/it")
        assert resolve("hf://someone/pack@refs/pr/3/a.safetensors").sha256 == sha(data)
        assert resolve("hf://someone/pack@try%2Fit").sha256 == sha(data)

    def test_the_token_stays_on_the_hub(self, hub: LoopbackHub, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.publish("someone/pack", {"a.safetensors": data}, private=True, gated=True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert resolve("hf://someone/pack").transferred
        authorised = {request.host for request in hub.requests if "Authorization" in request.headers}
        assert authorised == {hub.url.removeprefix("http://")}
        assert {request.host for request in hub.requests} > authorised

    @pytest.mark.parametrize("large", [True, False])
    def test_a_cut_transfer_is_resumed(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
        body = pack(tmp_path, width=4096)
        hub.publish("someone/pack", {"a.safetensors": body}, large=large)
        hub.faults.cuts = 1
        assert resolve("hf://someone/pack").read() == body
        ranges = [request.headers.get("Range") for request in hub.requests if "Range" in request.headers]
        assert len(ranges) == 1
        assert 0 < int(ranges[0].removeprefix("bytes=").rstrip("-")) <= len(body) // 2

    @pytest.mark.parametrize(
        ("ref", "kind", "text"),
        [
            ("hf://nobody/nothing", AccessError, "401"),
            ("hf://someone/pack@gone", PackNotFoundError, "no such revision"),
            ("hf://someone/pack/gone.safetensors", PackNotFoundError, "a.safetensors"),
            ("hf://someone/secret", AccessError, "hf auth login"),
            ("hf://someone/gated", AccessError, "gated"),
            ("hf://someone/empty", PackNotFoundError, "no .safetensors file"),
            ("hf://someone/many", ReferenceFormatError, "a.safetensors, b.safetensors"),
        ],
    )
    def test_refusals_say_why(self, hub: LoopbackHub, data: bytes, ref: str, kind: type, text: str) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        hub.publish("someone/secret", {"a.safetensors": data}, private=True)
        hub.publish("someone/gated", {"a.safetensors": data}, gated=True)
        hub.publish("someone/empty", {"README.md": b"x"})
        hub.publish("someone/many", {"a.safetensors": data, "b.safetensors": data})
        with pytest.raises(kind) as caught:
            resolve(ref)
        assert text in str(caught.value)

    def test_not_found_with_a_token_is_404(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(PackNotFoundError, match="no such repository"):
            resolve("hf://nobody/nothing")

    def test_a_file_name_that_leads_out_of_the_repository(self, hub: LoopbackHub, data: bytes) -> None:
        for name in ("../../../a.safetensors", "/a.safetensors", "..\\a.safetensors"):
            repo_id = f"someone/{len(hub.repositories)}"
            hub.publish(repo_id, {name: data})
            with pytest.raises(DownloadError, match="a path in the repository"):
                resolve(f"hf://{repo_id}")

    def test_no_file_name_of_a_repository_forges_a_line(self, hub: LoopbackHub, data: bytes) -> None:
        name = "a\nerror: \x1b[2Jrun this.safetensors"
        hub.publish("someone/pack", {name: data, "b.safetensors": data})
        for ref in ("hf://someone/pack", "hf://someone/pack/c.safetensors"):
            with pytest.raises((ReferenceFormatError, PackNotFoundError), match="run this") as caught:
                resolve(ref)
            assert str(caught.value).isprintable()

    def test_a_commit_that_is_none_is_not_believed(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        (repository,) = hub.repositories.values()
        repository.commits["../../main\nx"] = repository.commits[repository.branches["main"]]
        repository.branches["main"] = "../../main\nx"
        with pytest.raises(DownloadError, match="40 digits"):
            resolve("hf://someone/pack")

    def test_a_broken_hub_is_a_download_error(self, hub: LoopbackHub) -> None:
        hub.faults.status = 500
        with pytest.raises(DownloadError, match="500"):
            resolve("hf://someone/pack")

    def test_a_size_beyond_the_bound_is_not_transferred(
        self, hub: LoopbackHub, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        monkeypatch.setattr(base, "MAX_FILE", len(data) - 1)
        with pytest.raises(DownloadError, match="at most"):
            resolve("hf://someone/pack")
        assert not hub.asked("GET", "resolve")

    def test_a_body_longer_than_announced_is_not_taken(self, hub: LoopbackHub, cache: Path, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        hub.faults.excess = b"x" * 100_000
        with pytest.raises(DownloadError, match="longer than announced"):
            resolve("hf://someone/pack")
        assert not any(path.is_file() for path in (cache / "work").rglob("*.incomplete"))

    @pytest.mark.parametrize("large", [True, False])
    def test_a_file_shorter_than_announced_is_not_taken(
        self, hub: LoopbackHub, data: bytes, tmp_path: Path, large: bool
    ) -> None:
        hub.publish("someone/pack", {"a.safetensors": data}, large=large)
        source = HuggingFaceSource()
        target = source.locate(parse_ref("hf://someone/pack"))
        (tmp_path / "work").mkdir()
        with pytest.raises(DownloadError, match=f"arrived with {len(data)} bytes"):
            source.download(replace(target, size=len(data) + 1), tmp_path / "work")


class TestXet:
    """Transfers by the client that huggingface_hub prefers, in a process of its own: it never ends its threads."""

    @pytest.fixture
    def load(self, hub: LoopbackHub, data: bytes, tmp_path: Path) -> Callable[[], tuple[str, str]]:
        hub.publish("someone/pack", {"a.safetensors": data}, xet=True)

        def load() -> tuple[str, str]:
            variables = {"HF_HUB_DISABLE_XET": "0", "HF_XET_CACHE": str(tmp_path / "xet")}
            with loading("hf://someone/pack", **variables) as process:
                return process.communicate()

        return load

    def test_a_pack_is_transferred(self, hub: LoopbackHub, data: bytes, load: Callable[[], tuple[str, str]]) -> None:
        said, complaints = load()
        assert said.split()[-2:] == [sha(data), "True"], complaints
        assert hub.asked("GET", "/xorb/")
        assert not complaints  # what a callback raises is printed, and ends nothing

    def test_damage_is_noticed(self, hub: LoopbackHub, load: Callable[[], tuple[str, str]]) -> None:
        hub.faults.damage = True
        assert "DigestMismatchError" in load()[1]
        assert hub.asked("GET", "/xorb/")

    def test_a_size_that_grows_is_refused(self, hub: LoopbackHub, load: Callable[[], tuple[str, str]]) -> None:
        hub.faults.excess = b"x"
        assert "longer than announced" in load()[1]
        assert not hub.asked("GET", "/reconstructions/")

    def test_bytes_of_the_file_count_and_those_of_the_network_do_not(self) -> None:
        def report(processed: int, transferred: int) -> SimpleNamespace:
            return SimpleNamespace(
                total_bytes=processed,
                total_bytes_completed=processed,
                total_bytes_completion_rate=1.0,
                total_transfer_bytes_completed=transferred,
                total_transfer_bytes_completion_rate=1.0,
            )

        options = {"reconstruction_desc": "a", "name": "huggingface_hub.xet_get", "log_level": 0}
        with XetDownloadProgressReporter(total=100, tqdm_class=bounded("a", 100), **options) as progress:
            progress.update_progress(report(50, 1000))
            progress.update_progress(report(100, 2000))
            with pytest.raises(DownloadError, match="longer than announced"):
                progress.update_progress(report(101, 2000))
        with pytest.raises(DownloadError, match="longer than announced"):
            XetDownloadProgressReporter(total=101, tqdm_class=bounded("a", 100), **options)


class TestDigest:
    @pytest.mark.parametrize("large", [True, False])
    def test_a_pin_that_does_not_match_is_refused(self, hub: LoopbackHub, data: bytes, large: bool) -> None:
        hub.publish("someone/pack", {"a.safetensors": data}, large=large)
        with pytest.raises(DigestMismatchError, match="don't use it"):
            resolve("hf://someone/pack#sha256=" + "0" * 64)
        assert bool(hub.asked("GET", "resolve")) is not large  # an announced digest is compared before the transfer

    def test_a_damaged_body_is_refused_and_keeps_the_good_copy(
        self, hub: LoopbackHub, cache: Path, data: bytes, newer: bytes
    ) -> None:
        first = hub.publish("someone/pack", {"a.safetensors": data})
        resolve("hf://someone/pack")
        hub.publish("someone/pack", {"a.safetensors": newer})
        hub.faults.damage = True
        with pytest.raises(DigestMismatchError):
            resolve("hf://someone/pack")
        assert [path.name for path in (cache / "blobs").iterdir()] == [sha(data)]
        assert resolve("hf://someone/pack", offline=True).revision == first
        hub.faults.damage = False
        assert resolve("hf://someone/pack").read() == newer

    def test_a_damaged_plain_file_fails_its_pin(self, hub: LoopbackHub, cache: Path, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data}, large=False)
        hub.faults.damage = True
        with pytest.raises(DigestMismatchError):
            resolve("hf://someone/pack", sha256=sha(data))
        assert not list((cache / "blobs").glob("*"))

    def test_a_damaged_plain_file_fails_the_digest_of_git(self, hub: LoopbackHub, cache: Path, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data}, large=False)
        hub.faults.damage = True
        with pytest.raises(DigestMismatchError, match="git"):
            resolve("hf://someone/pack")
        hub.faults.damage = False
        assert resolve("hf://someone/pack").read() == data

    def test_what_is_no_pack_never_gets_into_the_cache(self, hub: LoopbackHub, cache: Path, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": b"no pack"})
        with pytest.raises(PackFormatError):
            resolve("hf://someone/pack")
        hub.objects["a"] = data
        hub.faults.damage = True
        with pytest.raises(PackFormatError, match="changed after it was written"):
            resolve(f"{hub.delivery}/a.safetensors")
        assert not list((cache / "blobs").glob("*"))
        hub.faults.damage = False
        assert resolve(f"{hub.delivery}/a.safetensors").read() == data

    @pytest.mark.parametrize("change", [{"revision": 5}, {"sha256": "../x"}, {"signature": "../x"}, {"more": 1}])
    def test_a_damaged_record_is_written_anew(
        self, hub: LoopbackHub, cache: Path, data: bytes, change: dict[str, object]
    ) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        resolve("hf://someone/pack")
        for record in (cache / "records").iterdir():
            record.write_text(json.dumps({**json.loads(record.read_bytes()), **change}))
        with pytest.raises(OfflineError):
            resolve("hf://someone/pack", offline=True)
        assert not resolve("hf://someone/pack").transferred
        assert resolve("hf://someone/pack", offline=True).read() == data

    def test_a_damaged_copy_in_the_cache_is_fetched_again(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        found = resolve("hf://someone/pack")
        found.path.write_bytes(data[:-1] + b"\0")
        with pytest.raises(DigestMismatchError):
            found.read()
        with pytest.raises(OfflineError, match="damaged"):
            resolve("hf://someone/pack", offline=True)
        assert resolve("hf://someone/pack").transferred
        assert found.read() == data

    def test_a_pinned_pack_in_the_cache_needs_no_network(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        resolve("hf://someone/pack")
        hub.requests.clear()
        found = resolve(f"hf://elsewhere/pack#sha256={sha(data)}")
        assert found.read() == data
        assert found.revision is None
        assert not hub.requests


class TestOffline:
    @pytest.mark.parametrize("name", ["STEERKIT_OFFLINE", "HF_HUB_OFFLINE"])
    def test_only_the_cache_is_used(
        self, hub: LoopbackHub, data: bytes, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        commit = hub.publish("someone/pack", {"a.safetensors": data})
        online = resolve("hf://someone/pack")
        hub.requests.clear()
        monkeypatch.setenv(name, "1")
        refs = [f"hf://someone/pack{end}" for end in ("", "@main", "/a.safetensors", f"@{commit}/a.safetensors")]
        assert {resolve(ref).pinned for ref in refs} == {online.pinned}
        with pytest.raises(OfflineError, match="steerkit pull"):
            resolve("hf://someone/other")
        with pytest.raises(DigestMismatchError):
            resolve("hf://someone/pack", sha256="0" * 64)
        assert not hub.requests
        assert resolve("hf://someone/pack", offline=False).sha256 == online.sha256

    def test_no_network_names_the_way_out(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(DownloadError, match="offline=True"):
            resolve("hf://someone/pack")

    @pytest.mark.parametrize(("url", "problem"), [("http://h", "not encrypted"), ("https://u:p@h", "password")])
    def test_another_hub_is_asked_over_an_encrypted_line_only(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, url: str, problem: str
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(ReferenceFormatError, match=f"HF_ENDPOINT.*{problem}"):
            resolve("hf://someone/pack")

    def test_a_cache_that_cannot_be_written(
        self, hub: LoopbackHub, cache: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        cache.write_text("in the way")
        with pytest.raises(CacheError, match="STEERKIT_CACHE"):
            resolve("hf://someone/pack")

    def test_a_cache_in_a_home_folder_that_there_is_not(
        self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STEERKIT_CACHE", "~nobody-here/x")
        for offline in (False, True):
            with pytest.raises(CacheError, match="STEERKIT_CACHE is '~nobody-here/x'"):
                resolve("hf://someone/pack", offline=offline)
        assert not hub.requests


class TestWeb:
    def test_a_file_of_a_web_server(self, hub: LoopbackHub, data: bytes, newer: bytes) -> None:
        hub.objects["a"] = data
        url = f"{hub.delivery}/a.safetensors"
        found = resolve(url)
        assert (found.read(), found.transferred, found.file) == (data, True, "a.safetensors")
        assert found.pinned == f"{url}#sha256={sha(data)}"
        assert not resolve(url).transferred
        hub.objects["a"] = newer
        assert resolve(url).read() == newer
        assert resolve(url, offline=True).read() == newer
        assert resolve(found.pinned).read() == data

    def test_a_cut_is_resumed(self, hub: LoopbackHub, data: bytes) -> None:
        hub.objects["a"] = data
        hub.faults.cuts = 2
        assert resolve(f"{hub.delivery}/a.safetensors").read() == data
        assert len([request for request in hub.requests if "Range" in request.headers]) == 2

    def test_cuts_without_end_are_an_error(
        self, hub: LoopbackHub, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.objects["a"] = data
        hub.faults.cuts = 1000
        with pytest.raises(DownloadError, match="check the network"):
            resolve(f"{hub.delivery}/a.safetensors")

    def test_not_found_and_not_encrypted(self, hub: LoopbackHub) -> None:
        with pytest.raises(PackNotFoundError, match="404"):
            resolve(f"{hub.delivery}/gone.safetensors")
        with pytest.raises(ReferenceFormatError, match="not encrypted"):
            resolve("http://example.org/a.safetensors")

    @pytest.mark.parametrize("status", [400, 401, 405, 451])
    def test_a_server_that_refuses_to_look_for_a_signature_has_none(
        self, cache: Path, data: bytes, status: int
    ) -> None:
        with _serving(data, [status]) as url:
            assert resolve(url).signature is None

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_server_that_says_later_may_have_one(self, cache: Path, data: bytes, status: int) -> None:
        with _serving(data, [status]) as url, pytest.raises(DownloadError, match=str(status)):
            resolve(url)

    def test_what_was_known_of_the_same_file_counts_while_a_server_says_later(self, cache: Path, data: bytes) -> None:
        status = [404]
        with _serving(data, status) as url:
            resolve(url)
            status[0] = 503
            assert resolve(url).signature is None


@contextmanager
def _serving(data: bytes, status: list[int]) -> Iterator[str]:
    """A web server of one pack that answers a status, which may be changed, where anything else is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path == "/a.safetensors"
            self.send_response(200 if there else status[0])
            self.send_header("Content-Length", str(len(data) if there else 0))
            self.end_headers()
            if there and self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a.safetensors"
    finally:
        server.shutdown()
        server.server_close()


class TestProcesses:
    def test_ten_processes_transfer_a_pack_once(self, hub: LoopbackHub, tmp_path: Path) -> None:
        body = pack(tmp_path, width=4096)
        hub.publish("someone/pack", {"a.safetensors": body})
        hub.faults.pause = 0.5
        processes = [loading("hf://someone/pack", HF_ENDPOINT=hub.url) for _ in range(10)]
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0] * 10, outputs
        lines = [out.splitlines()[-1].split() for out, _ in outputs]
        assert {line[1] for line in lines} == {sha(body)}
        assert sum(line[2] == "True" for line in lines) == 1
        assert len(hub.asked("GET", sha(body))) == 1

    def test_ten_processes_and_a_server_that_names_no_version(self, hub: LoopbackHub, data: bytes) -> None:
        hub.objects["a"] = data
        hub.faults.versions, hub.faults.pause = False, 0.2
        processes = [loading(f"{hub.delivery}/a.safetensors") for _ in range(10)]
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0] * 10, outputs
        assert {out.splitlines()[-1].split()[1] for out, _ in outputs} == {sha(data)}

    def test_four_processes_and_a_damaged_body(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        hub.faults.damage, hub.faults.pause = True, 0.2
        processes = [loading("hf://someone/pack", HF_ENDPOINT=hub.url) for _ in range(4)]
        errors = [process.communicate(timeout=120)[1].splitlines()[-1] for process in processes]
        assert {error.partition(":")[0] for error in errors} == {"steerkit_vectors_hub.errors.DigestMismatchError"}

    @pytest.mark.parametrize("place", ["hub", "web"])
    def test_a_full_disk_is_told_from_a_bad_network(self, hub: LoopbackHub, tmp_path: Path, place: str) -> None:
        body = pack(tmp_path, width=4096)
        hub.publish("someone/pack", {"a.safetensors": body})
        ref = "hf://someone/pack" if place == "hub" else f"{hub.delivery}/{sha(body)}.safetensors"
        code = (
            "import resource, sys\nfrom steerkit_vectors_hub.resolve import resolve\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(body) // 2},) * 2)\nresolve(sys.argv[1])"
        )
        process = subprocess.Popen([sys.executable, "-c", code, ref], stderr=subprocess.PIPE, text=True)
        error = process.communicate(timeout=120)[1].splitlines()[-1]
        assert error.startswith("steerkit_vectors_hub.errors.CacheError: what arrives can't be written")
        assert "STEERKIT_CACHE" in error
        assert resolve(ref).read() == body

    def test_threads_share_a_transfer(self, hub: LoopbackHub, data: bytes) -> None:
        hub.publish("someone/pack", {"a.safetensors": data})
        hub.faults.pause = 0.2
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(resolve, ["hf://someone/pack"] * 4))
        assert {each.sha256 for each in found} == {sha(data)}
        assert sum(each.transferred for each in found) == 1

    @pytest.mark.parametrize("place", ["hub", "web"])
    def test_kills_at_any_moment_leave_a_cache_that_works(
        self, hub: LoopbackHub, cache: Path, tmp_path: Path, place: str
    ) -> None:
        body = pack(tmp_path, width=4096)
        hub.publish("someone/pack", {"a.safetensors": body})
        ref = "hf://someone/pack" if place == "hub" else f"{hub.delivery}/{sha(body)}.safetensors"
        hub.faults.pause = 0.1
        chance = random.Random(0)
        for _ in range(6):
            process = loading(ref, HF_ENDPOINT=hub.url)
            assert process.stdout is not None
            process.stdout.readline()  # its imports are done
            time.sleep(chance.uniform(0, 0.6))
            process.kill()
            process.communicate()
            for path in (cache / "blobs").glob("*"):
                assert path.read_bytes() == body
        assert resolve(ref).read() == body
        assert resolve(ref, offline=True).read() == body

    @pytest.mark.parametrize("place", ["hub", "web"])
    def test_a_kill_in_the_middle_leaves_nothing_half(
        self, hub: LoopbackHub, cache: Path, tmp_path: Path, place: str
    ) -> None:
        body = pack(tmp_path, width=4096)
        hub.publish("someone/pack", {"a.safetensors": body})
        ref = "hf://someone/pack" if place == "hub" else f"{hub.delivery}/{sha(body)}.safetensors"
        hub.faults.pause = 60
        process = loading(ref, HF_ENDPOINT=hub.url)
        _until(lambda: bool(hub.asked("GET", f"/{sha(body)}")), process)
        if place == "web":
            _until(lambda: any(path.stat().st_size for path in (cache / "work").rglob("part")), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not list((cache / "blobs").glob("*"))
        with pytest.raises(OfflineError):
            resolve(ref, offline=True)
        hub.faults.pause = 0
        hub.requests.clear()
        assert resolve(ref).read() == body
        resumed = [request for request in hub.requests if "Range" in request.headers]
        assert bool(resumed) is (place == "web")
        assert not any(path.is_file() for path in (cache / "work").rglob("*"))


def _until(condition: Callable[[], bool], process: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, process
        time.sleep(0.05)
