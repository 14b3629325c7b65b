"""A small Hub on loopback, for huggingface_hub's own client: repositories with commits and branches, LFS, tokens.

It knows what the client asks for when it creates a repository, pre-uploads, uploads, commits, looks at info and trees,
and resolves files, in the Hub's forms: ETags, redirects, error codes. It keeps all traffic.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_secret_of_the_owner"  # of somebody who may write


@dataclass
class Repo:
    private: bool = False
    gated: bool = False  # nobody has been granted access
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files by name, of each commit
    refs: dict[str, str] = field(default_factory=dict)  # branch to commit
    lfs: set[str] = field(default_factory=set)  # names of files stored by LFS

    def commit(self, files: dict[str, bytes | None], branch: str = "main") -> str:
        """Add files to a branch, or take away those that are None; returns the commit's name."""
        before = self.refs.get(branch, "")
        everything = {k: v for k, v in {**self.commits.get(before, {}), **files}.items() if v is not None}
        text = before + "".join(f"{k}{hashlib.sha1(v).hexdigest()}" for k, v in sorted(everything.items()))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = everything
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """Serves in a thread until ``stop``, which can be called again.

    Attributes:
        repos: by ``owner/name``.
        traffic: of every request its method, path, body, and the answer's body.
        tokens: that may write, and read what is private.
        conflicts: how many of the next commits are refused because another one came before.
        spoil: a function of a file's bytes, applied to what is downloaded by LFS.
    """

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.traffic: list[tuple[str, str, bytes, bytes]] = []
        self.tokens = {TOKEN}
        self.conflicts = 0
        self.spoil = lambda data: data
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"  # the Hub, too, keeps large files on another host
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> str:
        """Put files into a repository directly; returns the commit's name."""
        repo = self.repos.setdefault(repo_id, Repo(private))
        for name, data in files.items():
            if name.endswith((".safetensors", ".bin")):
                repo.lfs.add(name)
                self.blobs[hashlib.sha256(data).hexdigest()] = data
        return repo.commit(files)

    def get_request(self):
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def stop(self) -> None:
        """Go down as a server that crashes: open connections end too."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # it has ended before
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", headers: dict[str, str] | None = None) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        self.server.traffic.append((self.command, self.path, self.body, body if self.command != "HEAD" else b""))
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.server.tokens

    def repo_at(self, repo_id: str, revision: str | None = None) -> tuple[Repo, str] | None:
        """The repository and commit asked for; answers with the Hub's errors if there is none."""
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and not self.authorised):
            self.refuse(404 if self.authorised else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.gated:
            self.refuse(403, "GatedRepo", "Access to this repository is restricted")
            return None
        sha = repo.resolve(revision or "main")
        if sha is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, sha

    def chunks(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def handle_request(self) -> None:
        self.body = b"".join(self.chunks())
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if method == self.command.replace("HEAD", "GET") and match:
                if method in ("POST", "PUT") and not self.authorised and "/lfs/" not in url.path:
                    self.refuse(401, "", "Invalid username or password.")
                else:
                    handler(self, *(unquote(group) for group in match.groups()))
                return
        self.refuse(404, "", f"this server does not know {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # --- write ----------------------------------------------------------------------------------------------------

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        with self.server.lock:
            if repo_id in self.server.repos:
                self.answer(409, {"error": "exists", "url": f"{self.server.url}/{repo_id}"})
                return
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repos[repo_id] = Repo(private)
            self.server.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer(200, {"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def create_branch(self, repo_id: str, branch: str) -> None:
        if found := self.repo_at(repo_id):
            repo, sha = found
            if branch in repo.refs:
                self.refuse(409, "", "Reference already exists")
                return
            repo.refs[branch] = sha
            self.answer(200, {})

    def validate_yaml(self) -> None:
        parts = json.loads(self.body)["content"].split("---\n")
        metadata = yaml.safe_load(parts[1]) if len(parts) > 2 else None
        good = isinstance(metadata, dict) and isinstance(metadata.get("license"), str)
        errors = [] if good else [{"message": "metadata with a license is required"}]
        self.answer(200 if good else 400, {"errors": errors, "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        if self.repo_at(repo_id, revision):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": files})

    def lfs_batch(self, repo_id: str) -> None:
        if self.repo_at(repo_id):
            objects = []
            for item in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{self.server.cdn}/lfs/{item['oid']}"}}
                objects.append(item if item["oid"] in self.server.blobs else {**item, "actions": upload})
            self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.refuse(400, "", "wrong sha256")
            return
        self.server.blobs[oid] = self.body
        self.answer(200)

    def commit(self, repo_id: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        with self.server.lock:
            if self.server.conflicts:
                self.server.conflicts -= 1
                self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
                return
            if not (found := self.repo_at(repo_id, revision)):
                return
            repo, head = found
            if lines[0]["value"].get("parentCommit") not in (None, head):
                self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
                return
            files = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                    repo.lfs.add(value["path"])
                elif line["key"] == "deletedFile":
                    files[value["path"]] = None
            sha = repo.commit(files, revision)
        url = f"{self.server.url}/{repo_id}/commit/{sha}"
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    # --- read -----------------------------------------------------------------------------------------------------

    def models(self) -> None:
        author = self.query.get("author", [""])[0]
        names = [name for name, repo in self.server.repos.items() if name.split("/")[0] == author and not repo.private]
        self.answer(200, [{"id": name, "modelId": name} for name in names])

    def info(self, repo_id: str, revision: str | None = None) -> None:
        if found := self.repo_at(repo_id, revision):
            repo, sha = found
            siblings = [{"rfilename": name} for name in repo.commits[sha]]
            self.answer(200, {"id": repo_id, "sha": sha, "private": repo.private, "siblings": siblings})

    def tree(self, repo_id: str, revision: str) -> None:
        if found := self.repo_at(repo_id, revision):
            repo, sha = found
            entries = []
            for name, data in repo.commits[sha].items():
                entries.append({"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()})
                if name in repo.lfs:
                    entries[-1]["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            self.answer(200, entries)

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        if not (found := self.repo_at(repo_id, revision)):
            return
        repo, sha = found
        data = repo.commits[sha].get(name)
        if data is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha}
            self.answer(404, b"Entry not found", headers)
        elif name in repo.lfs:
            oid = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data))}
            self.answer(302, b"", {"X-Repo-Commit": sha, "Location": f"{self.server.cdn}/lfs/{oid}", **linked})
        else:
            self.answer(200, data, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def lfs_get(self, oid: str) -> None:
        self.answer(200, self.server.spoil(self.server.blobs[oid]), {"ETag": f'"{oid}"'})


_REPO = r"([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", _Handler.create_repo),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/models/{_REPO}/branch/(.+)", _Handler.create_branch),
    ("POST", f"/api/models/{_REPO}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/api/models/{_REPO}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(.+)", _Handler.lfs_put),
    ("GET", "/lfs/(.+)", _Handler.lfs_get),
    ("GET", "/api/models", _Handler.models),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)", _Handler.tree),
    ("GET", f"/api/models/{_REPO}/revision/(.+)", _Handler.info),
    ("GET", f"/api/models/{_REPO}", _Handler.info),
    ("GET", f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
