"""A hub of one repository on this machine: what huggingface_hub asks for to download it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# As on the hub, what is in Git LFS is named by its SHA-256, other files by Git's SHA-1.
LFS = (".safetensors", ".bin", ".onnx")


class Hub:
    """The server's address, and what was asked of it.

    Attributes:
        endpoint: What ``HF_ENDPOINT`` would be.
        asked: Method and path of each request.
        fetched: Files of the repository that were sent.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.asked: list[str] = []
        self.fetched: list[str] = []


@contextmanager
def serve(repository: str, files: dict[str, bytes], tag: str = "v1") -> Iterator[Hub]:
    """Serve files as a model's repository, whose branch and tag are at `COMMIT`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            api, resolve = f"/api/models/{repository}", f"/{repository}/resolve/"
            if path == api or path.startswith(f"{api}/revision/"):
                revision = path.removeprefix(api).removeprefix("/revision/") or "main"
                if revision not in ("main", tag, COMMIT):
                    self.fail("RevisionNotFound")
                    return
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}))
            elif path == f"{api}/tree/{COMMIT}":
                self.answer(json.dumps([entry(name) for name in files]))
            elif path.startswith(resolve):
                name = path.removeprefix(resolve).partition("/")[2]
                if self.command == "GET":
                    hub.fetched.append(name)
                self.answer(files[name], etag(name))
            else:
                self.fail("RepoNotFound")

        do_HEAD = do_GET  # noqa: N815

        def answer(self, content: str | bytes, etag: str = "") -> None:
            content = content.encode() if isinstance(content, str) else content
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            if etag:
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def fail(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    def etag(name: str) -> str:
        if name.endswith(LFS):
            return hashlib.sha256(files[name]).hexdigest()
        header = f"blob {len(files[name])}\0".encode()
        return hashlib.sha1(header + files[name]).hexdigest()

    def entry(name: str) -> dict:
        size = len(files[name])
        row = {"type": "file", "path": name, "size": size, "oid": etag(name)[:40]}
        if name.endswith(LFS):
            row["lfs"] = {"oid": etag(name), "size": size, "pointerSize": 130}
        return row

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


def read_files(directory: Path) -> dict[str, bytes]:
    """Return a folder's files by their path in it."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }
