"""A small Hugging Face hub on this machine: what its client asks of it to list, fetch and push models.

Repositories lie in memory. The client is the real one: `serve` says its address, `HF_ENDPOINT` tells a process of it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2025-01-01T00:00:00.000Z"
PAGE = 3  # entries of one page of a list of commits: the client has to turn it


@dataclass
class Commit:
    files: dict[str, bytes]
    title: str
    parent: str | None

    @property
    def sha(self) -> str:
        parts = [self.title, str(self.parent), *(f"{n}{hashlib.sha256(d).hexdigest()}" for n, d in self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass
class Repo:
    """Branches and tags name commits; what `gated` files are refused with 403."""

    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, branch: str, files: Mapping[str, bytes], title: str = "a commit") -> str:
        """Files added to what a branch has, as its next commit; a new branch begins at `main`, if there is one."""
        parent = self.branches.get(branch) or self.branches.get("main")
        before = self.commits[parent].files if parent else {}
        made = Commit({**before, **files}, title, parent)
        self.commits[made.sha] = made
        self.branches[branch] = made.sha
        return made.sha

    def commit_folder(self, branch: str, folder: Path, title: str = "a commit") -> str:
        return self.commit(branch, {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}, title)

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        return found if found in self.commits else None


def is_large(path: str) -> bool:
    """What the hub keeps in its large file storage."""
    return path.endswith((".safetensors", ".bin"))


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if is_large(path) else git_oid(data)


@dataclass
class Hub:
    """The state of a server: repositories, large files on their way in, and what was asked of it."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)  # "repo file" of each body that was served
    fail_after: int | None = None  # commits that are taken before the server answers 500

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _no(self, status: int, code: str) -> None:
        self._reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _route(self) -> None:
        raw = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {unquote(raw.path)}")
        body = self._body()
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, raw.path)
            if match and self.command in method:
                answer(self, *(unquote(part) for part in match.groups()), body=body, query=parse_qs(raw.query))
                return
        self._no(404, "NoRoute")

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _found(self, name: str, revision: str | None = None) -> tuple[Repo, str] | None:
        """The repository and a commit of it; answers itself where there is none."""
        repo = self.hub.repos.get(name)
        if repo is None:
            self._no(404, "RepoNotFound")
            return None
        commit = repo.find(revision or "main")
        if revision is not None and commit is None:
            self._no(404, "RevisionNotFound")
            return None
        return repo, commit or ""

    # What is read

    def refs(self, name: str, **_: object) -> None:
        if (found := self._found(name)) is None:
            return
        kinds = (("branches", "heads", found[0].branches), ("tags", "tags", found[0].tags))
        listed = {
            kind: [{"name": n, "ref": f"refs/{place}/{n}", "targetCommit": sha} for n, sha in refs.items()]
            for kind, place, refs in kinds
        }
        self._reply(200, {**listed, "converts": [], "pullRequests": []})

    def info(self, name: str, revision: str = "main", **_: object) -> None:
        if (found := self._found(name, revision)) is None:
            return
        files = [{"rfilename": path} for path in found[0].commits[found[1]].files]
        self._reply(200, {"id": name, "sha": found[1], "private": found[0].private, "siblings": files, "tags": []})

    def tree(self, name: str, revision: str, **_: object) -> None:
        if (found := self._found(name, revision)) is None:
            return
        rows = []
        for path, data in found[0].commits[found[1]].files.items():
            large = {"oid": etag(path, data), "size": len(data), "pointerSize": 130}
            row = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            rows.append(row | ({"lfs": large} if is_large(path) else {}))
        self._reply(200, rows)

    def commits(self, name: str, revision: str, query: dict[str, list[str]], **_: object) -> None:
        if (found := self._found(name, revision)) is None:
            return
        repo, sha = found
        rows = []
        while sha:
            commit = repo.commits[sha]
            rows.append({"id": sha, "title": commit.title, "message": "", "authors": [{"user": "lab"}], "date": DATE})
            sha = commit.parent or ""
        page = int(query.get("p", ["0"])[0])
        more = rows[(page + 1) * PAGE :]
        link = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?p={page + 1}>; rel="next"'} if more else {}
        self._reply(200, rows[page * PAGE : (page + 1) * PAGE], **link)

    def resolve(self, name: str, revision: str, path: str, **_: object) -> None:
        if (found := self._found(name, revision)) is None:
            return
        repo, sha = found
        if repo.gated:
            self._no(403, "GatedRepo")
            return
        data = repo.commits[sha].files.get(path)
        if data is None:
            self._reply(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        if self.command == "GET":
            self.hub.sent.append(f"{name} {path}")
        start, headers = 0, {"X_Repo_Commit": sha, "ETag": f'"{etag(path, data)}"', "Accept_Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else len(data)
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self._reply(206, data[start:end], **headers)
            return
        self._reply(200, data, Content_Length=str(len(data)), **headers)

    # What is written

    def create(self, body: bytes, **_: object) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            self._reply(409, {"error": "exists", **url})
            return
        self.hub.repo(name).private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repo(name).commit("main", {".gitattributes": b""}, "initial commit")
        self._reply(200, url)

    def branch(self, name: str, branch: str, body: bytes, **_: object) -> None:
        start = json.loads(body or b"{}").get("startingPoint", "main")
        if (found := self._found(name, start)) is None:
            return
        if branch in found[0].branches:
            self._no(409, "BranchExists")
            return
        found[0].branches[branch] = found[1]
        self._reply(200, {})

    def preupload(self, name: str, revision: str, body: bytes, **_: object) -> None:
        if (found := self._found(name, revision)) is None:
            return
        have = found[0].commits[found[1]].files
        rows = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            oid = etag(path, have[path]) if path in have else None
            mode = "lfs" if is_large(path) else "regular"
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._reply(200, {"files": rows})

    def batch(self, name: str, body: bytes, **_: object) -> None:
        rows = []
        for asked in json.loads(body)["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.uploaded:
                row["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
            rows.append(row)
        self._reply(200, {"transfer": "basic", "objects": rows})

    def upload(self, oid: str, body: bytes, **_: object) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.uploaded[oid] = body
        self._reply(200, {})

    def push(self, name: str, revision: str, body: bytes, **_: object) -> None:
        if (found := self._found(name, revision)) is None:
            return
        if self.hub.fail_after is not None:
            self.hub.fail_after -= 1
            if self.hub.fail_after < 0:
                self._no(500, "Broken")
                return
        title, files = "", {}
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                title = value["summary"]
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        sha = found[0].commit(revision, files, title)
        self._reply(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def valid(self, **_: object) -> None:
        self._reply(200, {"errors": [], "warnings": []})


_NAME = r"([^/]+/[^/]+)"
ROUTES = (
    (("GET",), rf"/api/models/{_NAME}/refs", Handler.refs),
    (("GET",), rf"/api/models/{_NAME}/revision/([^/]+)", Handler.info),
    (("GET",), rf"/api/models/{_NAME}/tree/([^/]+)", Handler.tree),
    (("GET",), rf"/api/models/{_NAME}/commits/([^/]+)", Handler.commits),
    (("GET",), rf"/api/models/{_NAME}", Handler.info),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), rf"/api/models/{_NAME}/branch/([^/]+)", Handler.branch),
    (("POST",), rf"/api/models/{_NAME}/preupload/([^/]+)", Handler.preupload),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), r"/lfs/(\w+)", Handler.upload),
    (("POST",), rf"/api/models/{_NAME}/commit/([^/]+)", Handler.push),
    (("POST",), r"/api/validate-yaml", Handler.valid),
)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub without repositories, while it runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
