"""Pictures fetched from the web, where that is allowed: from public addresses, within limits."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache
from http import HTTPStatus
from typing import Any

import httpcore

from .errors import ImageLoadError
from .urls import (
    MAX_BYTES,
    AllowUrls,
    Fetched,
    Url,
    check_allowed,
    check_hosts,
    describe_url,
    is_public,
    parse_url,
)

# From the look-up of the name to the last byte, redirects included.
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5

# Headers and framing of one answer, on top of its content; httpcore cuts headers at 100 KiB.
_MAX_OVERHEAD = 2**20
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = [
    ("User-Agent", "llama-index-clip-ext"),
    ("Accept", "image/*, */*;q=0.1"),
    # A few bytes of gzip may be gigabytes of a picture.
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
]


def fetch(url: str, allow_urls: AllowUrls) -> Fetched:
    """Fetch a picture over http or https.

    Every address that a host has must be public, and it is one of these that is connected to;
    so it is at every redirect. What comes is not looked at: who decodes it decides.

    Args:
        url: Where it is. Without a user name or password.
        allow_urls: Whether URLs are fetched, or the only hosts that they may be of, redirects
            included; ``"*.example.com"`` are those below ``example.com``.

    Returns:
        The content, at most 64 MiB of it.

    Raises:
        ImageLoadError: If the URL is not allowed, or the picture does not come, whole and in time.
        TypeError: If ``allow_urls`` is neither.
        ValueError: If one of the hosts is none.
    """
    hosts = check_hosts(allow_urls)
    deadline = _Deadline(MAX_SECONDS)
    where = ""
    try:
        first = target = parse_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(target, hosts, deadline)
            if not isinstance(answer, Url):
                return Fetched(answer, str(first))
            target = answer
            where = f"redirected to {describe_url(str(target))}: "
        raise ImageLoadError(f"more than {MAX_REDIRECTS} redirects; pass the URL they lead to")
    except ImageLoadError as err:
        raise ImageLoadError(where + err.reason, source=describe_url(url)) from err.__cause__


def resolve(host: str, port: int) -> list[str]:
    """Look up the addresses of a host. Here and in `connect`, nowhere else, the network is met."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def connect(address: str, port: int, seconds: float) -> httpcore.NetworkStream:
    """Connect to an IP address."""
    return httpcore.SyncBackend().connect_tcp(address, port, timeout=seconds)


class _Deadline:
    """When all must be over, however many waits it was made of."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; raise if there are none."""
        if (left := self._end - time.monotonic()) <= 0:
            raise self.error()
        return left

    def error(self) -> ImageLoadError:
        return ImageLoadError(
            f"it takes longer than {self._seconds:g} seconds; download it and pass its path"
        )


