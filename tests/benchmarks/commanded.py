"""A process that measures on command: a line of JSON in, a line of JSON out. Only one of them works at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_S = 20.0


class Commanded:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **command: Any) -> float:
        """The measured figure. Raises RuntimeError with the end of what it said on stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the measuring process ended with {self._process.wait(STOP_S)}")
        return float(json.loads(line)["figure"])


@contextmanager
def commanded(*argv: str) -> Iterator[Commanded]:
    """`python -m argv` with one thread for every library."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        yield Commanded(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def obey(measures: dict[str, Callable[..., float]]) -> None:
    """The other side: answer commands until there are no more."""
    for line in sys.stdin:
        command = json.loads(line)
        figure = measures[command.pop("measure")](**command)
        sys.stdout.write(json.dumps({"figure": figure}) + "\n")
        sys.stdout.flush()
