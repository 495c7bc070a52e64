"""`odctl lab`: a throw-away cluster on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from odctl.lab import LabStatus


@click.group("lab")
def command() -> None:
    """Make or destroy a throw-away cluster on this machine."""


_name = click.option("--name", default="lab", show_default=True, help="Several labs can stand side by side.")
_dir = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Where; /tmp/odctl-lab-NAME by default."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the lab as JSON.")


@command.command("up")
@click.option("--hosts", "num_hosts", default=3, show_default=True, help="How many hosts.")
@click.option("--ssh/--local", "is_ssh", default=False, help="Reach them through real sshds, or as processes.")
@click.option("--bootstrap", "bootstraps", is_flag=True, help="Install and start their agents, too.")
@click.option("--models", "model_dirs", multiple=True, type=click.Path(path_type=Path), help="Shared model folder.")
@_name
@_dir
@_json
def up(  # noqa: PLR0917 - click calls it by name
    num_hosts: int,
    is_ssh: bool,
    bootstraps: bool,
    model_dirs: tuple[Path, ...],
    name: str,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Make hosts with homes, addresses and an inventory of their own. Twice changes nothing."""

    def body() -> Result:
        from odctl.lab import Lab

        lab = Lab(
            name=name,
            num_hosts=num_hosts,
            kind="ssh" if is_ssh else "local",
            directory=directory,
            model_dirs=[path.absolute() for path in model_dirs],
        )
        lab.up()
        if bootstraps:
            return _bootstrap(lab.inventory_path)
        return _lab_result(lab.status())

    run_command(body, as_json=as_json)


@command.command("down")
@_name
@_dir
@_json
def down(name: str, directory: Path | None, as_json: bool) -> None:
    """Stop its sshds, agents, ranks and gateways, and remove it."""

    def body() -> Result:
        from odctl.lab import Lab

        lab = Lab(name=name, directory=directory)
        lab.down()
        return Result(kind="lab-down", data={"directory": str(lab.directory)}, prose=f"{lab.directory} is gone")

    run_command(body, as_json=as_json)


@command.command("status")
@_name
@_dir
@_json
def status(name: str, directory: Path | None, as_json: bool) -> None:
    """Say which of its processes run."""

    def body() -> Result:
        from odctl.lab import Lab

        return _lab_result(Lab(name=name, directory=directory).status())

    run_command(body, as_json=as_json)


def _bootstrap(inventory_path: Path) -> Result:
    from odctl.commands.bootstrap import bootstrap

    return bootstrap(str(inventory_path), "all")


def _lab_result(status: LabStatus) -> Result:
    lines = [f"lab {status.name}: {len(status.hosts)} {status.kind} hosts"]
    for host in status.hosts:
        sshd = f"  sshd :{host.ssh_port} {_running(host.sshd_pid)}" if status.kind == "ssh" else ""
        lines.append(f"  {host.name}  {host.address}:{host.cluster_port}{sshd}  agent {_running(host.agent_pid)}")
    lines.append(f"use it:  odctl -i {status.inventory} …   or   export ODCTL_INVENTORY={status.inventory}")
    return Result(kind="lab", data=status, prose="\n".join(lines))


def _running(pid: int | None) -> str:
    return f"pid {pid}" if pid is not None else "not running"
