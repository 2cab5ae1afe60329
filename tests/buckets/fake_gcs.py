"""A Cloud Storage server on the loopback, with as much of its JSON API as gcsfs, TensorStore and Orbax ask for.

Objects are in memory. A bucket may deny reading or writing, and writes can be cut off.
"""

import base64
import contextlib
import email.parser
import hashlib
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_PAGE = 50  # names in a page of a listing: few, so that listings have several
_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/?]+)/o/([^/?]+)")
_REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/?]+)")


class Stored(NamedTuple):
    """An object's content, and the number of the write that made it."""

    data: bytes
    generation: int


class Refused(Exception):
    """An answer other than 200: its code and what it says."""

    def __init__(self, code: int, message: str = ""):
        super().__init__(message)
        self.code = code


class Store:
    """The buckets. `denied` has (bucket, "read" or "write") that nobody may do; `cut(name)` says which writes fail."""

    def __init__(self, *buckets: str):
        self.buckets: dict[str, dict[str, Stored]] = {bucket: {} for bucket in buckets}
        self.denied: set[tuple[str, str]] = set()
        self.cut: Callable[[str], bool] = lambda name: False
        self.lock, self.generations = threading.RLock(), itertools.count(1)

    def objects(self, bucket: str, what: str) -> dict[str, Stored]:
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        if (bucket, what) in self.denied:
            raise Refused(403, f"tester does not have storage.objects.{what} access to {bucket}")
        return self.buckets[bucket]

    def write(self, bucket: str, name: str, data: bytes, query: Mapping[str, str]) -> dict[str, Any]:
        with self.lock:
            objects = self.objects(bucket, "write")
            if self.cut(name):
                raise Refused(412 if query.get("ifGenerationMatch") else 400, "cut off")
            self.check(objects.get(name), query)
            objects[name] = Stored(data, next(self.generations))
            return describe(bucket, name, objects[name])

    def read(self, bucket: str, name: str, query: Mapping[str, str]) -> Stored:
        found = self.objects(bucket, "read").get(name)
        if found is None:
            raise Refused(404, f"No such object: {bucket}/{name}")
        if query.get("ifGenerationNotMatch") == str(found.generation):
            raise Refused(304)
        self.check(found, query)
        return found

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        with self.lock:
            objects = self.objects(bucket, "write")
            if name not in objects:
                raise Refused(404, f"No such object: {bucket}/{name}")
            self.check(objects[name], query)
            del objects[name]

    @staticmethod
    def check(found: Stored | None, query: Mapping[str, str]) -> None:
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (found.generation if found else 0):
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def listing(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        objects, prefix, mark = self.objects(bucket, "read"), query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        with self.lock:
            names = sorted(n for n in objects if n.startswith(prefix) and n >= start and (not end or n < end))
        entries: dict[str, str] = {}  # what is listed, by "item" or "prefix"
        for name in names:
            rest = name[len(prefix) :]
            folder = mark and mark in rest
            entries[prefix + rest.split(mark)[0] + mark if folder else name] = "prefix" if folder else "item"
        after = [each for each in sorted(entries) if each > query.get("pageToken", "")]
        size = min(int(query.get("maxResults", _PAGE)), _PAGE)
        page = after[:size]
        items = [describe(bucket, each, objects[each]) for each in page if entries[each] == "item" and each in objects]
        found = {"kind": "storage#objects", "items": items}
        found["prefixes"] = [each for each in page if entries[each] == "prefix"]
        return found | ({"nextPageToken": page[-1]} if len(after) > size else {})


def describe(bucket: str, name: str, found: Stored) -> dict[str, Any]:
    md5 = base64.b64encode(hashlib.md5(found.data).digest()).decode()
    about = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(found.data)), "md5Hash": md5}
    about |= {"generation": str(found.generation), "metageneration": "1", "etag": str(found.generation)}
    about |= {"timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"}
    return about | {"storageClass": "STANDARD", "contentType": "application/octet-stream", "id": f"{bucket}/{name}"}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    store: Store
    uploads: dict[str, tuple[str, str, dict[str, str], bytearray]]

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, do: Callable[[str, dict[str, str], bytes], tuple[int, Any, dict[str, str]]]) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        body = self._body()
        try:
            code, content, headers = do(address.path, query, body)
        except Refused as refused:
            code, headers = refused.code, {}
            content = {"error": {"code": code, "message": str(refused), "errors": [{"reason": "x"}]}}
        data = content if isinstance(content, bytes) else json.dumps(content).encode() if content is not None else b""
        if code in (204, 304):
            data = b""
        with contextlib.suppress(ConnectionError):
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            if "Content-Type" not in headers:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _get(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self.store.objects(found[1], "read")
            return 200, {"kind": "storage#bucket", "name": found[1], "location": "EU", "storageClass": "STANDARD"}, {}
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            return 200, self.store.listing(found[1], query), {}
        bucket, name = _named(path)
        stored = self.store.read(bucket, name, query)
        if query.get("alt") != "media" and not path.startswith("/download"):
            return 200, describe(bucket, name, stored), {}
        size = len(stored.data)
        headers = {"x-goog-generation": str(stored.generation), "Content-Type": "application/octet-stream"}
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            begin = int(found[1]) if found[1] else max(0, size - int(found[2]))
            end = min(size, int(found[2]) + 1) if found[1] and found[2] else size
            if begin >= size:
                raise Refused(416, "Requested range not satisfiable")
            return 206, stored.data[begin:end], headers | {"Content-Range": f"bytes {begin}-{end - 1}/{size}"}
        return 200, stored.data, headers

    def _post(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path.startswith("/batch"):
            return self._batch(body)
        if path.startswith("/resume"):
            return self._put(path, query, body)
        if found := _REWRITE.fullmatch(path):
            source, name, target, new = map(urllib.parse.unquote, found.groups())
            about = self.store.write(target, new, self.store.read(source, name, {}).data, query)
            return 200, {"kind": "storage#rewriteResponse", "done": True, "resource": about}, {}
        found = re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path)
        if not found:
            raise Refused(400, f"not served: {path}")
        bucket, kind = found[1], query.get("uploadType")
        if kind == "multipart":
            about, data = _parts(self.headers["Content-Type"], body)
            return 200, self.store.write(bucket, query.get("name") or json.loads(about)["name"], data, query), {}
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            self.store.objects(bucket, "write")
            number = str(next(self.store.generations))
            self.uploads[number] = (bucket, name, query, bytearray())
            return 200, {}, {"Location": f"http://{self.headers['Host']}/resume/{number}"}
        return 200, self.store.write(bucket, query["name"], body, query), {}

    def _put(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        bucket, name, asked, begun = self.uploads[path.rpartition("/")[2]]
        begun += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return 308, None, {"Range": f"bytes=0-{len(begun) - 1}"} if begun else {}
        return 200, self.store.write(bucket, name, bytes(begun), asked), {}

    def _delete(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        self.store.delete(*_named(path), query)
        return 204, None, {}

    def _batch(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Several deletions, each a part of the body."""
        answers = []
        for address in re.findall(rb"DELETE (\S+) HTTP", body):
            path = urllib.parse.urlsplit(address.decode()).path
            try:
                self.store.delete(*_named(path), {})
                answers.append("HTTP/1.1 204 No Content\r\n\r\n")
            except Refused as refused:
                answers.append(f"HTTP/1.1 {refused.code} Refused\r\n\r\n{{}}")
        parts = "".join(f"--x\r\nContent-Type: application/http\r\n\r\n{each}\r\n" for each in answers)
        return 200, f"{parts}--x--".encode(), {"Content-Type": "multipart/mixed; boundary=x"}


def _named(path: str) -> tuple[str, str]:
    found = _OBJECT.fullmatch(path)
    if not found:
        raise Refused(400, f"not served: {path}")
    return urllib.parse.unquote(found[1]), urllib.parse.unquote(found[2])


def _parts(kind: str, body: bytes) -> tuple[bytes, bytes]:
    """The two parts of a multipart body."""
    headers = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.parser.BytesParser().parsebytes(headers)
    boundary = b"--" + message.get_boundary().encode()
    _, first, rest = body.split(boundary, 2)
    contents = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (first, rest.rpartition(boundary)[0]))
    first, second = (re.sub(rb"\r?\n\Z", b"", content) for content in contents)  # gcsfs ends lines with \n alone
    return first, second


@contextlib.contextmanager
def serving(*buckets: str) -> Iterator[tuple[Store, dict[str, str]]]:
    """A server in a thread: its store, and the environment of those who are to use it."""
    handler = type("Bound", (Handler,), {"store": Store(*buckets), "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield handler.store, environment(server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(port: int) -> dict[str, str]:
    asked = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    return {
        **dict.fromkeys(asked, f"http://127.0.0.1:{port}"),
        "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask for the kind of the bucket by gRPC, for a minute
    }
