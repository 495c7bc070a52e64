"""Which carrier a link uses: decided by where its ends are and whether the network may see what passes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

CarrierKind = Literal["tls", "unix", "gloo", "nccl"]
"""`tls`: sockets under mutual TLS 1.3; `unix`: sockets inside a host; the others: torch.distributed, plaintext."""

End = tuple[str, str]
"""Host and device of a rank."""

DIRECT_SUM_BYTES = 65536
"""Up to here more than two ranks send everybody everything, in one hop; above, each sums a part, in two hops."""


def carrier_of(ends: Sequence[End], *, is_network_trusted: bool) -> CarrierKind:
    """The carrier of a link or a group with these ends.

    NCCL takes one rank on a device, and like every plaintext carrier no network that was not declared trusted.
    """
    hosts = {host for host, _ in ends}
    is_plaintext_allowed = len(hosts) == 1 or is_network_trusted
    is_cuda = all(device.startswith("cuda") for _, device in ends) and len(set(ends)) == len(ends)
    if is_cuda and is_plaintext_allowed:
        return "nccl"
    return "unix" if len(hosts) == 1 else "tls"
