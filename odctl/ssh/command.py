"""An argv list as the one line that sshd gives to the login shell: the only place that quotes. Pure.

The line starts with a marker on both streams, so that what `.bashrc` prints before our command is told apart
from what the command prints; beside the marker stands the command's process group, so that it can be stopped
by another command (sshd delivers no signals to root's sessions). The command runs under the host's `timeout`
where there is one: should the connection vanish, it does not live on for ever.
"""

from __future__ import annotations

import math
import secrets
import shlex
from collections.abc import Sequence

import msgspec

KILL_AFTER_S = 5
"""Between SIGTERM and SIGKILL on the host."""

# Each script is one line: some login shells and ForceCommand wrappers do not carry a newline through.
# `cd`: paths start at $HOME on every backend.
# exec all the way: signals to the session reach the command and not a shell around it.
_WRAPPER = "; ".join(
    [
        'printf "%s %s\\n" "$0" $$ || exit 1',
        'printf "%s %s\\n" "$0" $$ >&2',
        "cd 2>/dev/null || cd /",
        "limit=$1",
        "shift",
        'if [ "$limit" != 0 ] && command -v timeout >/dev/null 2>&1',
        f'then exec timeout -k {KILL_AFTER_S} "$limit" "$@"',
        "fi",
        'exec "$@"',
    ]
)

# A cut stream must not become a file: the size is compared before the name is given.
_STORE = "; ".join(
    [
        "umask 022",
        "target=$1",
        "mode=$2",
        "size=$3",
        'folder=$(dirname -- "$target")',
        'mkdir -p -- "$folder" || exit 1',
        'partial="$folder/.$(basename -- "$target").$4.part"',
        """trap 'rm -f -- "$partial"' EXIT""",
        'trap "exit 143" TERM HUP INT PIPE',
        '(umask 077; cat > "$partial") || exit 1',
        'stored=$(wc -c < "$partial") || exit 1',
        'if [ "$stored" -ne "$size" ]',
        'then echo "received $stored of $size bytes" >&2',
        "exit 1",
        "fi",
        'chmod "$mode" "$partial" && mv -f -- "$partial" "$target"',
    ]
)

# sshd makes the command a session of its own, and `timeout` a group: its number is the pid either way.
_STOP = "; ".join(
    [
        'kill -s TERM -- "-$1" 2>/dev/null',
        "tries=0",
        'while [ $tries -lt 20 ] && kill -s 0 -- "-$1" 2>/dev/null',
        "do sleep 0.1",
        "tries=$((tries + 1))",
        "done",
        'kill -s KILL -- "-$1" 2>/dev/null',
        "exit 0",
    ]
)


class ShellLine(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and the marker that precedes the command's own output."""

    line: str
    marker: bytes


def shell_line(argv: Sequence[str], *, limit_s: float | None) -> ShellLine:
    """`limit_s` bounds the command on the host itself; None leaves it unbounded."""
    assert argv, "an empty command"
    marker = f"odctl-{secrets.token_hex(8)}"
    limit = str(math.ceil(limit_s)) if limit_s is not None else "0"
    line = shlex.join(["exec", "/bin/sh", "-c", _WRAPPER, marker, limit, *argv])
    return ShellLine(line=line, marker=marker.encode() + b" ")


def after_marker(output: bytes, marker: bytes) -> bytes | None:
    """The command's own output, or None when the marker never came whole."""
    _, found, rest = output.partition(marker)
    _, is_whole, own = rest.partition(b"\n")
    return own if found and is_whole else None


def group_of(output: bytes, marker: bytes) -> int | None:
    """The command's process group, from a stream that has the marker."""
    own = after_marker(output, marker)
    return None if own is None else int(output.partition(marker)[2].split(b"\n", 1)[0])


def stop_argv(group: int) -> list[str]:
    """SIGTERM to a process group, SIGKILL two seconds later to what is left of it."""
    assert group > 1, f"{group} is no process group of ours"
    return ["/bin/sh", "-c", _STOP, "sh", str(group)]


def store_argv(target: str, *, mode: int, size: int) -> list[str]:
    """Reads exactly `size` bytes from stdin into `target`, atomically."""
    return ["/bin/sh", "-c", _STORE, "sh", host_path(target), f"{mode:o}", str(size), secrets.token_hex(4)]


def host_path(path: str) -> str:
    """`~/x` and `x` start at the login directory, in which commands run; neither can look like an option."""
    path = path.removeprefix("~/")
    return path if path.startswith("/") else f"./{path}"
