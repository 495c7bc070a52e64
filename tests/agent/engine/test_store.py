"""The rendezvous keeps its deadline whatever the agent does, and can be called off."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from agent.engine.store import AgentStore
from agent.errors import FleetError
from tests.agent.engine.rendezvous import serve_rendezvous


def open_store(folder: Path, *, limit_s: float = 5.0, prefix: str = "chat/2/a>b") -> AgentStore:
    return AgentStore(
        agent_socket=str(folder / "agent.sock"),
        controller="host01",
        prefix=prefix,
        deadline=time.monotonic() + limit_s,
    )


def test_what_one_sets_the_other_gets_under_its_own_prefix(folder: Path) -> None:
    with serve_rendezvous(folder / "agent.sock") as server:
        store = open_store(folder)
        got = []
        waiting = threading.Thread(target=lambda: got.append(open_store(folder).get("0/1")))
        waiting.start()
        store.set("0/1", b"\x00address")
        waiting.join(5)
        assert got == [b"\x00address"]
        assert list(server.values) == ["chat/2/a>b/0/1"]
        store.wait(["0/1"], timedelta(seconds=1))
        assert store.check(["0/1"])
        assert not open_store(folder, prefix="chat/3/a>b").check(["0/1"])
        assert store.add("count", 3) == 3
        assert store.add("count", 4) == 7
        assert store.delete_key("0/1")
        assert not store.check(["0/1"])


def test_a_key_that_nobody_sets_is_given_up_at_the_deadline(folder: Path) -> None:
    with serve_rendezvous(folder / "agent.sock"):
        begun = time.monotonic()
        with pytest.raises(FleetError, match="nobody set 0/1 in time"):
            open_store(folder, limit_s=0.3).get("0/1")
        with pytest.raises(FleetError, match="nobody set 0/2 in time"):
            open_store(folder).wait(["0/2"], timedelta(seconds=0.2))
        assert 0.5 < time.monotonic() - begun < 2.0


def test_an_agent_that_hangs_does_not_hang_the_rank(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(folder / "agent.sock"))
        silent.listen(4)  # connections are taken by the kernel, and never answered
        begun = time.monotonic()
        with pytest.raises(FleetError, match="nobody set"):
            open_store(folder, limit_s=0.2).get("0/1")
        assert time.monotonic() - begun < 2.0


def test_an_agent_that_is_gone_is_said_at_once(folder: Path) -> None:
    with pytest.raises(FleetError, match="no answer on") as caught:
        open_store(folder).set("0/1", b"x")
    assert caught.value.code == "E802"


def test_abort_ends_a_wait_at_once_and_every_later_one(folder: Path) -> None:
    with serve_rendezvous(folder / "agent.sock") as server:
        store = open_store(folder, limit_s=30.0)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                store.get("0/1")
            except FleetError as error:
                raised.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        deadline = time.monotonic() + 5
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.005)
        begun = time.monotonic()
        store.abort()
        waiting.join(5)
        assert time.monotonic() - begun < 1.0
        assert "aborted" in str(raised[0])
        with pytest.raises(FleetError, match="aborted"):
            store.set("0/1", b"x")
        open_store(folder).set("0/1", b"x")  # releases the server's own thread
