"""A GCS server on loopback, as much of its JSON API as gcsfs, google-cloud-storage and TensorStore use here.

Objects are whole, have generations, and are written under conditions, as those of the real one. A request can be made
to fail: `fail` is asked with its method and path, and gives a status.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

# What points the clients at a server; without experiments gcsfs speaks HTTP alone.
ENVIRONMENT = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "GCE_METADATA_ROOT": "127.0.0.1:1",
    "NO_GCE_CHECK": "true",
    "GOOGLE_CLOUD_PROJECT": "none",
}


@dataclass
class Stored:
    """One version of an object."""

    data: bytes
    generation: int
    updated: str


@dataclass
class FakeGcs:
    """Objects by "bucket/name"; `log` has "METHOD path" of every request."""

    address: str
    objects: dict[str, Stored] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    uploads: dict[str, tuple[str, dict[str, str], bytearray]] = field(default_factory=dict)
    fail: Callable[[str, str], int] = lambda method, path: 0
    lock: Any = field(default_factory=threading.RLock)
    generation: int = 1000

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that is to use this server."""
        return {**ENVIRONMENT, "STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address}

    def put(self, key: str, data: bytes, wanted: dict[str, str]) -> int:
        """An HTTP status: 412 where the condition of the request does not hold."""
        with self.lock:
            if not self.holds(key, wanted):
                return 412
            self.generation += 1
            self.objects[key] = Stored(data, self.generation, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
            return 200

    def holds(self, key: str, wanted: dict[str, str]) -> bool:
        """Whether ifGenerationMatch, if it is there, does."""
        now = self.objects[key].generation if key in self.objects else 0
        return int(wanted.get("ifGenerationMatch", now)) == now

    def about(self, key: str) -> dict[str, Any]:
        """The JSON of an object."""
        bucket, _, name = key.partition("/")
        stored = self.objects[key]
        crc = base64.b64encode(google_crc32c.value(stored.data).to_bytes(4, "big")).decode()
        md5 = base64.b64encode(hashlib.md5(stored.data).digest()).decode()
        return {
            **{"kind": "storage#object", "id": key, "name": name, "bucket": bucket, "size": str(len(stored.data))},
            **{"generation": str(stored.generation), "metageneration": "1", "crc32c": crc, "md5Hash": md5},
            **{"updated": stored.updated, "timeCreated": stored.updated, "storageClass": "STANDARD", "etag": crc},
        }

    def listing(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        """Names below a prefix; with a delimiter, the folders among them once."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        items, folders = [], []
        with self.lock:
            for key in sorted(self.objects):
                place, _, name = key.partition("/")
                if place != bucket or not name.startswith(prefix) or not start <= name < end:
                    continue
                inner = name[len(prefix) :]
                if delimiter and delimiter in inner:
                    folders.append(prefix + inner.split(delimiter)[0] + delimiter)
                else:
                    items.append(self.about(key))
        return {"kind": "storage#objects", "items": items, "prefixes": list(dict.fromkeys(folders))}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gcs: FakeGcs

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int) -> None:
        self._answer(status, {"error": {"code": status, "message": f"status {status}"}})

    def _do(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        body = self._body()
        parts = split.path.strip("/").split("/")
        self.gcs.log.append(f"{self.command} {unquote(split.path)}")
        status = self.gcs.fail(self.command, unquote(split.path))
        if status:
            self._refuse(status)
        elif parts[0] == "upload":
            self._upload(unquote(parts[4]), query, body)
        else:
            self._object([unquote(part) for part in parts[parts.index("v1") + 1 :]], query)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _do

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        if "upload_id" in query:
            self._resume(query["upload_id"], body)
        elif query["uploadType"] == "media":
            self._put(f"{bucket}/{query['name']}", body, query)
        elif query["uploadType"] == "multipart":
            boundary = self.headers["Content-Type"].split("boundary=")[1].strip("\"'").encode()
            told, data = (part.lstrip(b"\r\n") for part in body.split(b"--" + boundary)[1:3])
            end = b"\r\n" if told.endswith(b"\r\n") else b"\n"
            fields = json.loads(told.split(end * 2, 1)[1])
            self._put(f"{bucket}/{fields['name']}", data.split(end * 2, 1)[1].removesuffix(end), query)
        else:
            name = query.get("name") or json.loads(body)["name"]
            number = str(len(self.gcs.uploads))
            self.gcs.uploads[number] = (f"{bucket}/{name}", query, bytearray())
            place = f"{self.gcs.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            self._answer(200, {}, Location=place)

    def _resume(self, number: str, body: bytes) -> None:
        key, query, data = self.gcs.uploads[number]
        data += body
        total = self.headers.get("Content-Range", "bytes */*").rpartition("/")[2]
        if total == "*":
            self._answer(308, b"", Range=f"bytes=0-{len(data) - 1}")
        else:
            self._put(key, bytes(data), query)

    def _put(self, key: str, data: bytes, query: dict[str, str]) -> None:
        status = self.gcs.put(key, data, query)
        if status == 200:
            self._answer(200, self.gcs.about(key))
        else:
            self._refuse(status)

    def _object(self, parts: list[str], query: dict[str, str]) -> None:
        """b/BUCKET, b/BUCKET/o, b/BUCKET/o/NAME, and b/BUCKET/o/NAME/rewriteTo/b/BUCKET/o/NAME."""
        if len(parts) == 2:
            self._answer(200, {"kind": "storage#bucket", "name": parts[1], "location": "US", "locationType": "region"})
        elif len(parts) == 3:
            self._answer(200, self.gcs.listing(parts[1], query))
        elif len(parts) > 4:
            self._copy(parts)
        else:
            self._one(f"{parts[1]}/{parts[3]}", query)

    def _copy(self, parts: list[str]) -> None:
        source, target = f"{parts[1]}/{parts[3]}", f"{parts[6]}/{parts[8]}"
        if source not in self.gcs.objects:
            return self._refuse(404)
        self.gcs.put(target, self.gcs.objects[source].data, {})
        self._answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": self.gcs.about(target)})

    def _one(self, key: str, query: dict[str, str]) -> None:
        with self.gcs.lock:
            stored = self.gcs.objects.get(key)
            if stored is None:
                self._refuse(404)
            elif self.command == "DELETE":
                if self.gcs.holds(key, query):
                    del self.gcs.objects[key]
                self._answer(204)
            elif query.get("alt") == "media":
                self._media(stored, query)
            else:
                self._answer(200, self.gcs.about(key))

    def _media(self, stored: Stored, query: dict[str, str]) -> None:
        if query.get("ifGenerationNotMatch") == str(stored.generation):
            return self._answer(304)
        if not self.gcs_match(stored, query):
            return self._refuse(412)
        tag = {"x_goog_generation": str(stored.generation), "Content-Type": "application/octet-stream"}
        asked = self.headers.get("Range", "")
        if not asked:
            return self._answer(200, stored.data, **tag)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        size = len(stored.data)
        begin = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if begin >= size:
            return self._refuse(416)
        self._answer(206, stored.data[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{size}", **tag)

    def gcs_match(self, stored: Stored, query: dict[str, str]) -> bool:
        """Whether the version is the one that is asked for."""
        return query.get("ifGenerationMatch", str(stored.generation)) == str(stored.generation)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that left says so itself."""


@contextmanager
def serve() -> Iterator[FakeGcs]:
    """The server, as long as the block lasts."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.gcs = gcs = FakeGcs(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, name="fake gcs", daemon=True).start()
    try:
        yield gcs
    finally:
        server.shutdown()
        server.server_close()
