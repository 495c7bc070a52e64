"""What can go wrong on the way to a host, in one voice. No I/O, no SSH library.

| code | trouble |
|---|---|
| E201 | unreachable, or the connection was lost |
| E202 | authentication refused |
| E203 | unknown host key |
| E204 | changed, revoked or wrongly pinned host key |
| E205 | forwarding switched off on the host |
| E206 | nothing listens on the socket there |
| E301 | a command or a copy failed on the host |
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from agent.errors import FleetError
from odctl.ssh.transport import RemoteResult

UNREACHABLE = "E201"
AUTHENTICATION = "E202"
UNKNOWN_HOST_KEY = "E203"
WRONG_HOST_KEY = "E204"
FORWARDING_DISABLED = "E205"
NO_SOCKET = "E206"
COMMAND_FAILED = "E301"

_SHOWN_COMMAND = 200
_SHOWN_STDERR_LINES = 8


def unreachable(host: str, reason: str, *, hint: str = "") -> FleetError:
    return FleetError(UNREACHABLE, f"cannot be reached: {reason}", hint=hint, host=host)


def connection_lost(host: str, reason: str) -> FleetError:
    return FleetError(UNREACHABLE, f"connection lost: {reason}", hint="the next call connects again", host=host)


def command_failed(host: str, argv: Sequence[str], result: RemoteResult) -> FleetError:
    """With the end of stderr, or of stdout where stderr is silent."""
    said = result.stderr.strip() or result.stdout.strip()
    lines = said.decode(errors="replace").splitlines()[-_SHOWN_STDERR_LINES:]
    shown = "".join(f"\n    {line}" for line in lines)
    message = f"`{shown_command(argv)}` failed with status {result.exit_status}{shown}"
    return FleetError(COMMAND_FAILED, message, host=host)


def command_timed_out(host: str, argv: Sequence[str], timeout_s: float) -> FleetError:
    message = f"`{shown_command(argv)}` did not finish in {timeout_s:g} s and was stopped"
    return FleetError(COMMAND_FAILED, message, host=host)


def copy_failed(host: str, path: str, reason: str) -> FleetError:
    return FleetError(COMMAND_FAILED, f"cannot copy {path}: {reason}", host=host)


def no_socket(host: str, path: str, reason: str) -> FleetError:
    hint = "is the agent running there? `odctl bootstrap` installs and starts it"
    return FleetError(NO_SOCKET, f"nothing listens on {path}: {reason}", hint=hint, host=host)


def shown_command(argv: Sequence[str]) -> str:
    """For messages only; scripts given as an argument are cut to their first line."""
    first_line, *more = shlex.join(argv).split("\n", 1)
    is_cut = bool(more) or len(first_line) > _SHOWN_COMMAND
    return first_line[:_SHOWN_COMMAND] + (" …" if is_cut else "")
