"""An interactive shell on a host: the command line that reaches it as odctl does. No I/O but the environment.

OpenSSH's own client has the terminal; it is told everything that the inventory says, jumps and host keys included,
so that it goes where odctl goes and trusts what odctl trusts.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec

from odctl.inventory import Host, Inventory
from odctl.ssh.endpoint import Endpoint, endpoint_of
from odctl.ssh.local import environment_for


class ShellCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, where. An empty `directory` is the caller's own."""

    argv: tuple[str, ...]
    directory: str = ""
    environment: dict[str, str]


def shell_command(inventory: Inventory, host_name: str) -> ShellCommand:
    """Raises FleetError E108 for a host that the inventory lacks, E201 for jumps that mean nothing."""
    host = inventory.host(host_name)
    if host.transport == "local":
        return _local(host)
    argv = ssh_argv(inventory, endpoint_of(inventory, host))
    return ShellCommand(argv=tuple(argv), environment=dict(os.environ))


def ssh_argv(inventory: Inventory, endpoint: Endpoint, *, behind: Sequence[str] = ()) -> list[str]:
    """`ssh …` to an endpoint. `behind` are further options, before the address."""
    argv = ["ssh", *_config_file(inventory)]
    strictness = "accept-new" if endpoint.host_keys == "accept-new" else "yes"
    files = " ".join(f'"{path}"' for path in (*inventory.known_hosts, inventory.directory / "known_hosts"))
    for option in (
        f"StrictHostKeyChecking={strictness}",
        f"UserKnownHostsFile={files}",
        "GlobalKnownHostsFile=none",
        f"ConnectTimeout={max(1, round(endpoint.connect_timeout_s))}",
    ):
        argv += ["-o", option]
    if endpoint.user is not None:
        argv += ["-l", endpoint.user]
    if endpoint.port is not None:
        argv += ["-p", str(endpoint.port)]
    if endpoint.identity is not None:
        argv += ["-i", str(endpoint.identity)]
        if not endpoint.is_identity_fallback:
            argv += ["-o", "IdentitiesOnly=yes"]
    argv += _jumps(inventory, endpoint)
    return [*argv, *behind, endpoint.address]


def _jumps(inventory: Inventory, endpoint: Endpoint) -> list[str]:
    """As a ProxyCommand: ssh's own `-J` gives a jump neither the key nor the known hosts that it is to have."""
    if endpoint.jump is None:
        return []
    if not endpoint.jump:
        return ["-o", "ProxyJump=none"]
    last = endpoint.jump[-1]
    if len(endpoint.jump) > 1:
        last = msgspec.structs.replace(last, jump=endpoint.jump[:-1])
    # `%h` and `%p` are for this ssh to fill in; a percent sign of the inner one must pass through it.
    inner = [text.replace("%", "%%") for text in ssh_argv(inventory, last)]
    way = shlex.join([*inner[:-1], "-W", "[%h]:%p", inner[-1]])
    return ["-o", f"ProxyCommand={way}"]


def _config_file(inventory: Inventory) -> list[str]:
    """ssh reads the user's and the system's by itself; another one that the inventory names it must be told."""
    usual = {Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")}
    named = [path for path in inventory.ssh_config if path not in usual]
    return ["-F", str(named[0])] if named else []


def _local(host: Host) -> ShellCommand:
    shell = os.environ.get("SHELL") or "/bin/sh"
    return ShellCommand(
        argv=(shell, "-i"), directory=str(host.home or Path.home()), environment=environment_for(host.home)
    )
