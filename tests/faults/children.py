"""Python of a test's own in other processes, so that what hangs there ends with its time."""

import os
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import llama_index_clip_ext

_TESTS = Path(__file__).parents[1]
_PACKAGE = Path(llama_index_clip_ext.__file__).parents[1]


@contextmanager
def started(folder, code, *args, within=120):
    """Start code as a script, which processes that it spawns can import; kill it after a time."""
    script = Path(folder) / "script.py"
    script.write_text(textwrap.dedent(code))
    paths = os.pathsep.join(map(str, (_TESTS, _TESTS / "faults", _PACKAGE)))
    errors = Path(folder) / "errors.txt"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(script), *map(str, args)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        watchdog = threading.Timer(within, process.kill)
        watchdog.start()
        try:
            with process:
                yield process
        finally:
            watchdog.cancel()
    assert process.returncode == 0, (
        f"{process.returncode} (-9 after {within} s): "
        + (errors.read_text(errors="replace")[-5000:])
    )


def run(folder, code, *args, within=120):
    """Run code as a script to its end; return the lines that it printed."""
    with started(folder, code, *args, within=within) as process:
        return process.communicate()[0].splitlines()
