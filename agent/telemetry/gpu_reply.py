"""What the collector subprocess answers: one frame per question, on the socket that is its stdin."""

from __future__ import annotations

import msgspec

from agent.facts.sample import DeviceSample


class AskGpus(msgspec.Struct, frozen=True, kw_only=True, tag="ask_gpus"):
    """One reading of every GPU, please."""


class GpuReply(msgspec.Struct, frozen=True, kw_only=True, tag="gpus"):
    """`unavailable` says why there is no GPU in the list; it is empty when NVML answered.

    `whole` are the ids of the devices that a process may use as a whole (a GPU split by MIG is not).
    """

    devices: tuple[DeviceSample, ...] = ()
    unavailable: str = ""
    driver: str = ""
    whole: tuple[str, ...] = ()
