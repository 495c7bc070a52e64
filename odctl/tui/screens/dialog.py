"""What questions look like: a box in the middle of the screen that asked."""

from __future__ import annotations

from textual.screen import ModalScreen, ScreenResultType


class Dialog(ModalScreen[ScreenResultType]):
    """A question. Its parts have the names that are told of here, as far as it has them."""

    DEFAULT_CSS = """
    Dialog { align: center middle; }
    Dialog #dialog {
        width: 72; max-width: 96%; height: auto; max-height: 90%; border: round $warning; padding: 0 1;
        background: $surface;
    }
    Dialog #dialog-title { text-style: bold; }
    Dialog #dialog-text { height: auto; max-height: 14; margin: 1 0; overflow-x: auto; }
    Dialog #dialog-text Static { width: auto; }
    Dialog #dialog-hint { text-style: dim; }
    Dialog #dialog-buttons { height: 1; align-horizontal: right; }
    Dialog #dialog-buttons Button { margin-left: 2; }
    Dialog #dialog-buttons Button:focus { text-style: bold reverse; }
    Dialog #file-name { border: none; height: 1; margin: 1 0; padding: 0 1; background: $panel; }
    Dialog #file-name:focus { border: none; }
    """
