"""A small Hugging Face hub on loopback, which answers as the real one does where models are fetched."""

import hashlib
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeHub:
    """Models by id, each with branches and pull requests; `requests` are what was asked for, in order."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, range)"""
        self.breaks: Counter[str] = Counter()
        """How many times the sending of a file still breaks off half-way, by its name."""
        self.resets: Counter[str] = Counter()
        """How many times the connection is still reset while a file is sent, by its name."""
        self.busy = 0
        """How many requests are still answered with the status 503."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def add(self, name: str, source: Path | dict[str, bytes], revision: str = "main") -> str:
        """Publishes a folder, or files by name, as a revision of a model; returns its commit."""
        if isinstance(source, Path):
            source = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
        self.models.setdefault(name, {})[revision] = dict(source)
        return self.commit(name, revision)

    def commit(self, name: str, revision: str) -> str:
        return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()

    def fetched(self, method: str = "GET") -> list[str]:
        """The names of the files that were sent, or asked for by another method, in order."""
        paths = [path for used, path, _ in self.requests if used == method and "/resolve/" in path]
        return [re.split("/resolve/(?:refs/pr/)?[^/]+/", path)[1] for path in paths]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes another process use this hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a connection a request, so that nothing is answered after `close`

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.respond(body=False)

        def do_GET(self) -> None:
            self.respond(body=True)

        def refuse(self, status: int, code: str = "", commit: str = "") -> None:
            self.send_response(status)
            for header, value in {"X-Error-Code": code, "X-Repo-Commit": commit}.items():
                if value:
                    self.send_header(header, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def respond(self, body: bool) -> None:
            path = urllib.parse.unquote(self.path)
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            if hub.busy > 0:
                hub.busy -= 1
                return self.refuse(503)
            if "/resolve/" not in path:
                return self.refuse(404)
            name, rest = path.lstrip("/").split("/resolve/")
            if name not in hub.models:
                return self.refuse(401, "RepoNotFound")  # as the real one does without a login
            if name in hub.gated:
                return self.refuse(403, "GatedRepo")
            for revision, files in hub.models[name].items():
                for spelling in (revision, hub.commit(name, revision)):
                    if rest.startswith(spelling + "/"):
                        return self.send_file(hub.commit(name, revision), rest[len(spelling) + 1 :], files, body)
            self.refuse(404, "RevisionNotFound")

        def send_file(self, commit: str, name: str, files: dict[str, bytes], body: bool) -> None:
            if name not in files:
                return self.refuse(404, "EntryNotFound", commit)
            content = files[name]
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if not body:
                return
            if hub.breaks[name] > 0 or hub.resets[name] > 0:
                self.wfile.write(content[start : start + (len(content) - start) // 2])
                if hub.breaks[name] > 0:
                    hub.breaks[name] -= 1
                else:
                    hub.resets[name] -= 1
                    time.sleep(0.5)  # a reset throws away what the reader has not read yet
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                return
            self.wfile.write(content[start:])

    return Handler


def json_bytes(content: Any) -> bytes:
    return json.dumps(content).encode()
