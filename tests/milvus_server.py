"""A Milvus server of the tests' own, in a network namespace that nobody else reaches.

`server_process.py` runs this as ``unshare ... python milvus_server.py FD FOLDER``, with the PyPI
package `milvus` on the path. That server listens on every interface, on fixed ports, without a
password; in here there is only a loopback. The one way in is FD: a socket, inherited from the
tests, that listens on their loopback.
"""

import fcntl
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress


def raise_loopback():
    """Do what ``ip link set lo up`` does."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def pump(source, target):
    """Carry bytes one way until either side ends."""
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main(listener, folder):
    from milvus import MilvusServer, MilvusServerConfig

    raise_loopback()
    # Its one lock file is in /run, wherever its data are.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    config = MilvusServerConfig(data_dir=folder)
    config.set("common.session.ttl", 5)
    server = MilvusServer(config)
    server.start()
    while True:
        outside, _ = listener.accept()
        inside = socket.create_connection(("127.0.0.1", server.listen_port))
        for pair in ((outside, inside), (inside, outside)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
