"""No connections but to this machine, for tests and for the kernels that they start."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@contextmanager
def only_loopback() -> Iterator[None]:
    """Fail whatever code, in whatever thread, connects to anything but this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    resolve = socket.getaddrinfo

    def check(address):
        host = address[0] if isinstance(address, tuple) else "unix"
        if host != "unix" and not str(host).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to reach {address}")

    def guarded_connect(self, address):
        check(address)
        return connect(self, address)

    def guarded_connect_ex(self, address):
        check(address)
        return connect_ex(self, address)

    def guarded_resolve(host, *args, **kwargs):
        if host:
            check((host.decode() if isinstance(host, bytes) else host,))
        return resolve(host, *args, **kwargs)

    with (
        mock.patch.object(socket.socket, "connect", guarded_connect),
        mock.patch.object(socket.socket, "connect_ex", guarded_connect_ex),
        mock.patch.object(socket, "getaddrinfo", guarded_resolve),
    ):
        yield
