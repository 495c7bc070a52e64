"""Where an SSH connection goes, and through which others: the inventory's words resolved. No I/O."""

from __future__ import annotations

from pathlib import Path

import msgspec

from odctl.inventory import Host, HostKeys, Inventory, split_address
from odctl.ssh import failures


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One sshd to log in to. Equal endpoints may share a connection. `None` leaves it to ssh_config."""

    host: str
    """Name for messages."""
    address: str
    """Alias in ssh_config, host name or address."""
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    is_identity_fallback: bool = False
    """The identity counts only where ssh_config names none: a jump host was not given it by name."""
    jump: tuple[Endpoint, ...] | None = None
    host_keys: HostKeys = "strict"
    host_key: str | None = None
    connect_timeout_s: float = 15.0


def endpoint_of(inventory: Inventory, host: Host, *, accept_new: bool = False) -> Endpoint:
    """The endpoint of an inventory host, jumps included. Jumps have no circles: the inventory was checked."""
    return Endpoint(
        host=host.name,
        address=host.ssh,
        user=host.user,
        port=host.port,
        identity=host.identity,
        jump=None
        if host.jump is None
        else tuple(jump_endpoint(inventory, jump, via=host, accept_new=accept_new) for jump in host.jump),
        host_keys="accept-new" if accept_new else host.host_keys,
        host_key=host.host_key,
        connect_timeout_s=host.connect_timeout_s,
    )


def jump_endpoint(inventory: Inventory, text: str, *, via: Host, accept_new: bool) -> Endpoint:
    """A jump of `via`: an inventory host with all that is said of it, else `[user@]address[:port]`.

    Raises FleetError E201 for a text that is neither.
    """
    if (known := inventory.find(text)) is not None:
        return endpoint_of(inventory, known, accept_new=accept_new)
    try:
        user, address, port = split_address(text)
    except ValueError as error:  # out of ssh_config: the inventory's own jumps were checked when it was read
        raise failures.unreachable(via.name, str(error)) from error
    return Endpoint(
        host=text,
        address=address,
        user=user,
        port=port,
        identity=via.identity,
        is_identity_fallback=True,
        host_keys="accept-new" if accept_new else via.host_keys,
        connect_timeout_s=via.connect_timeout_s,
    )
