"""The server of `odctl web` on a free port of loopback, and what a browser would do there."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from odctl.web.access import make_access
from odctl.web.server import SEATS, Settings, make_application, tab_argv
from odctl.web.token_file import new_token

TIMEOUT_S = 60.0
_ESCAPE = re.compile(r"\x1b(\[[0-9;?<>=$]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[=>()][0-9A-Z]?)")


class Served:
    """A running server, and the lines that it told."""

    def __init__(self, app: web.Application, port: int, token: str) -> None:
        self.app = app
        self.port = port
        self.token = token
        self.told: list[str] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def entrance(self) -> str:
        return f"{self.base}/?token={self.token}"

    @property
    def num_open(self) -> int:
        return len(self.app[SEATS].websockets)


@asynccontextmanager
async def serving(
    argv: Sequence[str], *, max_tabs: int = 4, origins: tuple[str, ...] = ()
) -> AsyncIterator[Served]:
    token, told = new_token(), list[str]()
    settings = Settings(
        access=make_access(token, listen="127.0.0.1", origins=origins),
        argv=tuple(argv),
        cluster="web-test",
        max_tabs=max_tabs,
    )
    app = make_application(settings, told.append)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=20.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served = Served(app, runner.addresses[0][1], token)
    served.told = told
    try:
        yield served
    finally:
        await runner.cleanup()


@asynccontextmanager
async def visitor(served: Served, *, has_token: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that keeps cookies, as a browser does; with the cookie already where it has the token."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        if has_token:
            async with session.get(served.entrance) as answer:
                assert answer.status == 200
        yield session


@asynccontextmanager
async def open_tab(
    served: Served, session: aiohttp.ClientSession, *, origin: str | None = None
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A tab's websocket, as the page opens it."""
    url = f"{served.base}/ws?width=80&height=24"
    async with session.ws_connect(url, headers={"Origin": origin or served.base}) as websocket:
        yield websocket


async def read_until(websocket: aiohttp.ClientWebSocketResponse, wanted: str) -> str:
    """What the terminal was sent, without its escapes, up to and with the text that is waited for."""
    shown = ""
    async with asyncio.timeout(TIMEOUT_S):
        while wanted not in shown:
            message = await websocket.receive()
            assert message.type in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}, (message, shown)
            if message.type is aiohttp.WSMsgType.BINARY:
                shown += plain(message.data)
    return shown


async def read_to_end(websocket: aiohttp.ClientWebSocketResponse) -> str:
    """All that is still sent, until the server closes."""
    shown = ""
    async with asyncio.timeout(TIMEOUT_S):
        async for message in websocket:
            if message.type is aiohttp.WSMsgType.BINARY:
                shown += plain(message.data)
    return shown


def plain(data: bytes) -> str:
    return _ESCAPE.sub("", data.decode(errors="replace"))


async def until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - processes and browsers have no event for us
            await asyncio.sleep(0.02)


def app_argv(inventory: Path, *flags: str) -> tuple[str, ...]:
    """The real UI, over an inventory whose one host has no agent: it opens, and says so."""
    return tab_argv(sys.executable, str(inventory), flags or ("--read-only",))


def script_argv(script: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script, *arguments)


def write_inventory(directory: Path) -> Path:
    path = directory / "inventory.toml"
    prefix = directory / "prefix"
    path.write_text(
        '[cluster]\nname = "web-test"\n'
        f'[hosts.h1]\ntransport = "local"\ncluster_address = "127.0.0.1"\nprefix = "{prefix}"\n'
    )
    return path
