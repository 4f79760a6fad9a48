"""A Hugging Face hub on this machine, for the library's real client: listing, files, uploads, and its faults.

It speaks the part of the hub's protocol that huggingface_hub 1 uses: model information with file metadata,
`resolve` with ranges and a redirect to another host for large files, `validate-yaml`, creation of
repositories, preupload, Git LFS batches with one or many parts, and commits.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "S3cret" * 6


@dataclass
class Repository:
    """A model repository with one branch."""

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Names in large file storage."""
    private: bool = False
    gated: str | bool = False
    commits: int = 1
    listed: dict[str, str] = field(default_factory=dict)
    """Name in the list → name of the content, for names that no folder could have."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()  # noqa: S324

    def is_large(self, name: str) -> bool:
        return name in self.large or name.endswith((".gguf", ".safetensors")) or "-split-" in name


@dataclass
class Fault:
    """What a request for a path that matches gets, once."""

    path: str
    """A regular expression."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: int | None = None
    """Bytes of the answer after which the connection breaks."""
    flip: int | None = None
    """Offset of a byte of the file that is altered."""
    times: int = 1


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


class Hub(ThreadingHTTPServer):
    """The repositories by name, the uploaded objects, and the requests that were made."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        # Another host name: the library and the client must not send it the token.
        self.storage = f"http://localhost:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.part_bytes: int | None = None
        """Size of the parts of an upload; None: one part."""
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away."""

    def fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def ranges(self, name: str) -> list[str | None]:
        """Return the ranges that were requested of a file's content."""
        digests = {
            hashlib.sha256(repo.files[name]).hexdigest()
            for repo in self.repositories.values()
            if name in repo.files
        }
        return [r.headers.get("Range") for r in self.requests if r.path.removeprefix("/storage/") in digests]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.requests.append(
                Request(self.command, path, {k.title(): v for k, v in self.headers.items()})
            )
        self.active_fault = self.server.fault(path)
        if self.active_fault and self.active_fault.status:
            self._send(self.active_fault.status, self.active_fault.body, self.active_fault.headers)
            return
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, **match.groupdict())
                return
        self._json({"error": "Not Found"}, 404)

    def repository(self, name: str) -> Repository | None:
        """Return a repository that the client may see, or answer as the hub does for the others."""
        repository = self.server.repositories.get(name)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not authorized):
            status = 404 if authorized else 401
            self._json({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def information(self, name: str, revision: str = "main") -> None:
        if (repository := self.repository(name)) is None:
            return
        if revision not in ("main", repository.commit):
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for file, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": repository.listed.get(file, file), "size": len(content)}
            entry["blobId"] = _git_id(content)
            if repository.is_large(file):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134
                }  # fmt: skip
            siblings.append(entry)
        self._json(
            {
                "id": name, "modelId": name, "sha": repository.commit, "private": repository.private,
                "gated": repository.gated, "tags": [], "siblings": siblings,
            }
        )  # fmt: skip

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Access to model is restricted"}, 401, {"X-Error-Code": "GatedRepo"})
            return
        content = repository.files.get(file)
        if content is None or revision not in ("main", repository.commit):
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        common = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if repository.is_large(file):
            digest = hashlib.sha256(content).hexdigest()
            self.server.objects[digest] = content
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            location = {"Location": f"{self.server.storage}/storage/{digest}?X-Amz-Signature=secret"}
            self._send(302, b"", common | linked | location)
        else:
            self._content(content, common | {"ETag": f'"{_git_id(content)}"', "Content-Type": "text/plain"})

    def stored(self, digest: str) -> None:
        self._content(self.server.objects[digest], {"ETag": f'"{digest}"'})

    def validate(self) -> None:
        content = json.loads(self.content)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            header = yaml.safe_load(match[1]) if match else {}
            errors = [] if isinstance(header, dict) else ["the metadata is not a mapping"]
        except yaml.YAMLError as error:
            header, errors = {}, [str(error)]
        if not errors and header.get("license") == "other" and not header.get("license_name"):
            errors = ['"license_name" is required for license "other"']
        warnings = [] if header else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": [{"message": e} for e in errors], "warnings": warnings}, 400 if errors else 200)

    def create(self) -> None:
        wanted = json.loads(self.content)
        name = f"{wanted.get('organization', 'org')}/{wanted['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif name in self.server.repositories:
            self._json({"error": "You already created this model repo"}, 409)
        else:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.server.repositories[name] = Repository(private=private, commits=0)
            self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def preupload(self, name: str, revision: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        files = []
        for file in json.loads(self.content)["files"]:
            mode = "lfs" if repository.is_large(file["path"]) else "regular"
            existing = repository.files.get(file["path"])
            oid = None
            if existing is not None:
                oid = hashlib.sha256(existing).hexdigest() if mode == "lfs" else _git_id(existing)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def batch(self, name: str) -> None:
        objects = []
        for wanted in json.loads(self.content)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                target = f"{self.server.storage}/upload/{wanted['oid']}"
                actions: dict[str, Any] = {"upload": {"href": target}}
                if (part := self.server.part_bytes) is not None:
                    count = -(-wanted["size"] // part)
                    header = {f"{n + 1:05}": f"{target}/{n}" for n in range(count)} | {
                        "chunk_size": str(part)
                    }
                    actions = {
                        "upload": {"href": f"{self.server.url}/complete/{wanted['oid']}", "header": header}
                    }
                entry["actions"] = actions
            objects.append(entry)
        self._json({"transfer": "multipart" if self.server.part_bytes else "basic", "objects": objects})

    def upload(self, digest: str, part: str | None = None) -> None:
        key = digest if part is None else f"{digest}/{part}"
        if part is None and hashlib.sha256(self.content).hexdigest() != digest:
            self._json({"error": "checksum"}, 400)
            return
        self.server.objects[key] = self.content
        self._send(200, b"", {"ETag": f'"{key}"'})

    def complete(self, digest: str) -> None:
        count = len(json.loads(self.content)["parts"])
        content = b"".join(self.server.objects[f"{digest}/{n}"] for n in range(count))
        if hashlib.sha256(content).hexdigest() != digest:
            self._json({"error": "checksum"}, 400)
            return
        self.server.objects[digest] = content
        self._json({})

    def commit(self, name: str, revision: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        for line in self.content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.objects[value["oid"]]
                repository.large.add(value["path"])
        repository.commits += 1
        url = f"{self.server.url}/{name}/commit/{repository.commit}"
        self._json({"success": True, "commitOid": repository.commit, "commitUrl": url, "hookOutput": ""})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        fault = self.active_fault
        if fault is not None and fault.flip is not None:
            content = content[: fault.flip] + bytes([content[fault.flip] ^ 1]) + content[fault.flip + 1 :]
        status, size = 200, len(content)
        fresh = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) and fresh:
            first, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
            if first >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            status, content = 206, content[first : last + 1]
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{size}"}
        self._send(status, content, headers)

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.active_fault.cut if self.active_fault else None
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (f"/api/models/{_NAME}", _Handler.information),
    (rf"/api/models/{_NAME}/revision/(?P<revision>[^/]+)", _Handler.information),
    (rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
    (r"/storage/(?P<digest>\w+)", _Handler.stored),
    (r"/api/validate-yaml", _Handler.validate),
    (r"/api/repos/create", _Handler.create),
    (rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/upload/(?P<digest>\w+)(?:/(?P<part>\d+))?", _Handler.upload),
    (r"/complete/(?P<digest>\w+)", _Handler.complete),
    (rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.commit),
]


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@contextmanager
def serving_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
