"""An argv list as the one line that sshd gives to the login shell: the only place that quotes. Pure.

The line starts with a marker on both streams, so that what `.bashrc` prints before our command is told apart
from what the command prints. The command runs under the host's `timeout` where there is one: should the
connection vanish, it does not live on for ever.
"""

from __future__ import annotations

import math
import secrets
import shlex
from collections.abc import Sequence

import msgspec

KILL_AFTER_S = 5
"""Between SIGTERM and SIGKILL on the host."""

# `cd`: paths start at $HOME on every backend.
# exec all the way: signals to the session reach the command and not a shell around it.
_WRAPPER = f"""printf '%s\\n' "$0"; printf '%s\\n' "$0" >&2
cd 2>/dev/null || cd /
limit=$1; shift
if [ "$limit" != 0 ] && command -v timeout >/dev/null 2>&1; then exec timeout -k {KILL_AFTER_S} "$limit" "$@"; fi
exec "$@\""""

# A cut stream must not become a file: the size is compared before the name is given.
STORE = """umask 022; target=$1; mode=$2; size=$3
folder=$(dirname -- "$target"); mkdir -p -- "$folder" || exit 1
partial="$folder/.$(basename -- "$target").$4.part"
trap 'rm -f -- "$partial"' EXIT; trap 'exit 143' TERM HUP INT PIPE
(umask 077; cat > "$partial") || exit 1
stored=$(wc -c < "$partial") || exit 1
if [ "$stored" -ne "$size" ]; then echo "received $stored of $size bytes" >&2; exit 1; fi
chmod "$mode" "$partial" && mv -f -- "$partial" "$target\""""


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
    return ShellLine(line=line, marker=marker.encode() + b"\n")


def after_marker(output: bytes, marker: bytes) -> bytes | None:
    """The command's own output, or None when the marker never came."""
    _, found, own = output.partition(marker)
    return own if found else None


def store_argv(target: str, *, mode: int, size: int) -> list[str]:
    """Reads exactly `size` bytes from stdin into `target`, atomically."""
    return ["/bin/sh", "-c", STORE, "sh", host_path(target), f"{mode:o}", str(size), secrets.token_hex(4)]


def host_path(path: str) -> str:
    """`~/x` and `x` start at the login directory, in which commands run; neither can look like an option."""
    path = path.removeprefix("~/")
    return path if path.startswith("/") else f"./{path}"
