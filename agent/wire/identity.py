"""How the certificates of a cluster name its hosts: written by the operator's authority, checked by every agent."""

from __future__ import annotations


def dns_name(host: str, cluster: str) -> str:
    """DNS SAN of a host's leaf."""
    return f"{host}.{cluster}.odctl"


def agent_uri(host: str, cluster: str) -> str:
    """URI SAN of a host's leaf: its role. With an empty host, what those of all agents begin with."""
    return f"spiffe://{cluster}/agent/{host}"
