"""A Hugging Face Hub in memory: models that can be created, pushed to, tagged and read.

`huggingface_hub` reads the address of the Hub when it is imported, so code that is to talk to the server runs in a
process of its own, with the variables of `HubServer.environment`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit


USER = "someone"


class Refusal(Exception):
    """An answer that is an error; clients know it by its status and its code."""


@dataclass
class Repository:
    """The files and the title of each commit of a model, and the commits that its branches and tags name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> str:
        """Makes `files` the content of a branch and returns the name of the commit."""
        content = (list(self.commits), title, [(path, _digest(path, files[path])) for path in sorted(files)])
        name = hashlib.sha1(repr(content).encode()).hexdigest()
        self.commits[name], self.titles[name], self.references[branch] = files, title, name
        return name

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or itself names."""
        name = self.references.get(revision, revision)
        if name not in self.commits:
            raise Refusal(404, "RevisionNotFound")
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class HubServer(ThreadingHTTPServer):
    """Serves inside its context; `repositories` may be read at any time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: list[tuple[str, int]] = []
        """Pattern of "METHOD path" and the status to answer with; 0 hangs up."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """The variables of a process whose Hub is this server and whose caches are in `home`."""
        foreign = re.compile(r"(HF|HUGGING|TRANSFORMERS).*|.*_proxy", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "dummy"}
        return {**kept, **settings, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class _Handler(BaseHTTPRequestHandler):
    """Answers what the path asks for; a model's name, a revision and a path are the arguments of an answer."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.body = self._read_body()
        path = urlsplit(self.path).path
        try:
            if self.command == "POST" and "Authorization" not in self.headers:
                raise Refusal(401, "Unauthorized")
            for pattern, status in self.server.failures:
                if re.search(pattern, f"{self.command} {path}"):
                    raise Refusal(status, _ERROR_CODES.get(status, "Failure"))
            for pattern, answer in _ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    return answer(self, *(group and unquote(group) for group in match.groups()))
            raise Refusal(501, "NotImplemented")
        except Refusal as refusal:
            status, code = refusal.args
            if status == 0:
                self.close_connection = True
                return
            self._send(b'{"error": "%b"}' % code.encode(), status, {"X-Error-Code": code})

    do_HEAD = do_POST = do_PUT = do_GET

    def create(self) -> None:
        request = json.loads(self.body)
        name = f"{request['organization'] or USER}/{request['name']}"
        exists = name in self.server.repositories
        if not exists:
            self.server.repositories[name] = Repository(private=request.get("visibility") == "private")
            self.server.repositories[name].commit("main", "initial commit", {})
        self._send_json({"url": f"{self.server.url}/{name}"}, 409 if exists else 200)

    def validate_card(self) -> None:
        self._send_json({"errors": [], "warnings": []})

    def plan_files(self, name: str, revision: str) -> None:
        present, files = self._repository(name).files(revision), json.loads(self.body)["files"]
        for file in files:
            file["uploadMode"] = "lfs" if _is_large(file["path"], file["size"]) else "regular"
            file["oid"] = _digest(file["path"], present[file["path"]]) if file["path"] in present else None
            file["shouldIgnore"] = False
        self._send_json({"files": files})

    def plan_blobs(self, name: str) -> None:
        objects = json.loads(self.body)["objects"]
        for blob in objects:
            if blob["oid"] not in self.server.blobs:
                blob["actions"] = {"upload": {"href": f"{self.server.url}/blobs/{blob['oid']}"}}
        self._send_json({"objects": objects})

    def take_blob(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            raise Refusal(400, "BadDigest")
        self.server.blobs[digest] = self.body
        self._send(b"")

    def commit(self, name: str, branch: str) -> None:
        repository = self._repository(name)
        files, title = dict(repository.files(branch)), ""
        for line in self.body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.server.blobs:
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise Refusal(400, "BadCommit")
        commit = repository.commit(branch, title, files)
        self._send_json({"commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"})

    def tag(self, name: str, revision: str) -> None:
        repository, tag = self._repository(name), json.loads(self.body)["tag"]
        if tag in repository.references:
            raise Refusal(409, "TagExists")
        repository.references[tag] = repository.resolve(revision)
        self._send_json({})

    def describe(self, name: str, revision: str | None) -> None:
        commit = self._repository(name).resolve(revision or "main")
        self._send_json({"id": name, "sha": commit, "private": self._repository(name).private})

    def list_files(self, name: str, revision: str, folder: str | None) -> None:
        """The whole tree below a folder, whether or not the client wants the folders in it opened."""
        files = self._repository(name).files(revision)
        paths = [path for path in sorted(files) if folder is None or path.startswith(f"{folder}/")]
        if folder and not paths:
            raise Refusal(404, "EntryNotFound")
        entries = [{"path": path, "size": len(files[path]), "oid": _digest(path, files[path])} for path in paths]
        for entry in entries:
            lfs = {**entry, "pointerSize": 0} if _is_large(entry["path"], entry["size"]) else None
            entry.update(type="file", lfs=lfs)
        self._send_json(entries)

    def send_file(self, name: str, revision: str, path: str) -> None:
        commit = self._repository(name).resolve(revision)
        files = self._repository(name).files(commit)
        if path not in files:
            raise Refusal(404, "EntryNotFound")
        self._send(files[path], headers={"X-Repo-Commit": commit, "ETag": f'"{_digest(path, files[path])}"'})

    def _repository(self, name: str) -> Repository:
        if name not in self.server.repositories:
            raise Refusal(404, "RepoNotFound")
        return self.server.repositories[name]

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


_ERROR_CODES = {403: "GatedRepo", 404: "RepoNotFound"}
_MODEL, _REVISION = "([^/]+/[^/]+)", "([^/]+)"
_ROUTES = {
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate_card,
    f"POST /api/models/{_MODEL}/preupload/{_REVISION}": _Handler.plan_files,
    rf"POST /{_MODEL}\.git/info/lfs/objects/batch": _Handler.plan_blobs,
    "PUT /blobs/(.+)": _Handler.take_blob,
    f"POST /api/models/{_MODEL}/commit/{_REVISION}": _Handler.commit,
    f"POST /api/models/{_MODEL}/tag/{_REVISION}": _Handler.tag,
    f"GET /api/models/{_MODEL}(?:/revision/{_REVISION})?": _Handler.describe,
    f"GET /api/models/{_MODEL}/tree/{_REVISION}(?:/(.+))?": _Handler.list_files,
    f"(?:GET|HEAD) /{_MODEL}/resolve/{_REVISION}/(.+)": _Handler.send_file,
}


def _is_large(path: str, size: int) -> bool:
    """Whether a file is sent by itself rather than inside the commit; clients never do so with an empty one."""
    return size > 0 and path.endswith(".safetensors")


def _digest(path: str, content: bytes) -> str:
    """What the Hub calls the content of a file: the SHA-256 of a large one, else Git's SHA-1."""
    if _is_large(path, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
