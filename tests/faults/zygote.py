"""A process that has imported everything, and forks a child for each job, which may be killed.

A child costs no imports, so that hundreds can be killed, and each from its first instant. Nothing
that starts threads may run in the process itself: they would not be in its children.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass
class Outcome:
    """What became of a job: whether it was killed, how long it ran, what it returned."""

    is_killed: bool
    seconds: float
    result: object = None


class Zygote:
    """Runs the functions of a module of jobs, each in a process of its own."""

    def __init__(self, module, *, prefix=(), **setup):
        """Import a module and call its `setup`; behind a command that runs it elsewhere."""
        import llama_index_clip_ext

        package = Path(llama_index_clip_ext.__file__).parents[1]
        path = os.pathsep.join(map(str, [package, TESTS, TESTS / "faults"]))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, __file__, module, json.dumps(setup)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job, *, kill_after=None, **arguments):
        """Run a job; SIGKILL its process after so many seconds, unless it has ended."""
        print(json.dumps([job, arguments, kill_after]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the zygote itself has ended; its standard error says why")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"{job} failed: {answer['error']}")
        return Outcome(**answer)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve(module, setup):
    """Do the jobs that come by stdin, a line each, and answer by stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr  # Whatever else prints does not get in between.
    jobs = importlib.import_module(module)
    jobs.setup(**setup)
    for line in sys.stdin:
        job, arguments, kill_after = json.loads(line)
        print(json.dumps(fork(getattr(jobs, job), arguments, kill_after)), file=answers, flush=True)


def fork(job, arguments, kill_after):
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            answer = {"result": job(**arguments)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with open(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    is_killed = wait(pid, started + kill_after if kill_after is not None else float("inf"))
    seconds = time.monotonic() - started
    with open(reading) as pipe:
        said = pipe.read()
    if said:  # A child that was killed after its job has done it.
        return {"is_killed": False, "seconds": seconds, **json.loads(said)}
    if not is_killed:
        return {"error": "it ended without a word"}
    return {"is_killed": True, "seconds": seconds}


def wait(pid, deadline):
    """Wait for a child, and kill it at the deadline; return whether it ended by a signal."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.WIFSIGNALED(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        time.sleep(0.001)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
