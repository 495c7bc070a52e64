"""What a step frees is there for the next step."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from agent.engine.memory import keep_freed_memory

def faults(bytes_each):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(bytes_each // 4) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults(48 << 20)
print(faults(48 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory as it likes")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True, text=True
    )
    pages_of_one = (48 << 20) // resource.getpagesize()
    assert int(done.stdout) < pages_of_one, "20 rounds that give back what they freed fault 40 times as many"
