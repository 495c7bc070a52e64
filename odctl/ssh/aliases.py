"""The hosts that an ssh_config names. Reads files; connects to nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

MAX_INCLUDE_DEPTH = 16
"""OpenSSH's own limit."""
_PATTERN_CHARACTERS = re.compile(r"[*?!]")


def list_aliases(files: Iterable[Path]) -> tuple[str, ...]:
    """Every literal name after `Host`, in the order of the files, `Include` followed; patterns are no hosts."""
    found: dict[str, None] = {}
    for file in files:
        _collect(file, found, depth=0)
    return tuple(found)


def address_of(files: Iterable[Path], alias: str) -> str:
    """The `HostName` that ssh_config gives an alias, or the alias itself."""
    import asyncssh  # the only parser here that knows all of ssh_config

    options = asyncssh.SSHClientConnectionOptions(
        config=[str(file) for file in files], host=alias, client_keys=None
    )
    return str(options.host)


def _collect(file: Path, found: dict[str, None], *, depth: int) -> None:
    if depth > MAX_INCLUDE_DEPTH or not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        keyword, _, rest = re.sub(r"^\s*(\w+)\s*=\s*", r"\1 ", line).strip().partition(" ")
        if keyword.lower() not in ("host", "include"):
            continue
        try:
            words = shlex.split(rest, comments=True)
        except ValueError:
            continue  # ssh itself will complain about the line when it connects
        if keyword.lower() == "host":
            found.update((word, None) for word in words if not _PATTERN_CHARACTERS.search(word))
        else:
            for word in words:
                for included in _included(word):
                    _collect(included, found, depth=depth + 1)


def _included(pattern: str) -> list[Path]:
    """Relative patterns start at ~/.ssh, as in OpenSSH."""
    path = Path(pattern).expanduser()
    if not path.is_absolute():
        path = Path("~/.ssh").expanduser() / path
    return sorted(path.parent.glob(path.name))
