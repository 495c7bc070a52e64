"""Pictures of the real app: every view at every size, one line of `screenshot_views.VIEWS` each.

A view that does not come, or a screen that no view shows, fails loudly at the end, after all others were taken.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from textual.message import Message
from textual.notifications import Notify
from textual.pilot import Pilot
from textual.screen import Screen

from odctl.tui.app import OdctlApp
from odctl.tui.screens import import_screens

SIZES = ((80, 24), (140, 40))
LIVE_TIMEOUT_S = 60.0
VIEW_TIMEOUT_S = 60.0
SETTLE_S = 2.5
"""A little more than two snapshots: what is drawn is then of the screen that is shown."""

TOLD_LINES = 12
"""Of the screen that stands where another was wanted."""

MakeApp = Callable[[], OdctlApp]


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What the views are of. A view's command may name its fields in braces: `:plan {plan}`."""

    deployment: str = ""
    host: str = ""
    model: str = ""
    plan: str = ""
    """A plan file of what runs."""
    other_plan: str = ""
    """Another one of the same deployment, which `apply` applies."""
    question: str = "What does this function return?"


Go = Callable[[Pilot[None], OdctlApp, Scene], Awaitable[None]]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """From the fleet's screen: `command` is run, `keys` are pressed, `go` does what takes more than that."""

    name: str
    screen: str
    """The class of the screen that is then on top."""
    command: str = ""
    keys: tuple[str, ...] = ()
    go: Go | None = None
    shows: str = ""
    """A pattern that the screen's text has when it is what it should be."""
    themes: tuple[str, ...] = ()
    """In which it is taken besides the usual one."""
    leave: tuple[str, ...] = ()
    """Pressed afterwards, where the screen would remember what the keys before have changed."""


class MissingView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    reason: str


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    pictures: tuple[Path, ...]
    missing: tuple[MissingView, ...]


async def take_pictures(
    make_app: MakeApp,
    views: Sequence[View],
    out: Path,
    *,
    scene: Scene | None = None,
    label: str = "",
    warm_up_s: float = 5.0,
    sizes: Sequence[tuple[int, int]] = SIZES,
    say: Callable[[str], None] = lambda _: None,
) -> Taken:
    """Walk through the views at every size. The app may have any feed; `label` tells in names and titles which.

    Raises TimeoutError when no host is live in time.
    """
    pictures: list[Path] = []
    missing: list[MissingView] = []
    scene = scene or Scene()
    for width, height in sizes:
        app, said = make_app(), list[str]()
        app.animation_level = "none"

        def listen(message: Message, said: list[str] = said) -> None:
            if isinstance(message, Notify):
                said.append(f"{message.notification.title} {message.notification.message}".strip())

        async with app.run_test(size=(width, height), notifications=True, message_hook=listen) as pilot:
            await until(lambda: _is_live(app), LIVE_TIMEOUT_S)  # noqa: B023 - awaited in this turn of the loop
            await asyncio.sleep(warm_up_s)
            for view in views:
                said.clear()
                reason = await _reach(view, pilot, app, scene, said)
                if reason:
                    missing.append(MissingView(name=f"{view.name} at {width}x{height}", reason=reason))
                    say(f"✗ {view.name} at {width}x{height}: {reason}")
                    continue
                for theme in ("", *view.themes):
                    path = (
                        out / f"{'-'.join(part for part in (view.name, label, theme) if part)}-{width}x{height}.svg"
                    )
                    await _take(pilot, app, path, theme=theme, title=_title(view, label))
                    pictures.append(path)
                    say(str(path))
                if view.leave:
                    await pilot.press(*view.leave)
            await _home(pilot, app)
    return Taken(pictures=tuple(pictures), missing=tuple(missing))


def screens_without_view(views: Iterable[View]) -> tuple[str, ...]:
    """Screens of `odctl.tui.screens` that no view shows; a class that others are made of is none."""
    shown = {view.screen for view in views}
    return tuple(sorted(screen_names() - shown))


def screen_names() -> frozenset[str]:
    found: set[type[Screen[Any]]] = set()
    for module in import_screens():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Screen) and value.__module__.startswith("odctl."):
                found.add(value)
    bases = {base for screen in found for base in screen.__mro__[1:]}
    return frozenset(screen.__name__ for screen in found - bases)


def screen_text(app: OdctlApp) -> str:
    """Every line of the screen, as painted."""
    strips = app.screen._compositor.render_strips(app.size)
    return "\n".join(strip.text for strip in strips)


async def until(condition: Callable[[], bool], timeout_s: float | None = None) -> None:
    """Raises TimeoutError when it does not come true in time: that of a view, unless another is given."""
    async with asyncio.timeout(VIEW_TIMEOUT_S if timeout_s is None else timeout_s):
        while not condition():  # noqa: ASYNC110 - the app has no event for "what is wanted stands there"
            await asyncio.sleep(0.05)


async def _reach(view: View, pilot: Pilot[None], app: OdctlApp, scene: Scene, said: Sequence[str]) -> str:
    """Go there. Why it did not work, with what the app `said` meanwhile, or nothing."""
    await _home(pilot, app)
    if view.command:
        app.run_command(view.command.format_map(msgspec.structs.asdict(scene)))
        await pilot.pause()
    if view.keys:
        await pilot.press(*view.keys)
    try:
        if view.go is not None:
            await view.go(pilot, app, scene)
        await until(lambda: _is_shown(view, app))
        await pilot.pause(SETTLE_S)
    except TimeoutError:
        pass  # told below, by what stands there instead
    if _is_shown(view, app):
        return ""
    wanted = f"{view.screen} with {view.shows!r}" if view.shows else view.screen
    reason = f"no {wanted} but {type(app.screen).__name__}" + (
        f" ({'; '.join(dict.fromkeys(said))})" if said else ""
    )
    return reason + "".join(f"\n    {line.rstrip()}" for line in screen_text(app).splitlines()[:TOLD_LINES])


def _is_shown(view: View, app: OdctlApp) -> bool:
    if type(app.screen).__name__ != view.screen:
        return False
    return not view.shows or re.search(view.shows, screen_text(app)) is not None


async def _take(pilot: Pilot[None], app: OdctlApp, path: Path, *, theme: str, title: str) -> None:
    usual = app.theme
    if theme:
        app.theme = theme
        app.redraw()
        await pilot.pause(SETTLE_S / 2)
    picture = app.export_screenshot(title=title)
    await asyncio.to_thread(path.write_text, picture, encoding="utf-8")
    if theme:
        app.theme = usual


async def _home(pilot: Pilot[None], app: OdctlApp) -> None:
    """The fleet's screen as it is at first, from wherever the view before has left the app."""
    for mode in (app.current_mode, "fleet"):
        while len(app.screen_stack) > 1:
            app.pop_screen()
        if mode != app.current_mode:
            app.switch_mode(mode)
        await pilot.pause()
    app.clear_notifications()
    app.run_command("fleet")
    await pilot.pause()


def _title(view: View, label: str) -> str:
    return f"odctl: {view.name} ({label})" if label else f"odctl: {view.name}"


def _is_live(app: OdctlApp) -> bool:
    return app.snapshot is not None and all(host.state != "connecting" for host in app.snapshot.hosts)
