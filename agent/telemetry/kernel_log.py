"""The last messages of the kernel: from /dev/kmsg, or where that is closed to us from systemd's journal.

Reads what is there and returns; nothing is watched. `telemetry.xid` follows the log for its own ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agent.wire.host import KERNEL_LEVELS, KernelLog, KernelMessage

KMSG = "/dev/kmsg"
RECORD_BYTES = 8192
"""The kernel's own limit of a record; a smaller read fails."""
JOURNAL_TIMEOUT_S = 5.0
MAX_RECORDS = 100_000
"""Of one look: the ring holds fewer, and a kernel that writes faster than we read must not keep us for ever."""


def read_kernel_log(
    num_messages: int, *, kmsg: str = KMSG, ask_journal: Callable[[int], list[str]] | None = None
) -> KernelLog:
    """At most so many messages. Never raises: what stands in the way is in the answer. May block for a while."""
    if num_messages <= 0:
        return KernelLog(source="kmsg")
    try:
        descriptor = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return _from_journal(num_messages, error, kmsg=kmsg, ask=ask_journal or _ask_journal)
    try:
        records = _read_records(descriptor, num_messages)
    except OSError as error:
        return _from_journal(num_messages, error, kmsg=kmsg, ask=ask_journal or _ask_journal)
    finally:
        os.close(descriptor)
    booted_at_s = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    messages = (parse_kmsg(record, booted_at_s=booted_at_s) for record in records)
    return KernelLog(messages=tuple(message for message in messages if message is not None), source="kmsg")


def parse_kmsg(record: str, *, booted_at_s: float) -> KernelMessage | None:
    """`6,1234,98765,-;text`, continuation lines behind it left out. None for what is no record."""
    head, found, text = record.partition(";")
    fields = head.split(",")
    if not found or len(fields) < 3 or not (fields[0].isdecimal() and fields[2].isdecimal()):
        return None
    level = KERNEL_LEVELS[int(fields[0]) & 7]
    return KernelMessage(
        at_s=booted_at_s + int(fields[2]) / 1e6, level=level, text=text.split("\n", 1)[0].rstrip("\0")
    )


def parse_journal(line: str) -> KernelMessage | None:
    """One object of `journalctl -o json`. None for what is none."""
    try:
        found = json.loads(line)
        at_s = int(found["__REALTIME_TIMESTAMP"]) / 1e6
        level = KERNEL_LEVELS[int(found.get("PRIORITY", 6)) & 7]
        text = found["MESSAGE"]
    except (ValueError, KeyError, TypeError):
        return None
    # A message that is no UTF-8 comes as a list of its bytes.
    said = bytes(text).decode(errors="replace") if isinstance(text, list) else str(text)
    return KernelMessage(at_s=at_s, level=level, text=said)


def _read_records(descriptor: int, num_messages: int) -> list[str]:
    kept: deque[str] = deque(maxlen=num_messages)
    for _ in range(MAX_RECORDS):
        try:
            record = os.read(descriptor, RECORD_BYTES)
        except BlockingIOError:
            break
        except BrokenPipeError:
            # Records were overwritten before we came to them; the next read goes on behind them.
            continue
        if not record:
            break
        kept.append(record.decode(errors="replace"))
    return list(kept)


def _from_journal(num_messages: int, error: OSError, *, kmsg: str, ask: Callable[[int], list[str]]) -> KernelLog:
    why = f"{kmsg}: {error.strerror}"
    try:
        lines = ask(num_messages)
    except OSError as journal_error:
        return KernelLog(
            unavailable=f"{why}; journalctl: {journal_error.strerror or journal_error}", way_out=_way_out()
        )
    except subprocess.TimeoutExpired:
        return KernelLog(
            unavailable=f"{why}; journalctl gave no answer in {JOURNAL_TIMEOUT_S:.0f} s", way_out=_way_out()
        )
    messages = tuple(message for line in lines if (message := parse_journal(line)) is not None)
    if not messages:
        return KernelLog(unavailable=f"{why}; the journal shows none to this user", way_out=_way_out())
    return KernelLog(messages=messages[-num_messages:], source="journal")


def _ask_journal(num_messages: int) -> list[str]:
    answer = subprocess.run(
        ["journalctl", "--dmesg", "--output=json", "--no-pager", f"--lines={num_messages}"],
        capture_output=True,
        timeout=JOURNAL_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return answer.stdout.decode(errors="replace").splitlines()


def _way_out() -> str:
    """What an admin could do: the setting that closes the log, or the group that opens the journal."""
    try:
        is_closed = Path("/proc/sys/kernel/dmesg_restrict").read_text().strip() != "0"
    except OSError:
        is_closed = False
    setting = "`sysctl kernel.dmesg_restrict=0` opens it to all, or " if is_closed else ""
    return f"{setting}put the agent's user into the group `systemd-journal` or `adm`"
