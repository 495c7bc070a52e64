"""How much a question before a change asks for: a yes, or a name that must be typed."""

from __future__ import annotations

LARGE_SHARE = 0.05
"""Of the fleet's hosts: an action that touches more of them is not confirmed by two keys."""
LARGE_HOSTS = 2
"""Fewer hosts are never a large part, however small the fleet is."""


def name_to_type(name: str, *, num_hosts: int, fleet_hosts: int) -> str:
    """The name that must be typed before an action on `num_hosts` of `fleet_hosts`; empty: a yes is enough."""
    is_large = num_hosts >= LARGE_HOSTS and num_hosts > LARGE_SHARE * fleet_hosts
    return name if is_large else ""
