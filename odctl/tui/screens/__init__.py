"""The screens: one file each, and what they share."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def import_screens() -> list[ModuleType]:
    """Every module of this room. The app itself imports a screen when it is first opened, where that costs much."""
    return [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
