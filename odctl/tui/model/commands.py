"""What can be typed after `:`. One table serves the prompt, its completion, the help and the palette."""

from __future__ import annotations

import shlex
from typing import Literal

import msgspec

Takes = Literal["", "hosts", "deployments", "plans", "filter", "columns", "themes"]
"""What an argument names, for completion; empty: nothing that is known beforehand."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    argument: str
    """What follows the name, for people; empty: nothing may."""
    help: str
    aliases: tuple[str, ...] = ()
    is_optional: bool = False
    """Whether the argument may be left out."""
    takes: Takes = ""
    changes: bool = False
    """Whether it may change the fleet: refused while the session is read-only, and not in its palette."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    command: str
    argument: str


class CommandError(ValueError):
    """A line that is no command; its message says what would be."""


def _view(name: str, what: str, *aliases: str) -> Command:
    return Command(name=name, argument="FILTER", help=what, aliases=aliases, is_optional=True, takes="filter")


COMMANDS: tuple[Command, ...] = (
    _view("fleet", "hosts, filtered", "hosts"),
    _view("devices", "a row for every GPU and CPU"),
    Command(name="host", argument="NAME", help="one host in detail", takes="hosts"),
    Command(name="plan", argument="NAME|FILE", help="a plan that runs, or preview a file", takes="plans"),
    Command(
        name="new",
        argument="MODEL",
        help="plan a model; more words are those of `odctl plan`",
        is_optional=True,
    ),
    Command(name="plans", argument="", help="plans of what runs, or the previewed one"),
    Command(
        name="apply",
        argument="NAME|FILE",
        help="apply a plan, after asking",
        is_optional=True,
        takes="plans",
        changes=True,
    ),
    Command(name="edit", argument="", help="edit the plan that is shown"),
    Command(
        name="compare",
        argument="A B",
        help="plans beside each other: files, or what runs",
        is_optional=True,
        takes="plans",
    ),
    Command(
        name="history",
        argument="DEPLOYMENT",
        help="its generations; b rolls back",
        is_optional=True,
        takes="deployments",
    ),
    Command(
        name="progress",
        argument="DEPLOYMENT",
        help="an apply of this session",
        is_optional=True,
        takes="deployments",
    ),
    Command(name="set", argument="KEY=VALUE", help="a serving setting, in the plan editor"),
    Command(
        name="deployments",
        argument="NAME",
        help="what is served, and how well; or one in full",
        aliases=("deploy", "status"),
        is_optional=True,
        takes="deployments",
    ),
    Command(
        name="bench",
        argument="NAME",
        help="put load on a deployment, after asking",
        is_optional=True,
        takes="deployments",
        changes=True,
    ),
    _view("faults", "open and healed faults"),
    _view("learning", "what measured runs taught", "strategies"),
    Command(
        name="logs",
        argument="HOST",
        help="journal of an agent",
        is_optional=True,
        aliases=("events",),
        takes="hosts",
    ),
    Command(name="chat", argument="DEPLOYMENT", help="ask a deployment", is_optional=True, takes="deployments"),
    _view("models", "models that the hosts hold"),
    _view("probes", "measured devices and links", "links", "probe"),
    Command(name="sort", argument="COLUMN", help="sort the table; again turns it round", takes="columns"),
    Command(name="pause", argument="", help="stop the clock: , and . step through the last minutes"),
    Command(name="live", argument="", help="back to the present (of a recording: to its end)"),
    Command(name="time", argument="TIME", help="go to 14:02:31, -90s or 50% of what is kept"),
    Command(
        name="record", argument="FILE", help="write what is seen into a file; without a name: end", is_optional=True
    ),
    Command(name="unlock", argument="", help="allow changes for ten minutes"),
    Command(name="lock", argument="", help="back to read-only"),
    Command(name="theme", argument="NAME", help="colours", is_optional=True, takes="themes"),
    Command(name="help", argument="", help="keys and commands"),
    Command(name="quit", argument="", help="leave; deployments stay", aliases=("q",)),
)


def parse_command(text: str) -> Call:
    """The call that a line means. An unambiguous beginning of a name is enough. Raises CommandError."""
    word, _, argument = text.strip().removeprefix(":").partition(" ")
    command = _find(word.lower())
    argument = argument.strip()
    if argument and not command.argument:
        raise CommandError(f":{command.name} takes nothing after it")
    if command.argument and not command.is_optional and not argument:
        raise CommandError(f":{command.name} needs {command.argument}")
    return Call(command=command.name, argument=argument)


def words_of(argument: str) -> list[str]:
    """The names in an argument; one with a space stands in quotes. Raises CommandError."""
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise CommandError(f"`{argument}`: {error}") from error


def command_named(name: str) -> Command | None:
    """The command of that name or alias; None for what is none."""
    return next((command for command in COMMANDS if name == command.name or name in command.aliases), None)


def _find(word: str) -> Command:
    if not word:
        raise CommandError("type a command, or ? for help")
    if (named := command_named(word)) is not None:
        return named
    found = [command for command in COMMANDS if command.name.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f":{word} could be {', '.join(command.name for command in found)}")
    raise CommandError(f"no command `{word}`: {', '.join(command.name for command in COMMANDS)}")
