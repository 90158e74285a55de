"""A server on loopback that misbehaves as real servers do, and the checkpoint that it should send."""

import contextlib
import hashlib
import http.server
import io
import threading

import torch


def checkpoint(seed: int) -> bytes:
    """A torch file of about 1 MB: more than one chunk."""
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.randn(256_000, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


DATA, OTHER = checkpoint(0), checkpoint(1)  # equally long
SHA = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Uses the next behaviour of the server's list for each request; the last one repeats."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.guard:
            server.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
            behaviour = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        behaviour(self)


def answer(h, body, code=200, length=None, headers=()):
    h.send_response(code)
    for name, value in headers:
        h.send_header(name, value)
    h.send_header("Content-Length", str(len(body) if length is None else length))
    h.end_headers()
    h.wfile.write(body)
    if length is not None:
        h.close_connection = True


def good(h, data=DATA, etag='"one"', cut=None):
    """Answer ranges correctly; `cut`: send only that many bytes, then close the connection."""
    wanted = h.headers.get("Range")
    start = int(wanted[6:-1]) if wanted and h.headers.get("If-Range") == etag else 0
    body, headers = data[start:], [("ETag", etag)]
    if start:
        headers.append(("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"))
    length = None if cut is None else len(body)
    answer(h, body[:cut], 206 if start else 200, length, headers)


def plain(h, data=DATA, cut=None):
    """No range support, no validators."""
    answer(h, data[:cut], length=None if cut is None else len(data))


def cut(size, inner=good):
    return lambda h: inner(h, cut=size)


def status(code, headers=()):
    return lambda h: answer(h, b"sorry", code, headers=headers)


@contextlib.contextmanager
def serving():
    """Start a server. `script` has its behaviour for each request, the last one repeats; `seen` lists the requests."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.script, running.seen, running.guard = [good], [], threading.Lock()
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
