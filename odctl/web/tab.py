"""One tab of the browser: a process of `odctl`, its screen sent over a websocket, and its end.

Whatever happens, the process does not outlive `Tab.serve`: it is asked to quit, then terminated, then killed, with
all that is in its session. textual-serve's own service waits for it without a limit, and runs it in a shell.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Sequence

import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

PRELUDE = b"__GANGLION__\n"
PRELUDE_LINES = 10
"""As textual-serve does it: what comes before this line is not the screen's."""
QUIT_TIMEOUT_S = 5.0
"""The app closes its connections to the hosts within this."""
TERMINATE_TIMEOUT_S = 3.0
SEND_TIMEOUT_S = 10.0
"""A process that takes no keys for so long hangs, and is ended."""
COMPLAINT_BYTES = 8192
"""Of stderr, kept to tell why the process ended."""
COMPLAINT_TIMEOUT_S = 1.0
MIN_SIDE, MAX_SIDE = 1, 1000
"""Cells of a terminal in either direction."""


class Tab(AppService):
    """The process of one open websocket. `serve` runs it from begin to end."""

    def __init__(self, argv: Sequence[str], websocket: web.WebSocketResponse, downloads: DownloadManager) -> None:
        super().__init__(
            " ".join(argv),
            write_bytes=self._to_browser,
            write_str=self._text_to_browser,
            close=self._close_browser,
            download_manager=downloads,
        )
        self._argv = tuple(argv)
        self._websocket = websocket
        self._complaint = bytearray()

    async def serve(self, width: int, height: int) -> str:
        """Run until the app quits or the browser leaves; then nothing of it is left.

        What there is to say of its end: empty when it ended as it should.
        """
        process = await self._open_app_process(_side(width), _side(height))
        async with asyncio.TaskGroup() as group:
            complaining = group.create_task(self._keep_complaint(process))
            group.create_task(self._show(process, complaining))
            try:
                await self._listen()
            finally:
                await self._end(process)
        if process.returncode is not None and process.returncode < 0:
            return f"a tab's odctl did not quit in time: killed by signal {-process.returncode}"
        return self._end_words(process)

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        # A session of its own: ^c in the server's terminal is the server's, and a kill reaches all of it.
        process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._build_environment(width=width, height=height),
            start_new_session=True,
        )
        self._process, self._stdin = process, process.stdin
        return process

    # --- from the process -----------------------------------------------------------------------------------

    async def _show(self, process: Process, complaining: asyncio.Task[None]) -> None:
        """The screen, until the process ends; then the browser is told."""
        assert process.stdout is not None
        if await self._is_app(process.stdout):
            try:
                while True:
                    await self._take_packet(process.stdout)
            except asyncio.IncompleteReadError:
                pass  # its end: a packet is cut only where the process was
        if self._websocket.closed:
            return
        await process.wait()
        await asyncio.wait({complaining}, timeout=COMPLAINT_TIMEOUT_S)
        if words := self._end_words(process):
            # On the terminal, which stays in sight: why there is no UI.
            await self._to_browser(b"\x1b[?1049l\x1b[0m" + words.replace("\n", "\r\n").encode())
        await self._close_browser()

    async def _is_app(self, stdout: asyncio.StreamReader) -> bool:
        for _ in range(PRELUDE_LINES):
            line = await stdout.readline()
            if line == PRELUDE:
                return True
            if not line:
                break
        return False

    async def _take_packet(self, stdout: asyncio.StreamReader) -> None:
        head = await stdout.readexactly(5)
        payload = await stdout.readexactly(int.from_bytes(head[1:], "big"))
        match head[:1]:
            case b"D":
                await self.on_data(payload)
            case b"M":
                await self.on_meta(payload)
            case b"P":
                await self.on_packed(payload)
            case kind:
                raise AssertionError(f"textual's web driver sent a packet of kind {kind!r}")

    async def _keep_complaint(self, process: Process) -> None:
        assert process.stderr is not None
        while data := await process.stderr.read(4096):
            self._complaint += data
            del self._complaint[:-COMPLAINT_BYTES]

    def _end_words(self, process: Process) -> str:
        """Nothing of an app that quit; else its exit code, and the end of what it wrote to stderr."""
        if not process.returncode:
            return ""
        said = self._complaint.decode(errors="replace").strip()
        return f"odctl ended with {process.returncode}\n{said}".rstrip()

    # --- to the browser ---------------------------------------------------------------------------------------

    async def _to_browser(self, data: bytes) -> None:
        """What nobody looks at any more is dropped, so that the process can come to its end."""
        if not self._websocket.closed:
            try:
                await self._websocket.send_bytes(data)
            except ConnectionResetError:
                pass

    async def _text_to_browser(self, text: str) -> None:
        if not self._websocket.closed:
            try:
                await self._websocket.send_str(text)
            except ConnectionResetError:
                pass

    async def _close_browser(self) -> None:
        await self._websocket.close()

    # --- from the browser -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Keys, sizes and pings, until the websocket is closed by either side, or the process takes no more."""
        async for message in self._websocket:
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._take_message(message)
            except ValueError as error:
                await self._websocket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=str(error).encode()[:100])
                return
            except TimeoutError:
                return

    async def _take_message(self, message: WSMessage) -> None:
        """Raises ValueError for what our page does not send."""
        if message.type is not WSMsgType.TEXT:
            raise ValueError(f"a message of type {message.type.name}")
        match msgspec.json.decode(message.data):
            case ["stdin", str(keys)]:
                await self.send_bytes(keys.encode(errors="replace"))
            case ["resize", {"width": int(width), "height": int(height)}]:
                await self.set_terminal_size(_side(width), _side(height))
            case ["ping", sent]:
                await self._text_to_browser(msgspec.json.encode(["pong", sent]).decode())
            case ["focus", *_]:
                await self.focus()
            case ["blur", *_]:
                await self.blur()
            case _:
                raise ValueError("a message that the page does not send")

    # --- the end ----------------------------------------------------------------------------------------------

    async def _end(self, process: Process) -> None:
        """Quit, terminate, kill: each within its limit. The screen goes on being read, so none of them blocks."""
        try:
            await self._download_manager.cancel_app_downloads(app_service_id=self.app_service_id)
            if process.returncode is None:
                await _within(QUIT_TIMEOUT_S, self._quit(process))
            if process.returncode is None:
                _signal_session(process, signal.SIGTERM)
                await _within(TERMINATE_TIMEOUT_S, process.wait())
        finally:
            if process.returncode is None:
                _signal_session(process, signal.SIGKILL)
                await process.wait()

    async def _quit(self, process: Process) -> None:
        await self.send_meta({"type": "quit"})
        await process.wait()


def _side(cells: int) -> int:
    return min(max(cells, MIN_SIDE), MAX_SIDE)


async def _within(timeout_s: float, waiting: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await waiting
    except TimeoutError:
        pass  # the caller sees it by the return code, and goes on to the next step


def _signal_session(process: Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # nobody is left in it
