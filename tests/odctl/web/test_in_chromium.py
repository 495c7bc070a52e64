"""The page in a real browser. `make test-browser` brings what it needs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from tests.odctl.web.serving import Served, app_argv, plain, serving, until, write_inventory

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, WebSocket

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: make browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine: make browser"),
]
PICTURES = os.environ.get("ODCTL_TEST_PICTURES", "")
"""A directory for screenshots, for people to look at."""


class Watched:
    """A page, what its terminal was sent, what it asked for, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.shown = ""
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("websocket", self._watch_socket)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type in {"error", "warning"} else None,
        )

    def _watch_socket(self, socket: WebSocket) -> None:
        self.asked.append(socket.url)
        socket.on("framereceived", self._take)

    def _take(self, payload: str | bytes) -> None:
        if isinstance(payload, bytes):
            self.shown += plain(payload)

    async def wait_for(self, text: str) -> None:
        """Until the terminal is sent a text; what it was sent before does not count the next time."""
        try:
            await until(lambda: text in self.shown)
        except TimeoutError:
            raise AssertionError(f"no {text!r} in {self.shown[-2000:]!r}; {self.complaints}") from None
        self.shown = self.shown.partition(text)[2]

    async def picture(self, name: str) -> None:
        if PICTURES:
            await asyncio.sleep(1.0)  # the terminal paints a frame later
            await self.page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with playwright.async_playwright() as driver:
        # Chromium's sandbox does not run as root, which containers are.
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        try:
            yield browser
        finally:
            await browser.close()


async def test_the_page_opens_and_keys_change_the_view(tmp_path: Path) -> None:
    async with serving(app_argv(write_inventory(tmp_path))) as served, chromium() as browser:
        watched = Watched(await browser.new_page(viewport={"width": 1200, "height": 800}))
        page = watched.page
        await page.goto(served.entrance)
        assert page.url == f"{served.base}/"
        assert served.token not in await page.content()
        await page.wait_for_selector("body.-first-byte")
        await watched.wait_for("▸ Fleet")
        await watched.picture("fleet")
        # Without a click first: the page gives the terminal the focus.
        await page.keyboard.press("2")
        await watched.wait_for("▸ Plans")
        await watched.picture("plans")
        await page.keyboard.press("Control+x")
        await watched.wait_for("--read-only")
        await page.keyboard.press("q")
        await page.wait_for_selector("body.-closed")
        await watched.picture("ended")
        await until(lambda: served.num_open == 0)
        await page.click("#again")
        await watched.wait_for("▸ Fleet")
        assert all(
            url.startswith((served.base, f"ws://127.0.0.1:{served.port}/", "data:")) for url in watched.asked
        )
        # textual.js tells its closed socket that the terminal has lost the focus to the button.
        assert [text for text in watched.complaints if "already in CLOSING or CLOSED" not in text] == []
        assert served.told == []


async def test_without_the_token_there_is_no_page(tmp_path: Path) -> None:
    async with serving(app_argv(write_inventory(tmp_path))) as served, chromium() as browser:
        page = await browser.new_page()
        answer = await page.goto(served.base)
        assert answer is not None
        assert answer.status == 401
        assert "with its token" in await page.inner_text("body")
        assert served.num_open == 0


STEAL = """
<title>waiting</title>
<script>
  const socket = new WebSocket("ws://127.0.0.1:%(port)d/ws?width=80&height=24");
  socket.onopen = () => { document.title = "opened"; };
  socket.onerror = () => { document.title = "refused"; };
</script>
<iframe src="http://127.0.0.1:%(port)d/"></iframe>
"""


@asynccontextmanager
async def foreign_site(served: Served) -> AsyncIterator[int]:
    """A page on another port of the same address: the same *site*, so the browser sends it our cookie."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=STEAL % {"port": served.port}, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"], ids=["with the cookie", "of another site"])
async def test_a_foreign_page_reaches_nothing_in_the_operators_browser(tmp_path: Path, name: str) -> None:
    async with (
        serving(app_argv(write_inventory(tmp_path))) as served,
        foreign_site(served) as port,
        chromium() as browser,
    ):
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(served.entrance)
        await page.wait_for_selector("body.-first-byte")
        assert served.num_open == 1
        foreign = await context.new_page()
        await foreign.goto(f"http://{name}:{port}/")
        await foreign.wait_for_function("document.title !== 'waiting'")
        assert await foreign.title() == "refused"
        assert f"a page of 'http://{name}:{port}' may not speak to" in "".join(served.told)
        assert any("may link to this page, not load parts of it" in line for line in served.told)
        assert served.num_open == 1
