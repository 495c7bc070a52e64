"""Messages over one connected socket, one direction each: `Incoming` reads tensors' bytes, `Outgoing` writes them.

A message is its length and its bytes. A TLS connection must not be read and written by two threads at once, so each
direction has a connection of its own. A busy poll before blocking was measured and gained nothing over the kernel's
own wake-up (5 us plain, 12 us with TLS for 8 KiB through loopback): whoever waits sleeps.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterable

from agent.engine.links.carrier import Pending

JOINED_BYTES = 65536
"""Up to here a message is copied behind its length, into one write: a copy costs less than a TLS record more."""
WRITE_BYTES = 262_144
"""Most that one call writes: the interpreter is let go meanwhile."""
JOIN_LIMIT_S = 1.0

_LENGTH = struct.Struct("<Q")
_NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
CLOSED = "the other rank closed the connection"


class Sent:
    """A message that has left already."""

    def wait(self) -> None:
        return


SENT = Sent()


class Incoming:
    """Belongs to the thread that receives. Every wait ends when nothing has moved for `timeout_s`."""

    def __init__(self, connection: socket.socket, *, timeout_s: float) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._timeout_s = timeout_s
        self._frame = memoryview(bytearray(_LENGTH.size + JOINED_BYTES))
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def watch(self, others: Iterable[socket.socket]) -> None:
        """Raise while waiting here also when one of these is closed by its other end."""
        for other in others:
            self._poll.register(other, select.POLLRDHUP)

    def receive_into(self, target: memoryview) -> None:
        """Fill `target` with the next message. Raises RuntimeError, also when the message has another size."""
        size = target.nbytes
        end = _LENGTH.size + (size if size <= JOINED_BYTES else 0)
        have = 0
        while have < _LENGTH.size:
            have += self._read(self._frame[have:end])
        (length,) = _LENGTH.unpack_from(self._frame)
        if length != size:
            raise RuntimeError(f"a message of {length} bytes came where {size} were expected")
        if size <= JOINED_BYTES:
            while have < end:
                have += self._read(self._frame[have:end])
            target[:] = self._frame[_LENGTH.size : end]
            return
        have = 0
        while have < size:
            have += self._read(target[have:])

    def close(self) -> None:
        self.connection.close()

    def _read(self, view: memoryview) -> int:
        """Bytes read, at least one."""
        try:
            while True:
                try:
                    count = self.connection.recv_into(view)
                except _NOT_READY:
                    self._wait()
                    continue
                if count == 0:
                    raise RuntimeError(CLOSED)
                return count
        except OSError as error:
            raise RuntimeError(reason_of(error)) from error

    def _wait(self) -> None:
        ready = self._poll.poll(self._timeout_s * 1000)
        if not ready:
            raise RuntimeError(f"nothing came for {self._timeout_s:g} s")
        if all(number != self.connection.fileno() for number, _ in ready):
            raise RuntimeError("another member of the group closed its connection")


class Outgoing:
    """`send` belongs to one thread. What the kernel does not take at once, a thread of this connection writes."""

    def __init__(self, connection: socket.socket, *, timeout_s: float) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._timeout_s = timeout_s
        self._poll = select.poll()
        self._poll.register(connection, select.POLLOUT)
        self._hang_up = select.poll()
        self._hang_up.register(connection, select.POLLRDHUP)
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._writer: threading.Thread | None = None
        self._held = b""
        self._broken = ""

    def send(self, payload: memoryview, owner: object, *, is_followed: bool = False) -> Pending:
        """`owner` is kept alive until the payload has left; the payload must not change until then.

        A message that `is_followed` by another may wait for it and leave with it. Raises RuntimeError.
        """
        length = _LENGTH.pack(payload.nbytes)
        if payload.nbytes > JOINED_BYTES:
            self._write(memoryview(self._held + length), None)
            self._held = b""
            return self._write(payload, owner)
        frame = b"".join((self._held, length, payload))
        if is_followed and len(frame) < JOINED_BYTES:
            self._held = frame
            return SENT
        self._held = b""
        return self._write(memoryview(frame), None)

    def close(self) -> None:
        shut_down(self.connection)
        with self._changed:
            self._broken = self._broken or "the link is closed"
            self._queue.clear()
            self._changed.notify_all()
        if self._writer is not None:
            self._writer.join(JOIN_LIMIT_S)
        self.connection.close()

    def _write(self, view: memoryview, owner: object) -> Pending:
        with self._changed:
            if self._broken:
                raise RuntimeError(self._broken)
            if not self._queue:
                # the kernel would still take a message that nobody will read: say so now and not a step later
                if self._hang_up.poll(0):
                    raise RuntimeError(CLOSED)
                view = self._write_some(view)
                if not view:
                    return SENT
            waiting = _Waiting(self, view, owner)
            self._queue.append(waiting)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_queue, name="link", daemon=True)
                self._writer.start()
            self._changed.notify_all()
            return waiting

    def _write_queue(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._broken)
                if self._broken:
                    return
                waiting = self._queue[0]
            try:
                view = waiting.view
                while view := self._write_some(view):
                    if not self._poll.poll(self._timeout_s * 1000):
                        raise RuntimeError(f"the other rank took nothing for {self._timeout_s:g} s")
            except RuntimeError as error:
                with self._changed:
                    self._broken = self._broken or str(error)
                    self._queue.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                waiting.is_sent = True
                if self._queue:
                    self._queue.popleft()
                self._changed.notify_all()

    def _write_some(self, view: memoryview) -> memoryview:
        """Write until the kernel takes no more; what is left. Only one thread at a time may come here."""
        try:
            while view:
                view = view[self.connection.send(view[:WRITE_BYTES]) :]
        except _NOT_READY:
            return view
        except OSError as error:
            raise RuntimeError(reason_of(error)) from error
        return view

    def wait_for(self, waiting: _Waiting) -> None:
        """Raises RuntimeError when the message did not leave."""
        with self._changed:
            # the writer gives up first, and says why
            self._changed.wait_for(lambda: waiting.is_sent or self._broken, 2 * self._timeout_s)
            if not waiting.is_sent:
                raise RuntimeError(self._broken or f"a message did not leave within {2 * self._timeout_s:g} s")


class _Waiting:
    """A message in the queue of its connection."""

    def __init__(self, connection: Outgoing, view: memoryview, owner: object) -> None:
        self.view = view
        self.is_sent = False
        self._connection = connection
        self._owner = owner

    def wait(self) -> None:
        self._connection.wait_for(self)


def shut_down(connection: socket.socket) -> None:
    """Wake whoever waits on the connection, in any thread."""
    with contextlib.suppress(OSError):  # the other end was faster, or it was never connected
        # SSLSocket.shutdown would take TLS off under a thread that reads
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def reason_of(error: OSError) -> str:
    """One line for people; OpenSSL's own words come without its source file."""
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return CLOSED
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    return error.strerror or str(error) or type(error).__name__
