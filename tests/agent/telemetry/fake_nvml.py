"""Builds the fake libnvidia-ml.so.1 and writes the rules that it obeys."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
HANG = -1
ANY = -1


class FakeNvml:
    """`environment` makes a process find the fake; `set` changes its answers at once, also in running calls."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("no gcc to build the fake libnvidia-ml.so.1 with")
        library = directory / "libnvidia-ml.so.1"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE)], check=True
        )
        self._rules_path = directory / "rules"
        self._rules: dict[tuple[str, int], tuple[int, int]] = {}
        self._write()
        self.environment = {
            "LD_LIBRARY_PATH": f"{directory}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "FAKE_NVML_RULES": str(self._rules_path),
        }

    def set(self, function: str, *, device: int = ANY, code: int = 0, value: int = 0) -> None:
        self._rules[function, device] = (code, value)
        self._write()

    def clear(self, function: str, *, device: int = ANY) -> None:
        del self._rules[function, device]
        self._write()

    def _write(self) -> None:
        text = "".join(f"{name} {at} {code} {value}\n" for (name, at), (code, value) in self._rules.items())
        part = self._rules_path.with_suffix(".part")
        part.write_text(text)
        part.replace(self._rules_path)
