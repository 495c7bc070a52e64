"""What a benchmark says while it works: on stderr, so that a table on stdout stays a table."""

from __future__ import annotations

import sys
import time
from pathlib import Path

START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:6.0f} s] {text}", file=sys.stderr, flush=True)


def write_between(document: Path, begin: str, end: str, text: str) -> None:
    """What stands between two marks of a document, written anew. Raises ValueError where a mark is missing."""
    before, rest = document.read_text().split(begin, 1)
    _, after = rest.split(end, 1)
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")
