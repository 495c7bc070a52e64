"""What can be typed after `:`. One table serves the prompt, its completion, the help and the palette."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Command(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    argument: str
    """What follows the name, for people; empty: nothing may."""
    help: str
    aliases: tuple[str, ...] = ()
    is_optional: bool = False
    """Whether the argument may be left out."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    command: str
    argument: str


class CommandError(ValueError):
    """A line that is no command; its message says what would be."""


COMMANDS: tuple[Command, ...] = (
    Command(name="fleet", argument="FILTER", help="hosts, filtered", aliases=("hosts",), is_optional=True),
    Command(name="devices", argument="FILTER", help="a row for every GPU and CPU", is_optional=True),
    Command(name="host", argument="NAME", help="one host in detail"),
    Command(name="plan", argument="FILE", help="preview a plan file"),
    Command(name="plans", argument="", help="plans of what runs, or the previewed one"),
    Command(name="apply", argument="FILE", help="apply a plan, after asking", is_optional=True),
    Command(name="edit", argument="", help="edit the plan that is shown"),
    Command(name="set", argument="KEY=VALUE", help="a serving setting, in the plan editor"),
    Command(name="deployments", argument="", help="what is served, and how well", aliases=("deploy", "status")),
    Command(name="chat", argument="DEPLOYMENT", help="ask a deployment", is_optional=True),
    Command(name="faults", argument="", help="open and healed faults"),
    Command(name="models", argument="", help="models that the hosts hold"),
    Command(name="events", argument="HOST", help="journal of an agent", is_optional=True, aliases=("logs",)),
    Command(name="learning", argument="", help="what measured runs taught", aliases=("strategies",)),
    Command(name="probes", argument="", help="measured devices and links", aliases=("links", "probe")),
    Command(name="sort", argument="COLUMN", help="sort the table; again turns it round"),
    Command(name="pause", argument="", help="stop the clock: , and . step through the last minutes"),
    Command(name="live", argument="", help="back to the present (of a recording: to its end)"),
    Command(name="time", argument="TIME", help="go to 14:02:31, -90s or 50% of what is kept"),
    Command(
        name="record", argument="FILE", help="write what is seen into a file; without a name: end", is_optional=True
    ),
    Command(name="unlock", argument="", help="allow changes for ten minutes"),
    Command(name="lock", argument="", help="back to read-only"),
    Command(name="theme", argument="NAME", help="colours", is_optional=True),
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


def completions(names: Sequence[str] = ()) -> list[str]:
    """Lines worth suggesting: every command, and those that take a host with each host's name."""
    lines = [command.name + (" " if command.argument else "") for command in COMMANDS]
    return lines + [f"host {name}" for name in names] + [f"events {name}" for name in names]


def _find(word: str) -> Command:
    if not word:
        raise CommandError("type a command, or ? for help")
    for command in COMMANDS:
        if word == command.name or word in command.aliases:
            return command
    found = [command for command in COMMANDS if command.name.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f":{word} could be {', '.join(command.name for command in found)}")
    raise CommandError(f"no command `{word}`: {', '.join(command.name for command in COMMANDS)}")
