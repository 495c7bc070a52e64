"""The server: the guard in front of every route, the page, and a limited number of tabs.

textual-serve gives the terminal for the browser (its script, style and fonts) and the protocol of the tabs. Its own
server has neither authentication nor a check of Origin, so the routes are ours.
"""

from __future__ import annotations

import asyncio
import html
import signal
import socket
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import textual_serve
from aiohttp import WSCloseCode, web
from textual_serve.download_manager import DownloadManager

from agent.errors import FleetError
from odctl.web.access import Access, Refusal, host_name
from odctl.web.tab import QUIT_TIMEOUT_S, TERMINATE_TIMEOUT_S, Tab

STATIC = Path(textual_serve.__file__).parent / "static"
PAGE = Path(__file__).parent / "page"
SEAT_TIMEOUT_S = 4.0
"""A page that is loaded again finds the seat of its former self free within this."""
HEARTBEAT_S = 15.0
CLOSE_TIMEOUT_S = 2.0
MAX_MESSAGE_BYTES = 1 << 20
"""From the browser: as much as can be pasted at once."""
MAX_TOLD = 100
"""Refusals that are told on stderr; a stranger can make any number of them."""
MIN_FONT, MAX_FONT = 6, 60
DEFAULT_FONT = 16

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Tell = Callable[[str], None]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`argv`: the process of a tab. `cluster`: the page's title says it."""

    access: Access
    argv: tuple[str, ...]
    cluster: str
    max_tabs: int


class Seats:
    """As many tabs as are allowed. A tab's seat is free again when its process has ended."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.websockets: set[web.WebSocketResponse] = set()
        self._free = asyncio.Semaphore(count)

    @property
    def is_full(self) -> bool:
        return self._free.locked()

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[bool]:
        """False when none is free in time."""
        try:
            async with asyncio.timeout(SEAT_TIMEOUT_S):
                await self._free.acquire()
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            self._free.release()

    async def wait_free(self) -> bool:
        """Whether there is a free seat, now or within the limit."""
        async with self.seat() as is_free:
            return is_free


class Told:
    """Lines for whoever runs the server, up to a number of them."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._count = 0

    def __call__(self, line: str) -> None:
        self._count += 1
        if self._count <= MAX_TOLD:
            self._tell(line)
        if self._count == MAX_TOLD:
            self._tell(f"{MAX_TOLD} lines told; those that follow are not")


SETTINGS = web.AppKey("settings", Settings)
SEATS = web.AppKey("seats", Seats)
DOWNLOADS = web.AppKey("downloads", DownloadManager)
TOLD = web.AppKey("told", Told)


def make_application(settings: Settings, tell: Tell) -> web.Application:
    """The whole server but its socket. `tell` takes lines for whoever runs it."""
    app = web.Application(middlewares=[_guard])
    app[SETTINGS], app[SEATS], app[TOLD] = settings, Seats(settings.max_tabs), Told(tell)
    app[DOWNLOADS] = DownloadManager()
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/ws", _websocket),
            web.get("/download/{key}", _download),
            web.static("/static", STATIC),
            web.static("/page", PAGE),
        ]
    )
    app.on_response_prepare.append(_harden)
    app.on_shutdown.append(_close_tabs)
    return app


async def serve(settings: Settings, *, host: str, port: int, ready: Callable[[int], None], tell: Tell) -> None:
    """Listen until SIGINT or SIGTERM, then end every tab. `ready` is called with the port when it listens.

    Raises FleetError E902 when it cannot listen there.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    # The access log would have the token of the first visit in it.
    runner = web.AppRunner(
        make_application(settings, tell),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=QUIT_TIMEOUT_S + TERMINATE_TIMEOUT_S + CLOSE_TIMEOUT_S,
    )
    await runner.setup()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        await web.TCPSite(runner, host, port).start()
        ready(runner.addresses[0][1])
        await stopping.wait()
        tell("ending every tab …")
    except (OSError, socket.gaierror) as error:
        hint = "`--port 0` takes any free one"
        raise FleetError("E902", f"cannot listen on {host}:{port}: {error.strerror or error}", hint=hint) from error
    finally:
        await runner.cleanup()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


# --- the guard ------------------------------------------------------------------------------------------------


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Strangers, then the token of a first visit, then the cookie; only then the route."""
    access = request.app[SETTINGS].access
    is_websocket = request.path == "/ws"
    refusal = _refuse_doubled(request) or access.refuse_stranger(
        request.method, request.headers, is_websocket=is_websocket
    )
    if refusal is not None:
        return _refuse(request, refusal)
    token = request.query.get("token")
    if token is not None and request.path == "/" and access.is_token(token):
        return _open_door(request, access)
    if not access.is_session(request.cookies.get(_cookie_name(request), "")):
        return _refuse(request, Refusal(401, "open the address that `odctl web` printed, with its token"))
    return await handler(request)


