"""A Hugging Face Hub of the tests' own on loopback: what huggingface_hub's file system asks of one repository."""

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    """The files of `root` as the repository owner/repo, in every revision."""

    def __init__(self, *given: Any, root: Path) -> None:
        self.root = root
        super().__init__(*given)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        _, tree, below = path.partition("/tree/")
        _, resolve, name = path.partition("/resolve/")
        if tree:
            folder = self.root / below.partition("/")[2]
            self._answer([self._entry(p) for p in sorted(folder.iterdir())] if folder.is_dir() else None)
        elif resolve:
            file = self.root / name.partition("/")[2]
            self._file(file.read_bytes() if file.is_file() else None)
        else:
            self._answer({"id": "owner/repo", "sha": COMMIT, "siblings": [], "tags": [], "private": False})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["paths"]
        self._answer([self._entry(self.root / name) for name in asked if (self.root / name).exists()])

    def _entry(self, path: Path) -> dict[str, Any]:
        named = {"path": str(path.relative_to(self.root)), "oid": COMMIT}
        if path.is_dir():
            return {"type": "directory", "size": 0, **named}
        return {"type": "file", "size": path.stat().st_size, **named}

    def _answer(self, found: Any) -> None:
        body = json.dumps(found if found is not None else {"error": "not found"}).encode()
        self._send(404 if found is None else 200, body, {"Content-Type": "application/json"})

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        first, _, last = self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        body = content[int(first) : int(last) + 1 if last else None]
        where = f"bytes {first}-{int(first) + len(body) - 1}/{len(content)}"
        self._send(206 if "range" in self.headers else 200, body, {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Content-Range": where,
        })  # fmt: skip

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The address of a hub whose one repository is the folder `root`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, root=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
