"""`python -m agent.telemetry.gpu_collector`: answers `AskGpus` on its stdin, a socket, until that closes.

A process of its own, because any NVML call can hang for good, in the kernel too: the agent asks with a
deadline and goes on without us.
"""

from __future__ import annotations

import os
import socket
import threading
import time

import pynvml

from agent.telemetry.gpu_reply import AskGpus, GpuReply
from agent.telemetry.nvml import NvmlReader
from agent.telemetry.xid import XidWatch
from agent.wire.framing import StreamClosed, decode, receive_frame, send_frame

PARENT_CHECK_S = 2.0


def main() -> None:
    threading.Thread(target=leave_with_parent, args=(os.getppid(),), name="parent", daemon=True).start()
    xid = XidWatch()
    xid.open_kmsg()
    reader = NvmlReader(pynvml, clock=time.monotonic, xid=xid)
    with socket.socket(fileno=os.dup(0)) as connection:
        while True:
            try:
                decode(receive_frame(connection), AskGpus)
                xid.read_kmsg()
                reply: GpuReply = reader.read()
                send_frame(connection, reply)
            except (StreamClosed, BrokenPipeError):
                return


def leave_with_parent(parent: int) -> None:
    """End the process once its agent is gone, even while the main thread hangs in the driver."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)


if __name__ == "__main__":
    main()
