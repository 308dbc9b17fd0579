"""A stand-in for the Hugging Face hub on loopback: local folders, served as the hub serves repositories.

It answers the requests of `hf_hub_download` and `snapshot_download` with the hub's headers and error codes. It has no
large-file storage behind redirects and no paginated listings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """A request that arrived.

    `repo_id` is None if the request names no repository: huggingface_hub 2 also fetches a list of programs, to name the
    one that it runs in. `revision` and `file` are None unless the request is for a file.
    """

    method: str
    path: str
    authorization: str | None
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None


@dataclass
class Repository:
    """Commits, and names for some. A token makes the repository private; `gated` refuses its files to everyone."""

    commits: dict[str, Path] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


class HubStandIn:
    """The stand-in, which answers inside its `with` block.

    Attributes:
        url: value for HF_ENDPOINT.
        requests: the requests in order of arrival.
        broken_files: files in whose middle the connection breaks, at every attempt.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.broken_files: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(
        self, repo_id: str, folder: Path, *, revision: str = "main", token: str | None = None, gated: bool = False
    ) -> str:
        """Serve `folder` as a branch or tag of a repository, or move it there, and return the commit."""
        repository = self.repositories.setdefault(repo_id, Repository())
        commit = hashlib.sha1(f"{repo_id} {revision} {folder}".encode()).hexdigest()
        repository.commits[commit] = folder
        repository.revisions[revision] = commit
        repository.token, repository.gated = token, gated
        return commit

    def downloaded(self) -> list[str]:
        """Return the files that were downloaded; requests for their size and hash alone do not count."""
        return [request.file for request in self.requests if request.method == "GET" and request.file]

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """Return the environment of a process that uses this hub and a hub cache below `home`."""
        other = re.compile(r"HF_|HUGGING|TRANSFORMERS_|E5ONNX_|.*_PROXY$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not other.match(name)}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), **variables}


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: HubStandIn) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _HubError(Exception):
    """An error response: status, value of X-Error-Code, text."""

    def __init__(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit is not None:
            self.headers["X-Repo-Commit"] = commit


_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<kind>revision|tree)/(?P<revision>[^/]+)")


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        authorization = self.headers["Authorization"]
        file_match = _FILE.fullmatch(path)
        revision, file = (unquote(file_match["revision"]), unquote(file_match["file"])) if file_match else (None, None)
        match = file_match or _API.fullmatch(path)
        repo_id = match["repo"] if match else None
        self.server.hub.requests.append(Request(self.command, path, authorization, repo_id, revision, file))
        try:
            if match is None:
                raise _HubError(404, "", "Sorry, we can't find the page you are looking for.")
            repository = self._repository(match["repo"], authorization)
            commit = _resolve(repository, unquote(match["revision"]))
            if file is None:
                self._send_json(_describe(match["repo"], commit, repository.commits[commit], match["kind"]))
            else:
                self._send_file(repository, commit, file, authorization)
        except _HubError as error:
            self._send_json({"error": str(error)}, error.status, error.headers)

    do_HEAD = do_GET  # noqa: N815

    def _repository(self, repo_id: str, authorization: str | None) -> Repository:
        """Return a repository; a private one exists only for requests with its token."""
        tokens = {repository.token for repository in self.server.hub.repositories.values()}
        if authorization and authorization.removeprefix("Bearer ") not in tokens:
            raise _HubError(401, "", "Invalid credentials in Authorization header")
        repository = self.server.hub.repositories.get(repo_id)
        if repository is None or (repository.token and authorization != f"Bearer {repository.token}"):
            raise _HubError(404 if authorization else 401, "RepoNotFound", "Repository not found")
        return repository

    def _send_file(self, repository: Repository, commit: str, file: str, authorization: str | None) -> None:
        if repository.gated:
            raise _HubError(403 if authorization else 401, "GatedRepo", "Access to this model is restricted.")
        path = repository.commits[commit] / file
        if not path.is_file():
            raise _HubError(404, "EntryNotFound", "Entry not found", commit)
        content = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(span[1]) if span else 0
        headers = {"ETag": f'"{_sha256(path, path.stat().st_mtime_ns)}"', "X-Repo-Commit": commit}
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = len(content) // 2 if file in self.server.hub.broken_files else len(content)
        self._send(206 if span else 200, headers, content[start:end], length=len(content) - start)

    def _send_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self._send(status, {"Content-Type": "application/json", **(headers or {})}, body, len(body))

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def _resolve(repository: Repository, revision: str) -> str:
    commit = repository.revisions.get(revision, revision)
    if commit not in repository.commits:
        raise _HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _describe(repo_id: str, commit: str, folder: Path, kind: str) -> Any:
    """Return the hub's description of a commit: its details and file names, or its tree of files."""
    files = list(_files(folder))
    if kind == "revision":
        siblings = [{"rfilename": file} for file in files]
        return {"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": commit, "tags": [], "siblings": siblings}
    tree = [{"type": "file", "path": file, "size": (folder / file).stat().st_size} for file in files]
    return [{**entry, "oid": hashlib.sha1(str(entry).encode()).hexdigest()} for entry in tree]


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


@lru_cache
def _sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
