"""A tab is a process: what it shows, what it may not do, and that nothing of it is left when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import psutil
import pytest

from odctl.web import tab
from tests.odctl.web.serving import (
    app_argv,
    open_tab,
    read_to_end,
    read_until,
    script_argv,
    serving,
    until,
    visitor,
    write_inventory,
)

DEAF = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
child = os.fork()
with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()}\\n")
if child:
    sys.stdout.write("__GANGLION__\\n"); sys.stdout.flush()
time.sleep(600)
"""
"""It and its child hear neither their input nor signals."""
BROKEN = """
import sys
sys.stderr.write("error[E101]: there is no such\\nthing\\n")
sys.exit(3)
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    return write_inventory(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Every process that a test starts is gone when it ends."""
    yield
    assert psutil.Process().children(recursive=True) == []


async def press(websocket: aiohttp.ClientWebSocketResponse, keys: str) -> None:
    await websocket.send_json(["stdin", keys])


async def test_a_tab_is_the_real_ui_and_q_ends_it(inventory: Path) -> None:
    async with (
        serving(app_argv(inventory)) as served,
        visitor(served) as session,
        open_tab(served, session) as websocket,
    ):
        await read_until(websocket, "▸ Fleet")
        await press(websocket, "2")
        await read_until(websocket, "▸ Plans")
        await press(websocket, "q")
        await read_to_end(websocket)
        assert websocket.close_code == aiohttp.WSCloseCode.OK
        await until(lambda: served.num_open == 0)
        assert served.told == []


async def test_a_tab_takes_the_size_of_the_browser(inventory: Path) -> None:
    async with (
        serving(app_argv(inventory)) as served,
        visitor(served) as session,
        open_tab(served, session) as websocket,
    ):
        await read_until(websocket, "▸ Fleet")
        await websocket.send_json(["resize", {"width": 40, "height": 10}])
        narrow = await read_until(websocket, "RO")
        assert "▸ Fleet" in narrow
        await websocket.send_json(["ping", 17])
        async with asyncio.timeout(10):
            while (message := await websocket.receive()).type is not aiohttp.WSMsgType.TEXT:
                assert message.type is aiohttp.WSMsgType.BINARY
        assert message.json() == ["pong", 17]


@pytest.mark.parametrize("keys", ["\x18", ":unlock\r"], ids=["key", "command"])
async def test_a_read_only_tab_cannot_be_unlocked(inventory: Path, keys: str) -> None:
    async with (
        serving(app_argv(inventory, "--read-only")) as served,
        visitor(served) as session,
        open_tab(served, session) as websocket,
    ):
        await read_until(websocket, "▸ Fleet")
        await press(websocket, keys)
        shown = await read_until(websocket, "opened with")
        await press(websocket, "2")
        shown += await read_until(websocket, "▸ Plans")
        assert " RW " not in shown


async def test_a_tab_that_may_write_opens_unlocked_and_can_be_locked(inventory: Path) -> None:
    async with (
        serving(app_argv(inventory, "--write")) as served,
        visitor(served) as session,
        open_tab(served, session) as websocket,
    ):
        await read_until(websocket, " RW ")
        await press(websocket, "\x18")
        await read_until(websocket, " RO ")


async def test_a_browser_that_leaves_takes_its_process_with_it(inventory: Path) -> None:
    async with serving(app_argv(inventory)) as served, visitor(served) as session:
        async with open_tab(served, session) as websocket:
            await read_until(websocket, "▸ Fleet")
            assert len(psutil.Process().children()) == 1
        await until(lambda: served.num_open == 0 and not psutil.Process().children())


async def test_a_server_that_ends_takes_every_tab_with_it(inventory: Path) -> None:
    async with AsyncExitStack() as clients:
        async with serving(app_argv(inventory)) as served:
            session = await clients.enter_async_context(visitor(served))
            tabs = [await clients.enter_async_context(open_tab(served, session)) for _ in range(2)]
            for websocket in tabs:
                await read_until(websocket, "▸ Fleet")
            assert len(psutil.Process().children()) == 2
        assert psutil.Process().children() == []
        for websocket in tabs:
            await read_to_end(websocket)
            assert websocket.closed


async def test_a_process_that_hears_nothing_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tab, "QUIT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(tab, "TERMINATE_TIMEOUT_S", 0.2)
    pids = tmp_path / "pids"
    async with serving(script_argv(DEAF, str(pids))) as served, visitor(served) as session:
        async with open_tab(served, session):
            await until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        await until(lambda: served.num_open == 0)
        for pid in map(int, pids.read_text().split()):
            await until(lambda pid=pid: not _runs(pid))  # type: ignore[misc]
        await until(lambda: bool(served.told))
        assert served.told == ["a tab's odctl did not quit in time: killed by signal 9"]


async def test_why_there_is_no_ui_stands_in_the_browser() -> None:
    async with (
        serving(script_argv(BROKEN)) as served,
        visitor(served) as session,
        open_tab(served, session) as websocket,
    ):
        shown = await read_to_end(websocket)
        assert "odctl ended with 3\r\nerror[E101]: there is no such\r\nthing" in shown
        await until(lambda: bool(served.told))
        assert served.told == ["odctl ended with 3\nerror[E101]: there is no such\nthing"]


@pytest.mark.parametrize(
    "sent", ["", "no json", "{}", '["stdin"]', '["stdin", 7]', '["resize", {"width": "1"}]', '["run", "rm"]', b"x"]
)
async def test_what_our_page_does_not_send_ends_the_tab(tmp_path: Path, sent: str | bytes) -> None:
    pids = tmp_path / "pids"
    # It quits at the first word from the server, as a UI that is told to.
    script = 'import os, sys\nopen(sys.argv[1], "w").write(str(os.getpid()))\nsys.stdin.buffer.read(1)'
    async with (
        serving(script_argv(script, str(pids))) as served,
        visitor(served) as session,
        open_tab(served, session) as websocket,
    ):
        await (websocket.send_bytes(sent) if isinstance(sent, bytes) else websocket.send_str(sent))
        await read_to_end(websocket)
        assert websocket.close_code == aiohttp.WSCloseCode.UNSUPPORTED_DATA
        await until(lambda: served.num_open == 0)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
