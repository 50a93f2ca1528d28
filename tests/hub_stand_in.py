"""A stand-in for the Hugging Face Hub: its HTTP API, as far as creating, committing, listing and downloading go.

Tests start `HubStandIn` in a thread and point `HF_ENDPOINT` of a subprocess at it, so that `huggingface_hub` and
SAE-Lens run as they are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False


class HubStandIn(ThreadingHTTPServer):
    """`with HubStandIn() as hub:` serves `hub.repositories` at `hub.url`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubStandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            repository = self.server.repositories.get(name)
            if repository is None:
                self._fail(404, "RepoNotFound", "Repository not found")
            elif repository.gated:
                self._fail(403, "GatedRepo", "Access is restricted")
            elif rest[:1] == ["tree"]:
                files = [self._entry(path, data) for path, data in sorted(repository.files.items())]
                self._reply(files)
            else:
                siblings = [{"rfilename": path} for path in sorted(repository.files)]
                self._reply(
                    {"id": name, "sha": COMMIT, "private": repository.private, "tags": [], "siblings": siblings}
                )
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._fail(404, "EntryNotFound", f"no such endpoint {path}")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer token-for-tests":
            self._fail(401, "", "no token")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif parts[4:5] == ["preupload"]:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._reply({"files": files})
        elif parts[4:5] == ["commit"]:
            name = "/".join(parts[2:4])
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    data = base64.b64decode(item["value"]["content"])
                    self.server.repositories[name].files[item["value"]["path"]] = data
            self._reply({"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._fail(404, "", f"no such endpoint {path}")

    def _create(self, request: dict[str, Any]) -> None:
        name = "/".join(part for part in (request.get("organization"), request["name"]) if part)
        if name in self.server.repositories:
            self._fail(409, "", "exists already")
            return
        private = bool(request.get("private")) or request.get("visibility") == "private"
        self.server.repositories[name] = Repository(private)
        self._reply({"url": f"{self.server.url}/{name}"})

    def _file(self, name: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._fail(404, "RepoNotFound", "Repository not found")
        elif repository.gated:
            self._fail(403, "GatedRepo", "Access is restricted")
        elif path not in repository.files:
            self._fail(404, "EntryNotFound", "Entry not found")
        else:
            data = repository.files[path]
            self._reply(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    @staticmethod
    def _entry(path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _reply(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, code: str, message: str) -> None:
        self._reply({"error": message}, {"X-Error-Code": code, "X-Error-Message": message}, status)
