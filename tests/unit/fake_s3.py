"""An S3 service in memory: objects of one bucket, as plain as services other than AWS may be."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

KEYS = {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecretsecret"}
CHECKSUMS = ("x-amz-trailer", "x-amz-checksum-", "x-amz-sdk-checksum-")


@dataclass
class FakeS3:
    """What the service holds and how it is."""

    is_conditional: bool = True
    """Whether it minds If-None-Match."""
    objects: dict[str, bytes] = field(default_factory=dict)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """The calls that s3fs makes."""

    s3: FakeS3
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 05:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").removeprefix("/")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        body = self.body()
        if any(name.lower().startswith(CHECKSUMS) for name in self.headers):
            self.fail(400, "InvalidRequest")
        elif (
            "If-None-Match" in self.headers
            and self.key() in self.s3.objects
            and self.s3.is_conditional
        ):
            self.fail(412, "PreconditionFailed")
        else:
            self.s3.objects[self.key()] = body
            self.answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "versioning" in query:
            status = "<Status>Enabled</Status>"
            self.answer(
                200, f"<VersioningConfiguration>{status}</VersioningConfiguration>".encode()
            )
        elif not self.key():
            self.answer(200, self.listing(query))
        elif self.key() in self.s3.objects:
            self.answer(200, self.s3.objects[self.key()])
        else:
            self.fail(404, "NoSuchKey")

    def listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        keys, folders = [], set()
        for key in sorted(key for key in self.s3.objects if key.startswith(prefix)):
            head, found, _ = key.removeprefix(prefix).partition(delimiter or "\0")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                keys.append(key)
        content = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>{len(self.s3.objects[key])}</Size>"
            "<LastModified>2026-11-28T05:00:00.000Z</LastModified></Contents>"
            for key in keys
        ) + "".join(
            f"<CommonPrefixes><Prefix>{escape(quote(each))}</Prefix></CommonPrefixes>"
            for each in sorted(folders)
        )
        kind = "<EncodingType>url</EncodingType>"
        return f"<ListBucketResult>{kind}{content}</ListBucketResult>".encode()

    def do_POST(self) -> None:
        body = self.body().decode()
        for part in body.split("<Key>")[1:]:
            self.s3.objects.pop(part.partition("</Key>")[0], None)
        self.answer(200, b"<DeleteResult></DeleteResult>")

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@contextmanager
def serve_fake_s3(*, is_conditional: bool = True) -> Iterator[FakeS3]:
    """A service that refuses the checksums which botocore adds by default, as several do."""
    s3 = FakeS3(is_conditional)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Handler,), {"s3": s3})) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        s3.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield s3
        finally:
            server.shutdown()
