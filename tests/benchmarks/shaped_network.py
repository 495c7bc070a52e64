"""A network of its own for a lab: loopback in a namespace, where the link of two addresses can be made slow.

Root only. The kernel's htb with u32 filters shapes what goes between the two addresses, both ways; everything else
passes as before. Nothing outside the namespace is touched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MTU = 1500
"""A real network's: loopback's 64 KiB packets would pass a slow link's bucket as one.

So would what the kernel keeps together until it is on the wire (`gso_max_segs`): after a layer's time of rest the
12 KB of a token's sum took 1.8 ms at 20 Mbit/s, where a wire takes 5.
"""
UNSHAPED = "10gbit"
QUANTUM = "1514"
"""Bytes a class sends in one turn; without it the kernel complains of what it derives from such rates."""
PARENT, OTHERS, SHAPED = "1:", "1:10", "1:20"
COMMAND_TIMEOUT_S = 10.0
STOP_LIMIT_S = 100.0
"""For a lab to end that is stopped from outside."""


@contextmanager
def network_namespace(name: str) -> Iterator[list[str]]:
    """What to put before a command that is to run in a new namespace, which is gone at the end.

    Raises RuntimeError with what `ip` said, for instance that one is not root.
    """
    run(["ip", "netns", "add", name])
    try:
        run(["ip", "-n", name, "link", "set", "lo", "mtu", str(MTU), "gso_max_segs", "1", "up"])
        # Not `ip netns exec`: that mounts another /sys, without the control groups.
        yield ["nsenter", f"--net=/run/netns/{name}"]
    finally:
        run(["ip", "netns", "del", name])


def run_inside(argv: list[str], *, stdout: int | None = None) -> tuple[int, bytes]:
    """Exit status, and what was written where `stdout` is a pipe. Whatever stops us stops the command first, by
    SIGTERM, and gives its lab the time to end.
    """
    with subprocess.Popen(argv, stdout=stdout) as process:
        try:
            told, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.wait(STOP_LIMIT_S)
            raise
    return process.returncode, told or b""


class ShapedLink:
    """The link between two addresses of this namespace's loopback, at full speed until it is told otherwise."""

    def __init__(self, one: str, other: str) -> None:
        run(tc("qdisc", "add", "dev", "lo", "root", "handle", PARENT, "htb", "default", OTHERS.partition(":")[2]))
        for name in (OTHERS, SHAPED):
            run(tc("class", "add", "dev", "lo", "parent", PARENT, "classid", name, *_rate(UNSHAPED)))
        for source, target in ((one, other), (other, one)):
            run(
                tc(
                    "filter", "add", "dev", "lo", "parent", PARENT, "protocol", "ip", "prio", "1", "u32",
                    "match", "ip", "src", f"{source}/32", "match", "ip", "dst", f"{target}/32", "flowid", SHAPED,
                )
            )  # fmt: skip

    def set_rate(self, rate: str) -> None:
        """`1mbit`, in both directions together, as tc writes rates."""
        run(tc("class", "change", "dev", "lo", "parent", PARENT, "classid", SHAPED, *_rate(rate)))


def _rate(rate: str) -> list[str]:
    # A bucket of one packet: a larger one lets the few kilobytes of a decode step through at full speed.
    return ["htb", "rate", rate, "burst", str(MTU), "cburst", str(MTU), "quantum", QUANTUM]


def tc(*words: str) -> list[str]:
    return ["tc", *words]


def run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
