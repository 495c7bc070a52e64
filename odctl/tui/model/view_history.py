"""Where one has been: views as the commands that lead to them, so that going back shows what was shown."""

from __future__ import annotations

MAX_VIEWS = 50


class ViewHistory:
    """A browser's history. Addresses are command lines (`hosts rack=r03`, `host gpu01`)."""

    def __init__(self) -> None:
        self._addresses: list[str] = []
        self._at = -1
        self._before = ""
        self._expected = ""
        self._is_held = False

    @property
    def current(self) -> str:
        return self._addresses[self._at] if self._addresses else ""

    def visit(self, address: str) -> None:
        """A view is on the screen. What had been left by going back is forgotten when it is a new one.

        While `back`, `forward` or `last` is on its way, or views are held, what is on the screen is no visit.
        """
        if self._is_held or (self._expected and address != self._expected):
            return
        self._expected = ""
        if not address or address == self.current:
            return
        if self._addresses:
            self._before = self.current
        self._addresses = [*self._addresses[: self._at + 1], address][-MAX_VIEWS:]
        self._at = len(self._addresses) - 1

    def hold(self) -> None:
        """Nothing is a visit until `release`: a command shows its view in several steps."""
        self._is_held = True

    def release(self) -> None:
        self._is_held = False

    def arrived(self) -> None:
        """The way is over, wherever it led: a view that is gone cannot be shown again."""
        self._expected = ""

    def back(self) -> str:
        """The view before this one; empty at the beginning."""
        return self._go(self._at - 1) if self._at > 0 else ""

    def forward(self) -> str:
        """The view that `back` left; empty at the end."""
        return self._go(self._at + 1) if self._at + 1 < len(self._addresses) else ""

    def last(self) -> str:
        """The view that was on the screen before this one: twice leads back here. Empty when there was none."""
        if not self._before:
            return ""
        self._expected = self._before
        return self._before

    def _go(self, at: int) -> str:
        self._before = self.current
        self._at = at
        self._expected = self.current
        return self.current
