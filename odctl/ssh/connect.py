"""Which Transport reaches which host of an inventory."""

from __future__ import annotations

from odctl.inventory import Inventory
from odctl.ssh.local import LocalTransport
from odctl.ssh.transport import Transport


def transport_for(inventory: Inventory, host_name: str, *, accept_new: bool = False) -> Transport:
    """The way to a host; connects at its first use. `accept_new` trusts a key never seen before, and remembers it.

    Raises FleetError E108 for a host that the inventory does not have.
    """
    host = inventory.host(host_name)
    if host.transport == "local":
        return LocalTransport(host.name, home=host.home)
    # asyncssh takes a third of a second to import: commands that touch no SSH host do not pay for it.
    from odctl.ssh.with_asyncssh import AsyncsshTransport

    return AsyncsshTransport(inventory, host, accept_new=accept_new)
