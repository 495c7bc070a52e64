from __future__ import annotations

import pytest

from agent.telemetry.xid import KEEP_CODES, KEEP_S, SAME_EVENT_S, XidWatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "line",
    [
        "4,1203,8827364,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, fallen off the bus.",
        "3,99,123,-;NVRM: Xid (PCI:0000:3b:00): 79, fallen off the bus.",
        "3,99,123,-;NVRM: Xid (0000:3b:00): 79, 0000 0000",
    ],
)
def test_the_kernels_line_is_found_under_nvmls_name_of_the_device(line: str) -> None:
    watch = XidWatch(clock=Clock())
    watch.note_kernel_line(line)
    assert watch.recent("00000000:3B:00.0") == (79,)
    assert watch.recent("00000000:3C:00.0") == ()
    assert watch.recent("00000001:3B:00.0") == ()


def test_other_kernel_lines_are_none() -> None:
    watch = XidWatch(clock=Clock())
    watch.note_kernel_line("6,1,2,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.1")
    assert watch.recent("00000000:3B:00.0") == ()


def test_one_xid_that_comes_by_both_ways_is_shown_once() -> None:
    clock = Clock()
    watch = XidWatch(clock=clock)
    watch.note("00000000:3B:00.0", 48)
    watch.note_kernel_line("NVRM: Xid (PCI:0000:3b:00): 48, DBE")
    assert watch.recent("0000:3b:00") == (48,)
    clock.now += SAME_EVENT_S + 1
    watch.note("00000000:3B:00.0", 48)
    assert watch.recent("0000:3b:00") == (48, 48)


def test_old_codes_fade_and_the_list_is_bounded() -> None:
    clock = Clock()
    watch = XidWatch(clock=clock)
    for code in range(KEEP_CODES + 3):
        watch.note("0000:3b:00", code)
    assert watch.recent("0000:3b:00") == tuple(range(3, KEEP_CODES + 3))
    clock.now = KEEP_S + 1
    assert watch.recent("0000:3b:00") == ()