def _refuse_doubled(request: web.Request) -> Refusal | None:
    """Two values of a header that decides are two readings of it."""
    for name in ("Host", "Origin"):
        if len(request.headers.getall(name, [])) > 1:
            return Refusal(400, f"{name} is given twice")
    return None


def _refuse(request: web.Request, refusal: Refusal) -> web.Response:
    request.app[TOLD](f"refused ({refusal.status}): {refusal.reason}")
    return web.Response(status=refusal.status, text=f"odctl: {refusal.reason}\n")


def _open_door(request: web.Request, access: Access) -> web.Response:
    """The token for a cookie, and its address without the token: that one stays in the history."""
    response = web.Response(status=303, headers={"Location": "/"})
    response.set_cookie(
        _cookie_name(request),
        access.session,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=access.base_url(request.host).startswith("https:"),
    )
    return response


def _cookie_name(request: web.Request) -> str:
    """With the port that the browser sees: cookies do not tell ports apart, and two servers may run."""
    port = request.host.rpartition(":")[2]
    return f"odctl-{port}" if port.isdigit() else "odctl"


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    """Nothing but our own files may be loaded, and nobody may frame or keep the page."""
    access = request.app[SETTINGS].access
    websocket = _websocket_base(access, request.host) if host_name(request.host) in access.names else ""
    response.headers.update(
        {
            "Content-Security-Policy": (
                "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
                f"img-src 'self' data:; connect-src 'self' {websocket}; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
    )
    response.headers.pop("Server", None)


# --- routes ---------------------------------------------------------------------------------------------------


async def _page(request: web.Request) -> web.Response:
    settings, seats = request.app[SETTINGS], request.app[SEATS]
    if not await seats.wait_free():
        return _full(seats)
    title = f"odctl ▸ {settings.cluster}"
    template = string.Template((PAGE / "index.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=html.escape(title),
        websocket_url=html.escape(f"{_websocket_base(settings.access, request.host)}/ws"),
        font_size=min(max(_number(request.query.get("fontsize", ""), DEFAULT_FONT), MIN_FONT), MAX_FONT),
    )
    return web.Response(text=text, content_type="text/html")


async def _websocket(request: web.Request) -> web.StreamResponse:
    seats = request.app[SEATS]
    async with seats.seat() as is_free:
        if not is_free:
            return _full(seats)
        websocket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, timeout=CLOSE_TIMEOUT_S, max_msg_size=MAX_MESSAGE_BYTES
        )
        await websocket.prepare(request)
        seats.websockets.add(websocket)
        try:
            tab = Tab(request.app[SETTINGS].argv, websocket, request.app[DOWNLOADS])
            words = await tab.serve(
                _number(request.query.get("width", ""), 80), _number(request.query.get("height", ""), 24)
            )
        finally:
            seats.websockets.discard(websocket)
        if words:
            request.app[TOLD](words)
        return websocket


async def _download(request: web.Request) -> web.StreamResponse:
    """A file that the app of a tab delivers, as a screenshot is."""
    downloads = request.app[DOWNLOADS]
    try:
        download = await downloads.get_download_metadata(request.match_info["key"])
    except KeyError:
        return web.Response(status=404, text="odctl: this file is not on offer any more\n")
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    name = "".join(char if char.isalnum() or char in "._-" else "_" for char in download.file_name)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    await response.prepare(request)
    async for chunk in downloads.download(download.delivery_key):
        await response.write(chunk)
    await response.write_eof()
    return response


def _full(seats: Seats) -> web.Response:
    return web.Response(
        status=503,
        headers={"Retry-After": "5"},
        text=f"odctl: tabs open: {seats.count}, as many as --tabs allows; close one and load this page again\n",
    )


async def _close_tabs(app: web.Application) -> None:
    """Each handler sees its websocket end, and ends its process."""
    async with asyncio.TaskGroup() as group:
        for websocket in tuple(app[SEATS].websockets):
            group.create_task(_close(websocket))


async def _close(websocket: web.WebSocketResponse) -> None:
    await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"odctl web ends")


def _websocket_base(access: Access, host: str) -> str:
    return "ws" + access.base_url(host).removeprefix("http")


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else default


def tab_argv(python: str, inventory: str, flags: Sequence[str]) -> tuple[str, ...]:
    """The command line of a tab."""
    return (python, "-m", "odctl", "--inventory", inventory, *flags)
