"""The kernel's word on round trips: of real connections on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent.engine.links.round_trip import slowest_round_trip_s


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            for _ in range(20):
                client.sendall(b"x" * 512)
                accepted.recv(4096)
            yield client, accepted


def test_a_connection_that_was_used_has_one(connected: tuple[socket.socket, socket.socket]) -> None:
    seconds = slowest_round_trip_s(connected)
    assert seconds is not None
    assert 0 < seconds < 1, "loopback, and seconds rather than microseconds"
    assert seconds >= (slowest_round_trip_s(connected[:1]) or 0.0), "the slowest of them counts"


def test_what_is_closed_or_no_tcp_has_none(connected: tuple[socket.socket, socket.socket]) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert slowest_round_trip_s([one, other]) is None
        assert slowest_round_trip_s([one, connected[0]]) is not None
    connected[0].close()
    assert slowest_round_trip_s([connected[0]]) is None
    assert slowest_round_trip_s([]) is None
