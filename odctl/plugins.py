"""Strategies that other distributions bring, by the entry point group `odctl.strategies`.

Names are read from metadata, which imports none of them; a plugin is imported when a plan is made that may use it.
Only the operator's machine needs it: what it makes is a plan like any other.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import click

from agent.errors import FleetError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from agent.planner.layout import Layout
    from agent.planner.problem import Problem, Strategy

GROUP = "odctl.strategies"
BUILT_IN = ("adaptive", "pipeline", "tensor", "hybrid")
RESERVED = (*BUILT_IN, "manual")
"""`manual` is what plans that were written by hand record."""
WRONG_PLUGIN = "E119"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")


# click's class takes a parameter for checkers only.
if TYPE_CHECKING:
    _TextParameter = click.ParamType[str]
else:
    _TextParameter = click.ParamType


class StrategyParameter(_TextParameter):
    """A strategy's name: ours, or that of an installed plugin, none of which is imported to list them."""

    name = "strategy"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        return f"[{'|'.join(strategy_names())}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = strategy_names()
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, names))}.", param, ctx)
        return value

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[click.shell_completion.CompletionItem]:
        return [
            click.shell_completion.CompletionItem(name) for name in strategy_names() if name.startswith(incomplete)
        ]


def strategy_names() -> tuple[str, ...]:
    """Ours, then those of plugins, sorted."""
    return (*BUILT_IN, *sorted({point.name for point in _points()} - set(BUILT_IN)))


def load_strategies(asked: str) -> tuple[Strategy, ...]:
    """What a plan by this strategy may use: all plugins for `adaptive`, one by its name, none for ours.

    Raises FleetError E119 for a plugin that cannot be imported, has a name that is taken, or is no strategy.
    """
    points = _points()
    if asked != "adaptive":
        points = [point for point in points if point.name == asked] if asked not in BUILT_IN else []
    seen: dict[str, EntryPoint] = {}
    for point in points:
        if point.name in RESERVED:
            raise _wrong(point, f"its name is taken: `{point.name}` is a strategy of odctl's own")
        if point.name in seen:
            raise _wrong(point, f"its name is taken by {_where(seen[point.name])}")
        if not NAME.match(point.name):
            raise _wrong(point, "a strategy's name is a lower-case letter, then letters, digits, `_` and `-`")
        seen[point.name] = point
    return tuple(PluginStrategy(point, _load(point)) for point in points)


class PluginStrategy:
    """A plugin's strategy whose exceptions name where it came from."""

    def __init__(self, point: EntryPoint, strategy: Strategy) -> None:
        self.name = point.name
        self._point = point
        self._strategy = strategy

    def propose(self, problem: Problem) -> list[Layout]:
        try:
            return list(self._strategy.propose(problem))
        except FleetError:
            raise
        except Exception as error:
            raise _wrong(self._point, f"it failed to propose: {_words(error)}") from error


def _load(point: EntryPoint) -> Strategy:
    try:
        found = point.load()
        is_made = isinstance(found, type) or not hasattr(found, "propose")
        strategy = found() if is_made and callable(found) else found
    except Exception as error:
        raise _wrong(point, f"it cannot be imported: {_words(error)}") from error
    problem = _shape_problem(strategy, point.name)
    if problem:
        raise _wrong(point, problem)
    loaded: Strategy = strategy
    return loaded


def _shape_problem(strategy: Any, name: str) -> str:
    """What keeps an object from being an agent.planner.problem.Strategy of this name; empty when nothing does."""
    kind = type(strategy).__name__
    if getattr(strategy, "name", None) != name:
        return f"{kind}.name is {getattr(strategy, 'name', None)!r}, and must be {name!r} as the entry point's is"
    propose = getattr(strategy, "propose", None)
    if not callable(propose):
        return f"{kind} has no method propose(problem) that returns layouts"
    try:
        inspect.signature(propose).bind(None)
    except TypeError:
        return f"{kind}.propose{inspect.signature(propose)} must take one argument, the problem"
    return ""


def _points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, _distribution(point), point.value))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def _where(point: EntryPoint) -> str:
    return f"`{point.name} = {point.value}` of {_distribution(point)}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _wrong(point: EntryPoint, problem: str) -> FleetError:
    return FleetError(
        WRONG_PLUGIN,
        f"strategy plugin {_where(point)} ({GROUP}): {problem}",
        hint=f"uninstall or update {_distribution(point)}, or plan with --strategy pipeline, tensor or hybrid",
    )