class _Stream(httpcore.NetworkStream):
    """A connection that ends at the deadline, and at more bytes than any picture takes."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self._left = MAX_BYTES + _MAX_OVERHEAD

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        content = self._stream.read(max_bytes, self._deadline.left())
        self._left -= len(content)
        if self._left < 0:
            raise _too_large()
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            seconds = self._deadline.left()
            stream = self._stream.start_tls(ssl_context, server_hostname, seconds)
        except BaseException:
            self.close()
            raise
        return _Stream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Connects to addresses that were checked, whatever the host's name leads to by now."""

    def __init__(self, addresses: Sequence[str], deadline: _Deadline) -> None:
        self._addresses = addresses
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for number, address in enumerate(self._addresses):
            # One that does not answer leaves time for the next.
            seconds = self._deadline.left() / (len(self._addresses) - number)
            try:
                return _Stream(connect(address, port, seconds), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as err:
                error = err
        raise error


def _get(url: Url, hosts: bool | list[str], deadline: _Deadline) -> bytearray | Url:
    """Return the content that a URL has, or the URL that it leads to."""
    check_allowed(url.host, hosts)
    backend = _Backend(_addresses(url, deadline), deadline)
    server = (url.scheme.encode(), url.host.encode(), url.port)
    try:
        with (
            httpcore.HTTPConnection(
                httpcore.Origin(*server),
                ssl_context=_tls() if url.scheme == "https" else None,
                network_backend=backend,
            ) as connection,
            connection.stream(
                "GET",
                httpcore.URL(scheme=server[0], host=server[1], port=url.port, target=url.target),
                headers=[("Host", url.authority), *_HEADERS],
            ) as response,
        ):
            if response.status in _REDIRECTS:
                return _redirect(url, response)
            return _content(response)
    except httpcore.TimeoutException as err:
        raise deadline.error() from err
    except (httpcore.NetworkError, httpcore.ProtocolError) as err:
        reason = str(err) or type(err).__name__
        raise ImageLoadError(f"the connection failed ({reason})") from err


def _addresses(url: Url, deadline: _Deadline) -> list[str]:
    """Return a host's addresses, each of which is public."""
    try:
        found = [str(ipaddress.ip_address(url.host))]
    except ValueError:
        found = _look_up(url, deadline)
    if not found or not all(map(is_public, found)):
        # Which one is not said: the answer may be read by who must not know the network.
        raise ImageLoadError(
            f"{url.host} has no public address, or others beside it (loopback, private, "
            "link-local or the like), which are never fetched from; pass the file's path or bytes"
        )
    return found


def _look_up(url: Url, deadline: _Deadline) -> list[str]:
    """Look a name up before the deadline, of which `socket.getaddrinfo` knows nothing."""
    answer: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(resolve(url.host, url.port))
        except BaseException as err:
            answer.set_exception(err)

    threading.Thread(target=look_up, name="clip-resolver", daemon=True).start()
    try:
        return answer.result(timeout=deadline.left())
    except FutureTimeoutError as err:
        raise deadline.error() from err
    except (OSError, UnicodeError) as err:
        detail = getattr(err, "strerror", None) or str(err)
        raise ImageLoadError(f"the host {url.host} is not found ({detail})") from err


def _redirect(url: Url, response: httpcore.Response) -> Url:
    locations = _header(response, b"location")
    if len(locations) != 1 or not locations[0]:
        raise ImageLoadError(f"a redirect ({response.status}) that does not say where to")
    target = parse_url(locations[0], base=url)
    if (url.scheme, target.scheme) == ("https", "http"):
        raise ImageLoadError("a redirect from https to http, which anyone on the way could forge")
    return target


def _content(response: httpcore.Response) -> bytearray:
    if response.status != HTTPStatus.OK:
        raise ImageLoadError(_refusal(response.status))
    encodings = _header(response, b"content-encoding")
    if any(one.lower() not in ("", "identity") for one in encodings):
        raise ImageLoadError(
            f"it comes compressed ({', '.join(encodings)[:40]!r}), though asked not to be, which "
            "may be a bomb; download it and pass its path"
        )
    # Those that are no numbers, or not the same, were refused by h11.
    if any(int(one) > MAX_BYTES for one in _header(response, b"content-length")):
        raise _too_large()
    content = bytearray()
    for chunk in response.iter_stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise _too_large()
    return content


def _header(response: httpcore.Response, name: bytes) -> list[str]:
    found = [value for key, value in response.headers if key.lower() == name]
    return [value.decode("utf-8", "replace").strip() for value in found]


def _refusal(status: int) -> str:
    known = HTTPStatus(status).phrase if status in set(HTTPStatus) else "an unknown status"
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
        return f"the server answers {status} ({known}); try again later"
    return f"the server answers {status} ({known}), not 200; download it and pass its path or bytes"


def _too_large() -> ImageLoadError:
    return ImageLoadError(f"more than {MAX_BYTES} bytes, the most that is fetched of a picture")


@cache
def _tls() -> ssl.SSLContext:
    # Of the system, of certifi, and of the file that SSL_CERT_FILE names.
    return httpcore.default_ssl_context()
