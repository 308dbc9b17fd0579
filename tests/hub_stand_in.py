"""A stand-in for the Hugging Face hub on loopback: local folders, served as the hub serves repositories.

It answers the requests of `hf_hub_download`, `snapshot_download`, `create_repo`, `create_branch` and `create_commit`
with the hub's headers and error codes. Downloads are not redirected to a storage, listings have one page, and large
files are uploaded by git-lfs' "basic" transfer, as clients do without Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml  # type: ignore[import-untyped]  # it has no types


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
    """Commits, and names for some. A token makes the repository private; `gated` refuses its files to everyone.

    Uploaded repositories have `uploads`: the messages of their commits, and the files of each that were large.
    """

    commits: dict[str, Path] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    uploads: list[tuple[str, list[str]]] = field(default_factory=list)


class HubStandIn:
    """The stand-in, which answers inside its `with` block.

    Attributes:
        url: value for HF_ENDPOINT.
        requests: the requests in order of arrival.
        broken_files: files in whose middle the connection breaks, at every attempt.
        writer: the token that may create repositories and commit; None refuses everyone.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.broken_files: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self.writer: str | None = None
        self.storage = tempfile.TemporaryDirectory()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.storage.cleanup()

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
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **hub, "E5ONNX_CACHE": str(home / "e5onnx"), **variables}


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
_WRITE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<kind>preupload|commit|branch)/(?P<revision>[^/]+)")
_BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")
_LARGE = 10 * 2**20
"""Bytes; the hub takes files from this size on, and those that are not text, as large ones."""


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
                self._send_json(_describe(match["repo"], commit, repository, match["kind"]))
            else:
                self._send_file(repository, commit, file, authorization)
        except _HubError as error:
            self._send_json({"error": str(error)}, error.status, error.headers)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        authorization = self.headers["Authorization"]
        match = _WRITE.fullmatch(path) or _BATCH.fullmatch(path)
        repo_id = match["repo"] if match else None
        self.server.hub.requests.append(Request(self.command, path, authorization, repo_id))
        try:
            if path == "/api/validate-yaml":
                errors = _errors_of_card(json.loads(body)["content"])
                self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)
                return
            if self.server.hub.writer is None or authorization != f"Bearer {self.server.hub.writer}":
                raise _HubError(401 if authorization is None else 403, "", "You may not write here")
            if path == "/api/repos/create":
                self._create(json.loads(body))
            elif match is None:
                raise _HubError(404, "", "Sorry, we can't find the page you are looking for.")
            elif match.re is _BATCH:
                self._send_json(
                    {"transfer": "basic", "objects": list(map(self._lfs_object, json.loads(body)["objects"]))}
                )
            else:
                self._write(self._repository(match["repo"], authorization), match, body)
        except _HubError as error:
            self._send_json({"error": str(error)}, error.status, error.headers)

    def do_PUT(self) -> None:
        """Keep a large file, if it has the hash that it was announced with."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        match = _OBJECT.fullmatch(self.path)
        assert match
        assert hashlib.sha256(content).hexdigest() == match["oid"]
        self._object(match["oid"]).write_bytes(content)
        self._send(200, {}, b"", 0)

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id, hub = f"{asked['organization']}/{asked['name']}", self.server.hub
        answer = {"url": f"{hub.url}/{repo_id}", "name": repo_id}
        if repo_id in hub.repositories:
            self._send_json({**answer, "error": "You already created this model repo"}, 409)
            return
        folder = self._commit_folder()
        (folder / ".gitattributes").write_text("*.onnx filter=lfs diff=lfs merge=lfs -text\n")
        is_private = asked.get("private") or asked.get("visibility") == "private"  # before and since huggingface_hub 2
        hub.add(repo_id, folder, token=hub.writer if is_private else None)
        self._send_json(answer)

    def _write(self, repository: Repository, match: re.Match[str], body: bytes) -> None:
        """Answer what precedes a commit, make one, or make a branch from main."""
        revision = unquote(match["revision"])
        if match["kind"] == "branch":
            repository.revisions[revision] = repository.revisions["main"]
            self._send_json({})
            return
        commit = _resolve(repository, revision)
        if match["kind"] == "preupload":
            modes = [_upload_mode(file) for file in json.loads(body)["files"]]
            self._send_json({"files": modes})
            return
        folder = self._commit_folder()
        shutil.copytree(repository.commits[commit], folder, dirs_exist_ok=True)
        header, *changes = [json.loads(line) for line in body.splitlines()]
        for change in changes:
            value = change["value"]
            file = folder / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if change["key"] == "file":
                file.write_bytes(base64.b64decode(value["content"]))
            else:
                assert change["key"] == "lfsFile"
                shutil.copyfile(self._object(value["oid"]), file)
        large = [change["value"]["path"] for change in changes if change["key"] == "lfsFile"]
        repository.uploads.append((header["value"]["summary"], large))
        commit = self.server.hub.add(match["repo"], folder, revision=revision, token=repository.token)
        url = f"{self.server.hub.url}/{match['repo']}/commit/{commit}"
        self._send_json({"success": True, "commitOid": commit, "commitUrl": url})

    def _lfs_object(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self._object(asked["oid"]).exists():
            return asked
        return {**asked, "actions": {"upload": {"href": f"{self.server.hub.url}/lfs/{asked['oid']}"}}}

    def _object(self, oid: str) -> Path:
        return Path(self.server.hub.storage.name, oid)

    def _commit_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.server.hub.storage.name))

    def _repository(self, repo_id: str, authorization: str | None) -> Repository:
        """Return a repository; a private one exists only for requests with its token."""
        tokens = {repository.token for repository in self.server.hub.repositories.values()} | {self.server.hub.writer}
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


def _describe(repo_id: str, commit: str, repository: Repository, kind: str) -> Any:
    """Return the hub's description of a commit: its details, card and file names, or its tree of files."""
    folder = repository.commits[commit]
    files = list(_files(folder))
    if kind == "revision":
        siblings = [{"rfilename": file} for file in files]
        card = {"cardData": read_card(folder / "README.md")} if "README.md" in files else {}
        names = dict.fromkeys(("_id", "id", "modelId"), repo_id)
        return {**names, "sha": commit, "tags": [], "siblings": siblings, "private": bool(repository.token), **card}
    tree = [{"type": "file", "path": file, "size": (folder / file).stat().st_size} for file in files]
    return [{**entry, "oid": hashlib.sha1(str(entry).encode()).hexdigest()} for entry in tree]


def read_card(path: Path) -> Any:
    """Return the metadata of a model card."""
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None


def _errors_of_card(text: str) -> list[dict[str, str]]:
    """Return what the hub would say of a model card whose metadata is not YAML."""
    try:
        yaml.safe_load(text.split("---\n")[1])
    except (yaml.YAMLError, IndexError) as error:
        return [{"message": str(error)}]
    return []


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    is_large = file["size"] >= _LARGE or file["path"].endswith(".onnx") or b"\0" in base64.b64decode(file["sample"])
    return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": None}


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


@lru_cache
def _sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
