"""A hub of one machine: the few endpoints of the Hugging Face Hub that downloads and uploads use, with faults."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_atokenthatiswelltaken"
_ROOT = Path(__file__).parents[1]


@dataclasses.dataclass
class Repository:
    files: dict[str, bytes]
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    private: bool = False
    gated: bool = False
    lost: tuple[str, ...] = ()  # files that are listed but not there

    def __post_init__(self):
        self.commits = {}
        self.commit(self.files)

    def commit(self, files, branch="main"):
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha


class Hub(ThreadingHTTPServer):
    """Repositories by `models/ORG/NAME` or `datasets/ORG/NAME`.

    Attributes:
      cuts: by file, how many of its downloads are cut in the middle.
      got: how often each file was downloaded.
      tokens: every token that came.
      ranges: the downloads that began in the middle, as (file, first byte).
      delay: of each download, in seconds.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.cuts, self.got = {}, Counter(), Counter()
        self.tokens, self.ranges, self.delay = set(), [], 0.0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name, files, kind="models", **settings):
        self.repositories[f"{kind}/{name}"] = Repository(dict(files), **settings)
        return self.repositories[f"{kind}/{name}"]


@contextlib.contextmanager
def running():
    """Yields a hub that answers until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()


def environment(home, hub=None, token=None, **more):
    """What a process needs to use this hub, and no settings of the machine."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [env.get("PYTHONPATH")])])
    env |= {"HF_ENDPOINT": hub.address} if hub else {"HF_HUB_OFFLINE": "1"}
    return env | ({"HF_TOKEN": token} if token else {}) | more


def run(code, env, cwd=None, timeout=120):
    """Runs Python in a process of its own, since huggingface_hub reads its settings once; returns it, finished."""
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.server.tokens |= {token} - {""}
        if token not in ("", TOKEN):
            return self._send(401, error="Invalid credentials in Authorization header")
        self.known = token == TOKEN
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        kind, rest = "models", path.lstrip("/")
        if found := re.fullmatch(r"api/(models|datasets)/([^/]+/[^/]+)(/.*)?", rest):
            kind, name, rest = found[1], found[2], found[3] or ""
            return self._with(f"{kind}/{name}", lambda repository: self._api(name, repository, rest, body))
        found = re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", rest)
        if not found:
            return self._send(404, error="Not Found")
        kind = "datasets" if found[1] else "models"
        return self._with(f"{kind}/{found[2]}", lambda repository: self._file(repository, found[3], found[4]))

    def _with(self, name, do):
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.known):
            code = 404 if self.known else 401
            return self._send(code, error="Repository not found", headers={"X-Error-Code": "RepoNotFound"})
        return do(repository)

    def _commit(self, repository, revision):
        return revision if revision in repository.commits else repository.branches.get(revision)

    def _gated(self, repository):
        return repository.gated and not self.known

    def _api(self, name, repository, rest, body):
        if self.command == "POST":
            return self._write(name, repository, rest, body)
        _, what, revision = (*rest.split("/"), "", "main")[:3] if rest else ("", "revision", "main")
        commit = self._commit(repository, revision or "main")
        if commit is None:
            said = f"Invalid rev id: {revision}"
            return self._send(404, error=said, headers={"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if what == "tree":
            oids = {file: hashlib.sha1(data).hexdigest() for file, data in files.items()}
            tree = [{"type": "file", "oid": oids[file], "size": len(files[file]), "path": file} for file in files]
            return self._send(200, tree)
        siblings = [{"rfilename": file} for file in files]
        said = {"id": name, "sha": commit, "siblings": siblings, "private": repository.private, "tags": []}
        return self._send(200, {**said, "gated": "auto" if repository.gated else False})

    def _file(self, repository, revision, file):
        if self._gated(repository):
            return self._send(401, error="Access to it is restricted", headers={"X-Error-Code": "GatedRepo"})
        commit = self._commit(repository, revision)
        data = repository.commits.get(commit, {}).get(file)
        if data is None or file in repository.lost:
            return self._send(404, error="Entry not found", headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return self._send(200, data, headers=headers)
        self.server.got[file] += 1
        start, code = 0, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, code = int(found[1]), 206
            self.server.ranges.append((file, start))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        time.sleep(self.server.delay)
        cut = self.server.cuts[file] > 0
        self.server.cuts[file] -= cut
        return self._send(code, data[start:], headers=headers, cut=cut)

    def _create(self, asked):
        if not self.known:
            return self._send(401, error="Unauthorized")
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        self.server.add(name, {}, private=bool(asked.get("private") or asked.get("visibility") == "private"))
        return self._send(200, {"url": f"{self.server.address}/{name}", "name": name})

    def _write(self, name, repository, rest, body):
        if not self.known:
            return self._send(403, error="Forbidden")
        if rest.startswith("/preupload/"):
            files = json.loads(body)["files"]
            return self._send(
                200,
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]},
            )
        files = dict(repository.commits[repository.branches["main"]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = repository.commit(files)
        url = f"{self.server.address}/{name}/commit/{sha}"
        return self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None})

    def _send(self, code, content=None, *, headers=None, error="", cut=False):
        data = content if isinstance(content, bytes) else json.dumps(content or {"error": error}).encode()
        if isinstance(content, list):
            data = json.dumps(content).encode()
        self.send_response(code)
        for name, value in ({"X-Error-Message": error} if error else {}).items():
            self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True


def fill_cache(cache, name, files, kind="models", branch="main"):
    """Lays files out in a folder as huggingface_hub's cache does, links to blobs; returns the commit."""
    commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    root = Path(cache) / f"{kind}--{name.replace('/', '--')}"
    for file, data in files.items():
        blob = root / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = root / "snapshots" / commit / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    return commit


def files_of(folder):
    """The files of a folder by their names in it."""
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
