"""What is different where the UI is a tab of a browser, a process of `odctl web`."""

from __future__ import annotations

import os
from typing import Any

from textual.app import App

PARENT_CHECK_S = 2.0


def leave_with_parent(app: App[Any]) -> None:
    """End with the server that the tab belongs to: where it was killed, nobody else would tell.

    The end of stdin does not: Textual's web driver stops reading then, and the app runs on.
    """
    if not app.is_web:
        return
    parent = os.getppid()

    def check() -> None:
        if os.getppid() != parent:
            app.exit(return_code=1)

    app.set_interval(PARENT_CHECK_S, check)
