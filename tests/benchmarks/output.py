"""What a benchmark says while it works: on stderr, so that a table on stdout stays a table."""

from __future__ import annotations

import sys
import time

START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:6.0f} s] {text}", file=sys.stderr, flush=True)
