"""A real rendezvous store on a unix socket: what an agent's POST /v1/store does, without the agent."""

from __future__ import annotations

import http.server
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.wire.agent import StoreReply, StoreRequest


class RendezvousServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Keeps what was set; `requests` are all that came, for tests to look at."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.values: dict[str, bytes] = {}
        self.requests: list[StoreRequest] = []
        self.changed = threading.Condition()

    def answer(self, request: StoreRequest) -> StoreReply:
        deadline = time.monotonic() + request.timeout_s
        with self.changed:
            self.requests.append(request)
            match request.op:
                case "set":
                    self.values[request.keys[0]] = request.value
                    self.changed.notify_all()
                    return StoreReply(is_set=True)
                case "add":
                    number = int(self.values.get(request.keys[0], b"0")) + request.amount
                    self.values[request.keys[0]] = str(number).encode()
                    self.changed.notify_all()
                    return StoreReply(number=number, is_set=True)
                case "delete":
                    return StoreReply(is_set=self.values.pop(request.keys[0], None) is not None)
                case "check":
                    return StoreReply(is_set=self._has(request.keys))
                case "get" | "wait":
                    self.changed.wait_for(lambda: self._has(request.keys), timeout=deadline - time.monotonic())
                    is_set = self._has(request.keys)
                    return StoreReply(value=self.values.get(request.keys[0], b""), is_set=is_set)

    def _has(self, keys: tuple[str, ...]) -> bool:
        return all(key in self.values for key in keys)


@contextmanager
def serve_rendezvous(path: Path) -> Iterator[RendezvousServer]:
    server = RendezvousServer(path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
        path.unlink(missing_ok=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, RendezvousServer)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/store":
            self.send_error(404)
            return
        reply = msgspec.msgpack.encode(self.server.answer(msgspec.msgpack.decode(body, type=StoreRequest)))
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/msgpack")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the rank gave up meanwhile

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name
        """Quiet: pytest's output is for results."""

    def address_string(self) -> str:
        return "rank"  # a unix peer has no address for http.server to print
