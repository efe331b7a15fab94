"""Images from web servers, where that is asked for: bounded in size and time, and never from a private network unasked.

The addresses stand in data sets that others wrote. So the machine that a connection has really reached is looked at
before anything is sent to it, at every redirect again: a name that is resolved twice may lead to two machines.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote, urljoin, urlsplit

from steerkit._internal.validation import expect, expect_each, expect_whole
from steerkit.errors import MissingImageError, OptionError
from steerkit.models._images import image_name

MAX_DOWNLOAD = 2**26
"""The most bytes of a downloaded image."""

_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download_image(
    url: str, *, limit: int = MAX_DOWNLOAD, timeout: float = 30.0, private_hosts: Collection[str] = ()
) -> bytes:
    """The bytes of an image at an `http://` or `https://` address, which a sample takes as an image.

    Proxies of the environment are not used, and nothing is cached.

    Args:
        url: The address.
        limit: The most bytes that are read.
        timeout: Seconds for each server that is asked, from the connection to the last byte.
        private_hosts: Names of hosts that may lie in a private network or on this machine. All others are refused
            there, those too that a redirect leads to.

    Raises:
        MissingImageError: The address is of another kind or leads to one, or to a private network; the server does not
            answer in time, or with anything but a file of at most `limit` bytes.
        OptionError: An option is of another type.
    """
    expect_whole(limit=limit)
    expect_each(str, "names of hosts", private_hosts=private_hosts)
    expect(str, "an address", url=url)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 3600:
        raise OptionError(f"timeout is {timeout!r:.80}", expected="seconds, more than 0 and at most an hour")
    place = url
    for _ in range(_REDIRECTS + 1):
        found = _ask(url, place, limit, timeout, private_hosts)
        if isinstance(found, bytes):
            return found
        if place.lower().startswith("https:") and not found.lower().startswith("https:"):
            raise _refused(url, f"leads to {image_name(found)}", "https:// all the way")
        place = found
    raise _refused(url, f"is redirected more than {_REDIRECTS} times", f"at most {_REDIRECTS} redirects")


def _ask(url: str, place: str, limit: int, timeout: float, private_hosts: Collection[str]) -> bytes | str:
    """What is at an address, or the address that it leads to."""
    try:
        parts = urlsplit(place)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url, f"leads to {image_name(place)} ({error})", "an address that can be read") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise _refused(
            url,
            f"names {image_name(place)}" if place == url else f"leads to {image_name(place)}",
            "http:// or https:// and a host, without a password",
        )
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
    )
    kind = _Encrypted if parts.scheme == "https" else _Checked
    connection = kind(host, port, timeout=timeout)
    connection.private = host in private_hosts
    passed: Callable[[], bool] = bool
    try:
        connection.connect()
        with _deadline(connection.sock, timeout) as passed:
            connection.request("GET", target, headers={"User-Agent": "steerkit", "Accept-Encoding": "identity"})
            with connection.getresponse() as response:
                return _body(url, place, response, limit)
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        why = f"no whole answer in {timeout} seconds" if passed() else str(error)[:200] or type(error).__name__
        raise _refused(url, f"can't be downloaded ({why})", "a server that answers") from error
    finally:
        connection.close()


def _body(url: str, place: str, response: http.client.HTTPResponse, limit: int) -> bytes | str:
    if response.status in _MOVED and (leads := response.headers.get("Location")):
        try:
            return urljoin(place, leads)
        except ValueError as error:
            raise _refused(url, f"leads to {image_name(leads)} ({error})", "an address that can be read") from error
    if response.status != 200:
        raise _refused(url, f"is answered with status {response.status}", "status 200 and an image")
    data = response.read(limit + 1)
    if len(data) > limit or (response.length or 0) + len(data) > limit:
        raise _refused(url, f"has more than {limit} bytes", f"at most {limit}")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return data


class _Checked(http.client.HTTPConnection):
    """A connection that looks at whom it has reached before anything is sent."""

    private = False

    def connect(self) -> None:
        super().connect()
        found = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])
        if not self.private and not _is_public(found):
            raise OSError(f"{self.host} is at {found}, in a private network, and is not among the private_hosts")


class _Encrypted(_Checked):
    default_port = 443

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    return address.is_global and not address.is_multicast


@contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[Callable[[], bool]]:
    """Cut a connection when the time is over: a socket's own timeout begins again with every byte."""
    passed = threading.Event()

    def cut() -> None:
        passed.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield passed.is_set
    finally:
        timer.cancel()


def _refused(url: str, problem: str, expected: str) -> MissingImageError:
    return MissingImageError(f"the image {image_name(url)} {problem}", expected=expected)
