"""A real Milvus server that tests may kill, pause and start again on its data and its port.

Needs the PyPI package `milvus` 2.3.5 (Linux, x86-64), installed, or unpacked into the folder that
the environment variable CLIP_EXT_MILVUS_SERVER names; and `unshare`, to run it where nobody else
reaches it.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

STARTS_WITHIN = 60
# With a /proc of its own: a query node that cannot read its memory there loads no sealed segment.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--mount-proc"]


def server_package():
    """Return the folder to import the server from, or skip."""
    folder = os.environ.get("CLIP_EXT_MILVUS_SERVER", "")
    if folder:
        if not Path(folder, "milvus", "data").is_dir():
            pytest.skip(f"CLIP_EXT_MILVUS_SERVER is {folder}, where no package milvus is unpacked")
        return folder
    spec = importlib.util.find_spec("milvus")
    if spec is None or spec.origin is None:
        pytest.skip("no Milvus server: `pip install milvus==2.3.5`, or set CLIP_EXT_MILVUS_SERVER")
    return str(Path(spec.origin).parents[1])


class ServerProcess:
    """A server with a folder of its own, on a free port of the loopback.

    Args:
        folder: Where its data and its log are.
        scheme: Of its address.
        settings: Of Milvus, as it reads them from the environment.
        **options: What pymilvus needs to reach it.

    Attributes:
        address: Where it is reached; the same after it was started again.
    """

    def __init__(self, folder, *, scheme="http", settings=None, **options):
        self.folder = Path(folder)
        self._settings = settings or {}
        self._options = options
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.address = f"{scheme}://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        """Start it and wait until it answers; skip the test where it does not."""
        package = server_package()
        try:
            subprocess.run(
                [*NAMESPACE, "--fork", "true"], check=True, capture_output=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError) as err:
            pytest.skip(f"no namespace for a Milvus server: {err}")
        listener = socket.create_server(("127.0.0.1", self.port))
        script = Path(__file__).with_name("milvus_server.py")
        command = [sys.executable, script, str(listener.fileno()), self.folder]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*NAMESPACE, "--fork", "--kill-child", *command],
                # Looks each second, rather than each ten, for sealed segments that it may load.
                env={
                    "QUERYCOORD_UPDATENEXTTARGETINTERVAL": "1",
                    **self._settings,
                    **os.environ,
                    "PYTHONPATH": package,
                },
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
            )
        listener.close()
        self._wait_until_usable()

    def kill(self):
        """End it at once, as a power cut would; connections are refused from then on."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)  # The namespace ends with it, and all in it.
            self.process.wait()
            self.process = None

    def pause(self):
        """Stop it from answering; connections stay, and new ones are accepted."""
        for one in self._servers():
            one.suspend()

    def resume(self):
        """Let it go on."""
        for one in self._servers():
            one.resume()

    def _servers(self):
        below = psutil.Process(self.process.pid).children(recursive=True)
        # Milvus itself; not the script that carries the bytes into its namespace.
        return [one for one in below if "python" not in one.name()]

    def _wait_until_usable(self):
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                client = MilvusClient(self.address, timeout=2, **self._options)
                client.list_collections()
                client.close()
                return
            except MilvusException as err:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log.txt").read_text(errors="replace")
                    self.kill()
                    pytest.skip(f"the Milvus server did not start ({err}): {log[-500:]}")
                time.sleep(0.2)
