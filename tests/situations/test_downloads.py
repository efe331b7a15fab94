"""Images at web addresses: downloaded only when asked for, within bounds, from a real server on this machine."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

import steerkit as sk
from steerkit.errors import MissingImageError, OptionError, SampleError
from steerkit.models import download_image, open_image

HERE = ("127.0.0.1",)


class Server:
    """What a server answers, by path, and which paths were asked for."""

    def __init__(self, picture: Image.Image) -> None:
        data = io.BytesIO()
        picture.save(data, "PNG")
        self.picture, self.data = picture, data.getvalue()
        self.asked: list[str] = []
        self.moved: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        if path in self.moved:
            handler.send_response(302)
            handler.send_header("Location", self.moved[path])
            handler.end_headers()
        elif path in ("/drip", "/endless", "/cut"):
            handler.send_response(200)
            if path != "/endless":
                handler.send_header("Content-Length", str(len(self.data)))
            handler.end_headers()
            try:
                handler.wfile.write(self.data[:50])
                for _ in range(0 if path == "/cut" else 2000):
                    handler.wfile.write(b"a" * (1 if path == "/drip" else 2**20))
                    time.sleep(0.05 if path == "/drip" else 0)
            except OSError:
                pass
        elif path.startswith("/cat"):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(self.data)))
            handler.end_headers()
            handler.wfile.write(self.data)
        elif path == "/page":
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b"<html>please log in</html>")
        else:
            handler.send_error(404)


@pytest.fixture
def server(picture: Callable[..., Image.Image]) -> Iterator[Server]:
    made = Server(picture(1))
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


def test_nothing_is_downloaded_unasked(server: Server, llava: sk.VLM) -> None:
    url = f"{server.url}/cat.png"
    part = {"type": "image_url", "image_url": {"url": url}}
    for call in (
        lambda: open_image(url),
        lambda: sk.read_samples([{"text": "Hi", "image": url}]),
        lambda: sk.read_samples([{"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Hi"}]}]}]),
        lambda: llava.generate([sk.Sample("Hi", (url,))], max_new_tokens=1),
        lambda: llava.check_prompt(sk.Sample("Hi", (url,))) or llava.inputs([sk.Sample("Hi", (url,))]),
    ):
        with pytest.raises((MissingImageError, SampleError), match="nothing is downloaded unasked"):
            call()
    assert not server.asked


def test_an_image_is_downloaded_where_that_is_asked_for(server: Server) -> None:
    fetch = partial(download_image, private_hosts=HERE)
    data = fetch(f"{server.url}/cat.png?size=2 3&name=ü")
    assert data == server.data
    assert server.asked == ["/cat.png?size=2%203&name=%C3%BC"]
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(server.picture))
    part = {"type": "image_url", "image_url": {"url": f"{server.url}/cat.png"}}
    rows = [{"text": "Hi", "image": f"{server.url}/cat.png"}, {"messages": [{"role": "user", "content": ["Hi", part]}]}]
    first, second = sk.read_samples(rows, download=fetch)
    assert first.digest() == sk.Sample("Hi", (server.picture,)).digest()
    assert second.digest() == sk.Sample([("user", ["Hi", {"type": "image"}])], (server.picture,)).digest()  # type: ignore[arg-type]


def test_redirects_are_followed_and_counted(server: Server) -> None:
    server.moved = {"/a": "/b", "/b": f"{server.url}/cat.png", "/round": "/round"}
    assert download_image(f"{server.url}/a", private_hosts=HERE) == server.data
    with pytest.raises(MissingImageError, match="redirected more than 5 times"):
        download_image(f"{server.url}/round", private_hosts=HERE)
    assert server.asked.count("/round") == 6


@pytest.mark.parametrize(
    ("leads", "problem"),
    [
        ("file:///etc/passwd", "leads to 'file:///etc/passwd'"),
        ("data:image/png;base64,AAAA", "leads to of a data: URI"),
        ("ftp://127.0.0.1/cat.png", "leads to 'ftp"),
        ("http://name:word@127.0.0.1/cat.png", "without a password"),
        ("http://localhost:{port}/cat.png", "in a private network"),
        ("http://127.0.0.2:{port}/cat.png", "can't be downloaded"),
        ("http://[::1:{port}/cat.png", "leads to"),
    ],
)
def test_a_redirect_leads_to_nothing_but_allowed_servers(server: Server, leads: str, problem: str) -> None:
    server.moved = {"/a": leads.format(port=server.port)}
    with pytest.raises(MissingImageError) as caught:
        download_image(f"{server.url}/a", private_hosts=HERE)
    assert problem in str(caught.value)
    assert server.asked == ["/a"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"])
def test_this_machine_and_private_networks_are_not_asked(server: Server, host: str) -> None:
    with pytest.raises(MissingImageError, match=r"private network|can't be downloaded"):
        download_image(f"http://{host}:{server.port}/cat.png")
    with pytest.raises(SampleError, match=r"row 1: .*(private network|can't be downloaded)"):
        sk.read_samples([{"text": "Hi", "image": f"http://{host}:{server.port}/cat.png"}], download=True)
    assert not server.asked


@pytest.mark.parametrize("path", ["/drip", "/endless"])
def test_time_and_size_are_bounded(server: Server, path: str) -> None:
    begun = time.monotonic()
    problem = "no whole answer in 0.5 seconds" if path == "/drip" else "has more than 100000 bytes"
    with pytest.raises(MissingImageError, match=problem):
        download_image(server.url + path, private_hosts=HERE, timeout=0.5, limit=100_000)
    assert time.monotonic() - begun < 5


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.png"
        begun = time.monotonic()
        with pytest.raises(MissingImageError, match=r"no whole answer|timed out"):
            download_image(url, private_hosts=HERE, timeout=0.3)
        assert time.monotonic() - begun < 5
    with pytest.raises(MissingImageError, match="refused"):
        download_image(url, private_hosts=HERE)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/gone", "status 404"), ("/cut", "can't be downloaded"), ("/cat" + "a" * 5000, "has more than 100 bytes")],
)
def test_what_is_not_a_whole_file_within_the_bound_is_refused(server: Server, path: str, problem: str) -> None:
    limit = 100 if "a" * 5000 in path else 10_000
    with pytest.raises(MissingImageError, match=problem) as caught:
        download_image(server.url + path, private_hosts=HERE, limit=limit)
    assert len(str(caught.value)) < 700


def test_a_page_instead_of_an_image_is_refused_with_its_row(server: Server) -> None:
    fetch = partial(download_image, private_hosts=HERE)
    with pytest.raises(SampleError, match="row 2: the image of 26 bytes can't be read"):
        sk.read_samples(["Hi", {"text": "Hi", "image": f"{server.url}/page"}], download=fetch)


@pytest.mark.parametrize(
    "url",
    [
        "cat.png",
        "ftp://example.org/cat.png",
        "file:///etc/passwd",
        "http://",
        "http://a:b@example.org/",
        "http://[x/",
        "http://example.org:port/",
        "http://" + "a" * 300 + ".org/",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(MissingImageError) as caught:
        download_image(url)
    assert caught.value.expected


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": "1"}, {"timeout": float("nan")}, {"limit": 0}, {"private_hosts": "localhost"}],
)
def test_impossible_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        download_image("http://127.0.0.1:9/cat.png", **options)
    with pytest.raises(OptionError, match="url is None"):
        download_image(None)  # type: ignore[arg-type]
