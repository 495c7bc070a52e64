"""The token that opens the UI: made anew, or kept in a file that only its owner can read."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from agent.errors import FleetError
from odctl.web.access import BAD_ACCESS

MIN_CHARS = 32
MAX_BYTES = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")


def new_token() -> str:
    """256 bits, fit for a URL."""
    return secrets.token_urlsafe(32)


def read_token(path: Path) -> str:
    """The token in a file, which is made with a new one when it is not there.

    Raises FleetError E120 when others can read it, or it holds nothing that can be a token.
    """
    try:
        # Not blocking: a pipe without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _write_token(path)
    except OSError as error:
        raise FleetError(BAD_ACCESS, f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FleetError(
                BAD_ACCESS, f"{path} is no file", hint="name a file; odctl makes one that is not there"
            )
        if status.st_mode & 0o077 or status.st_uid != os.getuid():
            mode = stat.S_IMODE(status.st_mode)
            raise FleetError(
                BAD_ACCESS,
                f"{path} (mode {mode:04o}, owner {status.st_uid}) is not yours alone to read",
                hint=f"the token opens the UI to whoever has it: chown it to you and chmod 600 {path}",
            )
        text = os.read(descriptor, MAX_BYTES).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    if len(text) < MIN_CHARS or not _TOKEN.fullmatch(text):
        raise FleetError(
            BAD_ACCESS,
            f"{path} holds no token: at least {MIN_CHARS} letters, digits or ._~- in one line",
            hint=f"remove {path}, and a new one is made",
        )
    return text


def _write_token(path: Path) -> str:
    token = new_token()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FleetError(BAD_ACCESS, f"cannot make {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token
