"""A small Google Cloud Storage in memory, for TensorFlow's `gs://` to talk to.

TensorFlow's addresses cannot be changed, but it takes a proxy: the proxy answers in
place of the servers, under the certificate of `cloud_storage.pem`, made for this only.
It is a process of its own, because TensorFlow keeps Python waiting while it restores.
"""

import contextlib
import http.server
import json
import pathlib
import re
import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator

CERTIFICATE = str(pathlib.Path(__file__).with_suffix(".pem"))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *args):
        pass

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()  # or the client waits a second for it
        return True

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATE)
        try:
            self.request = tls.wrap_socket(self.connection, server_side=True)
        except OSError:  # a client that does not trust us
            self.close_connection = True
            return
        self.setup()
        self.close_connection = False

    def do_GET(self):
        path, query = self._target()
        if match := re.fullmatch("/storage/v1/b/([^/]+)/o", path):
            self._list(match[1], query)
        elif re.fullmatch("/storage/v1/b/[^/]+(/storageLayout)?", path):
            self._answer(b'{"location": "US"}')
        elif (key := self._object(path)) in self.server.objects:
            size = len(self.server.objects[key])
            facts = {"size": str(size), "generation": "1", "updated": _TIME}
            self._answer(json.dumps(facts).encode())
        elif path.lstrip("/") in self.server.objects:
            self._read(self.server.objects[path.lstrip("/")])
        else:
            self._answer(b"{}", 404)

    def do_POST(self):
        body = self._body()
        path, query = self._target()
        objects = self.server.objects
        if match := re.fullmatch("/upload/storage/v1/b/([^/]+)/o", path):
            key = f"{match[1]}/{query['name']}"
            session = f"https://www.googleapis.com/session/{urllib.parse.quote(key)}"
            if query["uploadType"] == "media":
                objects[key] = body
            self._answer(b"{}", Location=session)
        else:
            source, _, copy = path.partition("/rewriteTo")
            objects[self._object(f"/storage/v1{copy}")] = objects[self._object(source)]
            self._answer(b'{"done": true}')

    def do_PUT(self):
        key = urllib.parse.unquote(self.path.removeprefix("/session/"))
        body = self._body()
        # `bytes */5` asks whether all of a file has come.
        if not self.headers.get("Content-Range", "").startswith("bytes */"):
            self.server.objects[key] = body
        self._answer(b"{}")

    def do_DELETE(self):
        known = self.server.objects.pop(self._object(self._target()[0]), None)
        self._answer(b"", 404 if known is None else 204)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _target(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        path = url.path if "/o/" in url.path else urllib.parse.unquote(url.path)
        return path, dict(urllib.parse.parse_qsl(url.query))

    def _object(self, path: str) -> str:
        """`BUCKET/NAME` of an object's address."""
        match = re.fullmatch("/storage/v1/b/([^/]+)/o/([^/]+)", path)
        return urllib.parse.unquote(f"{match[1]}/{match[2]}") if match else ""

    def _list(self, bucket: str, query: dict[str, str]):
        prefix = query.get("prefix", "")
        items, folders = [], set()
        for key in sorted(self.server.objects):
            name = key.removeprefix(f"{bucket}/")
            if name == key or not name.startswith(prefix):
                continue
            head, delimiter, _ = name[len(prefix) :].partition("/")
            if delimiter and query.get("delimiter"):
                folders.add(f"{prefix}{head}/")
            else:
                items.append({"name": name})
        found = {"items": items, "prefixes": sorted(folders)}
        self._answer(json.dumps({k: v for k, v in found.items() if v}).encode())

    def _read(self, data: bytes):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            self._answer(data)
        elif int(wanted[1]) >= len(data):
            self._answer(b"", 416)
        else:
            self._answer(data[int(wanted[1]) : int(wanted[2]) + 1], 206)

    def _answer(self, body: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


_TIME = "2020-01-01T00:00:00.000Z"


@contextlib.contextmanager
def cloud_storage() -> Iterator[dict[str, str]]:
    """Serves empty buckets; gives the environment in which TensorFlow finds them."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE) as server:
        try:
            port = int(server.stdout.readline())
            yield {
                "https_proxy": f"http://127.0.0.1:{port}",
                "CURL_CA_BUNDLE": CERTIFICATE,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            }
        finally:
            server.terminate()


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.objects = {}
        print(server.server_port, flush=True)
        server.serve_forever()
