"""Who asks the agents: for locks, records and logs."""

from __future__ import annotations

import getpass
import os
import socket


def operator_name() -> str:
    """`user@machine:pid`: who holds a lock, for people."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"
