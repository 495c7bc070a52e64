"""The screens: one file each, and what they share.

`screens.plans` imports that file when it is first asked for. All of them, with what they stand on, took a fifth of
the time in which the app starts, and it starts with one.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odctl.tui.screens import apply as apply
    from odctl.tui.screens import bench_dialog as bench_dialog
    from odctl.tui.screens import chat as chat
    from odctl.tui.screens import compare as compare
    from odctl.tui.screens import confirm as confirm
    from odctl.tui.screens import deployment as deployment
    from odctl.tui.screens import deployments as deployments
    from odctl.tui.screens import events as events
    from odctl.tui.screens import faults as faults
    from odctl.tui.screens import file_name as file_name
    from odctl.tui.screens import help as help  # noqa: A004 - its file's name
    from odctl.tui.screens import host as host
    from odctl.tui.screens import jump as jump
    from odctl.tui.screens import learning as learning
    from odctl.tui.screens import models as models
    from odctl.tui.screens import new_plan as new_plan
    from odctl.tui.screens import plan_editor as plan_editor
    from odctl.tui.screens import plan_history as plan_history
    from odctl.tui.screens import plans as plans
    from odctl.tui.screens import probes as probes
else:

    def __getattr__(name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"no screen `{name}`") from error


def import_screens() -> list[ModuleType]:
    """Every module of this room."""
    import pkgutil

    return [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
