"""The line at the bottom that `:` and `/` open: commands with completion, and a filter that works as typed.

Tab takes the candidates above it one after the other; up and down recall what was entered before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, Static

from odctl.tui.model.completion import candidate_line
from odctl.tui.widgets.lines import LinesBar

Kind = Literal[":", "/"]
Complete = Callable[[str], Sequence[str]]
"""Whole lines that a typed one may become, the likeliest first."""
HISTORY_LINES = 50


class _FirstCandidate(Suggester):
    """Shows the likeliest line behind the typed one; the right arrow takes it."""

    def __init__(self, complete: Complete) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._complete = complete

    async def get_suggestion(self, value: str) -> str | None:
        found = self._complete(value) if value else ()
        return found[0] if found and found[0].startswith(value) else None


class Prompt(Vertical):
    HELP = "Enter does it, escape does not. Tab takes what stands above the line, right what stands behind it."
    DEFAULT_CSS = """
    Prompt { height: auto; display: none; }
    Prompt #candidates { height: 1; }
    Prompt Horizontal { height: 1; }
    Prompt #sign { width: 2; padding: 0 0 0 1; text-style: bold; }
    Prompt Input { border: none; height: 1; width: 1fr; padding: 0; background: transparent; }
    Prompt Input:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete(1)", "Next candidate", id="prompt.complete", show=False),
        Binding("shift+tab", "complete(-1)", "Candidate before", id="prompt.complete_back", show=False),
        Binding("up", "recall(-1)", "Line before", id="prompt.earlier", show=False),
        Binding("down", "recall(1)", "Next line", id="prompt.later", show=False),
    ]

    class Submitted(Message):
        """A command was entered, or a filter confirmed."""

        def __init__(self, kind: Kind, text: str) -> None:
            super().__init__()
            self.kind = kind
            self.text = text

    class FilterChanged(Message):
        """The filter as typed so far."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__()
        self.kind: Kind = ":"
        self._complete: Complete = lambda _text: ()
        self._candidates: Sequence[str] = ()
        self._typed = ""
        """What the candidates belong to: tab replaces the line, and they stay those of what was typed."""
        self._chosen: int | None = None
        self._entered: dict[Kind, list[str]] = {":": [], "/": []}
        self._recalled = 0

    def compose(self) -> ComposeResult:
        yield LinesBar(id="candidates")
        with Horizontal():
            yield Static(":", id="sign")
            # Not selected: what is typed goes behind the beginning that a key has typed already.
            yield Input(id="prompt-input", compact=True, select_on_focus=False)

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Lines that tab goes through."""
        return tuple(self._candidates)

    def open(self, kind: Kind, *, text: str = "", complete: Complete | None = None) -> None:
        """Show the line, with the focus in it."""
        self.kind = kind
        self._complete = complete or (lambda _text: ())
        self._recalled = len(self._entered[kind])
        self.query_one("#sign", Static).update(kind)
        entry = self.query_one(Input)
        entry.suggester = _FirstCandidate(self._complete)
        entry.value = text
        entry.cursor_position = len(text)
        self._offer(text)
        # At once, not through `focus()`, which waits: keys typed fast after `:` belong to this line already.
        self.display = True
        self.screen.set_focus(entry)

    def close(self) -> None:
        self.display = False
        self.query_one(Input).suggester = None

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        is_taken = self._chosen is not None and event.value == self._candidates[self._chosen]
        if self.is_open and not is_taken:
            self._offer(event.value)
        if self.is_open and self.kind == "/":
            self.post_message(self.FilterChanged(event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        entered = self._entered[self.kind]
        if event.value.strip() and event.value != (entered[-1] if entered else ""):
            self._entered[self.kind] = [*entered[-HISTORY_LINES + 1 :], event.value]
        self.close()
        self.post_message(self.Submitted(self.kind, event.value))

    def action_complete(self, step: int) -> None:
        if not self._candidates:
            return
        start = (-1 if step > 0 else 0) if self._chosen is None else self._chosen
        self._chosen = (start + step) % len(self._candidates)
        self._put(self._candidates[self._chosen])
        if len(self._candidates) == 1:
            # Nothing to go round: what follows is offered.
            self._offer(self._candidates[0])
        else:
            self._show_candidates()

    def action_recall(self, step: int) -> None:
        lines = [*self._entered[self.kind], ""]
        self._recalled = min(len(lines) - 1, max(0, self._recalled + step))
        self._put(lines[self._recalled])

    def _put(self, text: str) -> None:
        entry = self.query_one(Input)
        entry.value = text
        entry.cursor_position = len(text)

    def _offer(self, typed: str) -> None:
        self._typed, self._chosen = typed, None
        self._candidates = tuple(self._complete(typed))
        self._show_candidates()

    def _show_candidates(self) -> None:
        width = self.screen.size.width
        self.query_one("#candidates", LinesBar).show(
            [candidate_line(self._candidates, self._typed, self._chosen, width=width)]
        )
