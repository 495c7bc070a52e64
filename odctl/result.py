"""What a command has to say, as a value; one renderer makes prose or JSON of it, and one place knows exit codes.

stdout is the result, stderr is progress and errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from agent.errors import ErrorDetail, FleetError

JSON_SCHEMA = "1.0"


class ExitCode(IntEnum):
    OK = 0
    ERROR = 1
    CHANGES = 2
    BAD_FILE = 3
    UNREACHABLE = 4
    PARTIAL = 5
    STALE = 6
    LOCKED = 7
    DOES_NOT_FIT = 8
    INTERRUPTED = 130


_EXIT_BY_GROUP = {
    "E1": ExitCode.BAD_FILE,
    "E2": ExitCode.UNREACHABLE,
    "E3": ExitCode.PARTIAL,
    "E4": ExitCode.STALE,
    "E5": ExitCode.LOCKED,
    "E6": ExitCode.DOES_NOT_FIT,
}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` names the JSON's shape (`plan`, `status` …); `data` is that JSON; `prose` is for people."""

    kind: str
    data: Any
    prose: str
    exit_code: ExitCode = ExitCode.OK
    is_printed: bool = False
    """It was printed as it came; there is nothing more to say."""


def exit_code_of(error: FleetError) -> ExitCode:
    return _EXIT_BY_GROUP.get(error.code[:2], ExitCode.ERROR)


def render(result: Result, *, as_json: bool) -> str:
    """The text for stdout, newline included. JSON is one object: schema, kind and data."""
    if as_json:
        data = msgspec.to_builtins(result.data)
        return json.dumps({"schema": JSON_SCHEMA, "kind": result.kind, "data": data}, indent=2) + "\n"
    return result.prose if result.prose.endswith("\n") or not result.prose else result.prose + "\n"


def json_line(result: Result) -> str:
    """As `render` makes JSON, but on one line: for results that come one after the other."""
    data = msgspec.to_builtins(result.data)
    return json.dumps({"schema": JSON_SCHEMA, "kind": result.kind, "data": data}) + "\n"


def render_error(error: ErrorDetail) -> str:
    """`error[E601]: host: message` with the way out below, for stderr. A message may bring its own layout."""
    if error.message.startswith("error["):
        return error.message + "\n"
    where = f"{error.host}: " if error.host else ""
    hint = f"\n  = {error.hint}" if error.hint else ""
    return f"error[{error.code}]: {where}{error.message}{hint}\n"


def run_command(body: Callable[[], Result], *, as_json: bool) -> None:
    """Run a verb's body, print what it has to say, and exit with its code. The only place that does so."""
    try:
        result = body()
    except FleetError as error:
        if as_json:
            failure = Result(kind="error", data=error.detail, prose="")
            sys.stdout.write(render(failure, as_json=True))
        sys.stderr.write(render_error(error.detail))
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(ExitCode.INTERRUPTED)
    if not result.is_printed:
        sys.stdout.write(render(result, as_json=as_json))
        sys.stdout.flush()
    if result.exit_code is not ExitCode.OK:
        sys.exit(result.exit_code)
