"""A hub on the loopback interface that speaks the protocol of the Hugging Face hub, as its own client uses it.

Repositories with commits and branches; files that are plain or large (LFS: their digest is announced, and the download
leads to another host, as to a content delivery network; by the protocol xet, if a repository offers it); private and
gated repositories; creating, uploading and searching. Faults can be switched on: a cut connection, a damaged body, a
slow one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"

CHUNK = 2**16
"""Bytes of a file in one chunk of xet."""


@dataclass
class Repository:
    """The commits of one repository, and who may read it.

    Attributes:
        xet: Whether large files are offered by the protocol xet, which clients prefer that know it.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    large: bool = True
    xet: bool = False
    private: bool = False
    gated: bool = False
    tags: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", removed: Sequence[str] = ()) -> str:
        """Add a commit with these files, and without those that are removed, on top of a branch."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        whole = {**{name: data for name, data in before.items() if name not in removed}, **files}
        content = b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in sorted(whole.items()))
        sha = hashlib.sha1(content + str(len(self.commits)).encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = whole
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit that a branch or a commit's own name means."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def is_large(self, name: str) -> bool:
        """Whether a file is stored by its digest."""
        return self.large and name.endswith(".safetensors")


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]
    host: str


@dataclass
class Faults:
    """What goes wrong with the bodies that the delivery network sends.

    Attributes:
        cuts: How many more bodies end halfway.
        damage: Whether one bit of every body is flipped.
        pause: Seconds to wait in the middle of every body.
        excess: Bytes that follow every body of a large file, or are announced late, where it is offered by xet.
        versions: Whether the delivery network says which version a file is; many web servers do not.
        page: What the delivery network answers for a path that it does not know, instead of 404.
        status: Answer every request for metadata with this instead.
    """

    cuts: int = 0
    damage: bool = False
    pause: float = 0.0
    excess: bytes = b""
    versions: bool = True
    page: bytes = b""
    status: int | None = None


class LoopbackHub:
    """Two servers: the hub, and the network that delivers its large files."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        self._servers = [self._server(_HubHandler), self._server(_DeliveryHandler)]
        # by two names: older clients take two ports of one name for one host
        hosts = ("127.0.0.1", "localhost")
        self.url, self.delivery = (
            f"http://{host}:{server.server_port}" for host, server in zip(hosts, self._servers, strict=True)
        )

    def publish(
        self, repo_id: str, files: dict[str, bytes], branch: str = "main", removed: Sequence[str] = (), **options: Any
    ) -> str:
        """Make a repository if need be and commit files; returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository(**options))
        for data in files.values():
            self.objects[hashlib.sha256(data).hexdigest()] = data
        return repository.commit(files, branch, removed)

    def asked(self, method: str, part: str = "") -> list[Request]:
        """The requests of a method whose path holds a text."""
        return [request for request in self.requests if request.method == method and part in request.path]

    def stop(self) -> None:
        """Close both servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _server(self, handler: type[_Handler]) -> ThreadingHTTPServer:
        bound = type(handler.__name__, (handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    """A hub while the block lasts."""
    hub = LoopbackHub()
    try:
        yield hub
    finally:
        hub.stop()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def handle_one_request(self) -> None:
        """A client that was killed is no error of the server."""
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def note(self) -> tuple[str, dict[str, list[str]]]:
        """Write down the request; its path and query."""
        host, port = self.server.server_address[:2]
        self.hub.requests.append(
            Request(
                self.command, unquote(self.path), {k.title(): v for k, v in self.headers.items()}, f"{host!s}:{port}"
            )
        )
        parts = urlsplit(self.path)
        return parts.path, parse_qs(parts.query)

    def body(self) -> bytes:
        """All of what the client sent."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, document: Any = None, headers: dict[str, str] | None = None) -> None:
        """A JSON document, or nothing."""
        data = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        """An error as the hub words it."""
        self.answer(status, {"error": message or code}, {"X-Error-Code": code, "X-Error-Message": message or code})

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        """A file or the range of it that was asked for, with the faults that are switched on."""
        faults, start = self.hub.faults, 0
        wanted = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if wanted.startswith("bytes=") and condition in (None, headers.get("ETag")):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                self.answer(416, None, {"Content-Range": f"bytes */{len(data)}"})
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in {**headers, "Content-Length": str(len(data) - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if faults.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        middle = start + (len(data) - start) // 2
        self.wfile.write(data[start:middle])
        self.wfile.flush()
        if faults.pause:
            time.sleep(faults.pause)
        if faults.cuts:
            faults.cuts -= 1
            self.close_connection = True
            return
        self.wfile.write(data[middle:])


class _DeliveryHandler(_Handler):
    """Large files by digest; plain files for tests of other web servers."""

    def do_GET(self) -> None:
        path, _ = self.note()
        name = path.strip("/")
        if path.startswith("/v1/reconstructions/"):
            self._reconstruction(path.rpartition("/")[2])
            return
        if name.startswith("xorb/"):
            self.send_file(_xorb(self.hub.objects[name.removeprefix("xorb/")]), {})
            return
        data = self.hub.objects.get(name if name.endswith(".sig") else name.partition(".")[0])
        faults = self.hub.faults
        if data is None and faults.page:
            self.send_file(faults.page, {"Content-Type": "text/html"})
        elif data is None:
            self.answer(404)
        else:
            version = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'} if faults.versions else {}
            self.send_file(data + faults.excess, version)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        path, _ = self.note()
        self.hub.objects[path.strip("/")] = self.body()
        self.answer(200)

    def _reconstruction(self, digest: str) -> None:
        """How xet puts a file together: here, from all chunks of one object. Its own digests are not imitated."""
        data = self.hub.objects[digest]
        chunks, size = {"start": 0, "end": -(-len(data) // CHUNK)}, len(_xorb(data))
        url = {"url": f"{self.hub.delivery}/xorb/{digest}", "url_range": {"start": 0, "end": size - 1}}
        self.answer(
            200,
            {
                "offset_into_first_range": 0,
                "terms": [{"hash": digest, "unpacked_length": len(data), "range": chunks}],
                "fetch_info": {digest: [{"range": chunks, **url}]},
            },
        )


class _HubHandler(_Handler):
    """The API and the files of repositories."""

    def do_GET(self) -> None:
        path, query = self.note()
        if self.hub.faults.status is not None:
            self.refuse(self.hub.faults.status, "Fault")
        elif path == "/api/models":
            self.answer(200, self._found(query))
        elif path.startswith("/api/models/") and "/tree/" in path:
            repo_id, _, rest = path.removeprefix("/api/models/").partition("/tree/")
            revision, _, folder = rest.partition("/")
            self._tree(repo_id, unquote(revision), unquote(folder))
        elif "/xet-read-token/" in path:
            until = str(int(time.time()) + 3600)
            names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
            self.answer(200, None, dict(zip(names, (self.hub.delivery, "xet", until), strict=True)))
        elif path.startswith("/api/models/"):
            repo_id, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._info(repo_id, unquote(revision) or "main")
        else:
            repo_id, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(repo_id, unquote(revision), unquote(name))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, query = self.note()
        body = self.body()
        if path == "/api/validate-yaml":
            self._check_card(json.loads(body)["content"])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._offer_upload(json.loads(body))
        else:
            repo_id, _, action = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
            branch = unquote(path.rpartition("/")[2])
            if action == "branch":
                repository = self.hub.repositories[repo_id]
                repository.branches.setdefault(branch, repository.branches["main"])
                self.answer(200)
            elif action == "preupload":
                self._upload_modes(self.hub.repositories[repo_id], json.loads(body))
            else:
                self._commit(repo_id, branch, [json.loads(line) for line in body.splitlines()], "create_pr" in query)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _readable(self, repo_id: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(repo_id)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
        elif (commit := repository.at(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, commit
        return None

    def _info(self, repo_id: str, revision: str) -> None:
        if (found := self._readable(repo_id, revision)) is None:
            return
        repository, commit = found
        siblings = []
        for name, data in repository.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _git_digest(data)}
            if repository.is_large(name):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        self.answer(
            200,
            {
                "_id": repo_id,
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit,
                "siblings": siblings,
                "private": repository.private,
            },
        )

    def _tree(self, repo_id: str, revision: str, folder: str) -> None:
        """The files below a folder."""
        if (found := self._readable(repo_id, revision)) is None:
            return
        repository, commit = found
        files = [
            {"type": "file", "path": name, "size": len(data), "oid": _git_digest(data)}
            for name, data in repository.commits[commit].items()
            if not folder or name.startswith(f"{folder}/")
        ]
        if files:
            self.answer(200, files)
        else:
            self.answer(404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        if (found := self._readable(repo_id, revision)) is None:
            return
        repository, commit = found
        data = repository.commits[commit].get(name)
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        elif data is None:
            self.answer(404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif repository.is_large(name):
            digest = hashlib.sha256(data).hexdigest()
            headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            if repository.xet:
                headers["X-Linked-Size"] = str(len(data) + len(self.hub.faults.excess))
                headers["X-Xet-Hash"] = digest
                headers["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/models/{repo_id}/xet-read-token/{commit}"
            self.answer(302, None, {**headers, "Location": f"{self.hub.delivery}/{digest}"})
        else:
            self.send_file(data, {"X-Repo-Commit": commit, "ETag": f'"{_git_digest(data)}"'})

    def _found(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        text, wanted = query.get("search", [""])[0].lower(), set(query.get("filter", ()))
        return [
            {"_id": repo_id, "id": repo_id, "modelId": repo_id, "tags": each.tags, "private": each.private}
            for repo_id, each in sorted(self.hub.repositories.items())
            if text in repo_id.lower() and wanted <= set(each.tags) and not each.private
        ]

    # -- writing -----------------------------------------------------------------------------------------------------

    def _check_card(self, content: str) -> None:
        """What the hub insists on: front matter that names a licence."""
        if content.startswith("---\n") and "\nlicense: " in content.split("\n---")[0]:
            self.answer(200, {"errors": [], "warnings": []})
        else:
            self.answer(400, {"errors": [{"message": '"license" is missing'}], "warnings": []})

    def _create(self, wanted: dict[str, Any]) -> None:
        repo_id = f"{wanted['organization'] or 'someone'}/{wanted['name']}"
        if repo_id in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"})
            return
        self.hub.repositories[repo_id] = Repository(private=wanted.get("visibility") == "private")
        self.hub.repositories[repo_id].commit({})
        self.answer(200, {"url": f"{self.hub.url}/{repo_id}"})

    def _upload_modes(self, repository: Repository, wanted: dict[str, Any]) -> None:
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if repository.is_large(each["path"]) else "regular",
                "shouldIgnore": False,
            }
            for each in wanted["files"]
        ]
        self.answer(200, {"files": files})

    def _offer_upload(self, wanted: dict[str, Any]) -> None:
        offers = [
            {**each, "actions": {"upload": {"href": f"{self.hub.delivery}/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": offers})

    def _commit(self, repo_id: str, branch: str, lines: list[dict[str, Any]], proposed: bool) -> None:
        files: dict[str, bytes] = {}
        removed: list[str] = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                removed.append(value["path"])
        answer: dict[str, Any] = {"hookOutput": ""}
        if proposed:
            branches = self.hub.repositories[repo_id].branches
            number = 1 + sum(name.startswith("refs/pr/") for name in branches)
            branches[f"refs/pr/{number}"], branch = branches[branch], f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        commit = self.hub.publish(repo_id, files, branch, removed=removed)
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self.answer(200, {**answer, "commitUrl": url, "commitOid": commit})


def _git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _xorb(data: bytes) -> bytes:
    """The form in which xet transfers chunks: each behind a header with its version, its size and how it is packed."""
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    sizes = [len(part).to_bytes(3, "little") for part in parts]
    return b"".join(b"\0" + size + b"\0" + size + part for size, part in zip(sizes, parts, strict=True))
