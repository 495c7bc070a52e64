"""`odctl init`: write an inventory from host names or from ssh_config."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import tomlkit

from agent.documents import closest
from agent.errors import FleetError
from odctl.inventory import parse_inventory, split_address
from odctl.result import Result, run_command
from odctl.ssh.aliases import address_of, list_aliases

BAD_USAGE = "E109"


class NewHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it will stand in the file."""

    name: str
    ssh: str
    user: str | None = None
    port: int | None = None
    cluster_address: str | None = None


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@click.option(
    "--from-ssh-config",
    "pattern",
    is_flag=False,
    flag_value="*",
    metavar="[PATTERN]",
    help="Take the hosts that ssh_config names (all, or those like PATTERN).",
)
@click.option("--ssh-config", type=click.Path(path_type=Path), help="Another file than ~/.ssh/config.")
@click.option("--cluster", default="lab", show_default=True, help="The cluster's name.")
@click.option("--user", help="Login name on all hosts.")
@click.option("--port", type=click.IntRange(1, 65535), help="SSH port of all hosts.")
@click.option("--identity", metavar="FILE", help="Private key, the only one to be offered.")
@click.option(
    "--jump", multiple=True, metavar="HOST", help="Host to go through; repeat for several, first to last."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write; default: the inventory (-i)."
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(inventory_path: str, /, hosts: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write an inventory from host names or your ssh_config.

    HOST is an alias, a name or an address, as NAME, user@address:port, or NAME=user@address:port.
    """
    run_command(lambda: init(inventory_path, hosts, **options), as_json=as_json)


def init(
    inventory_path: str,
    hosts: Sequence[str],
    *,
    pattern: str | None = None,
    ssh_config: Path | None = None,
    cluster: str = "lab",
    user: str | None = None,
    port: int | None = None,
    identity: str | None = None,
    jump: Sequence[str] = (),
    output: Path | None = None,
    force: bool = False,
) -> Result:
    """Write the file. Raises FleetError E109 for bad usage, DocumentError for names that no inventory allows."""
    found = [_host_of(text) for text in hosts]
    if pattern is not None:
        found += _hosts_of_ssh_config(ssh_config, pattern)
    defaults: dict[str, Any] = {
        "user": user,
        "port": port,
        "identity": identity,
        "jump": list(jump) or None,
        "ssh_config": str(ssh_config.absolute()) if ssh_config else None,
    }
    path = output or Path(inventory_path)
    text = inventory_text(cluster, found, defaults=defaults)
    parse_inventory(text, path=path)
    _write(path, text, force=force)
    return _result(path, cluster, found)


def inventory_text(cluster: str, hosts: Sequence[NewHost], *, defaults: dict[str, Any]) -> str:
    """The file's text. Raises FleetError E109 without hosts or with a name twice."""
    if not hosts:
        hint = "`odctl init gpu01 gpu02` or `odctl init --from-ssh-config 'gpu*'`"
        raise FleetError(BAD_USAGE, "no hosts to write", hint=hint)
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        hint = "NAME=address tells them apart"
        raise FleetError(BAD_USAGE, f"these hosts come twice: {', '.join(twice)}", hint=hint)
    document = tomlkit.document()
    document.add(tomlkit.comment("Hosts of this cluster. inventory.example.toml shows every field."))
    document["version"] = 1
    document["cluster"] = {"name": cluster}
    stated = {key: value for key, value in defaults.items() if value is not None}
    if stated:
        document["defaults"] = stated
    tables = tomlkit.table(is_super_table=True)
    for host in hosts:
        table = tomlkit.table()
        for key in ("ssh", "user", "port", "cluster_address"):
            value = getattr(host, key)
            if value is not None and not (key == "ssh" and value == host.name):
                table[key] = value
        tables[host.name] = table
    document["hosts"] = tables
    return tomlkit.dumps(document)


def _host_of(text: str) -> NewHost:
    """`gpu01`, `ml@10.0.0.1:2222`, `gpu01=10.0.0.1`."""
    name, has_name, rest = text.partition("=")
    try:
        user, address, port = split_address(rest if has_name else text)
    except ValueError as error:
        raise FleetError(BAD_USAGE, str(error)) from error
    # An IPv6 address is no name: its colons would not survive in certificates and paths.
    return NewHost(name=name if has_name else address.replace(":", "-"), ssh=address, user=user, port=port)


def _hosts_of_ssh_config(ssh_config: Path | None, pattern: str) -> list[NewHost]:
    path = ssh_config or Path("~/.ssh/config").expanduser()
    if not path.is_file():
        raise FleetError(BAD_USAGE, f"there is no {path}", hint="--ssh-config names another file")
    aliases = list_aliases([path])
    chosen = [alias for alias in aliases if fnmatch.fnmatchcase(alias, pattern)]
    if not chosen:
        hint = closest(pattern, aliases) or f"it names: {', '.join(aliases) or 'no hosts'}"
        raise FleetError(BAD_USAGE, f"{path} names no host like `{pattern}`", hint=hint)
    found = []
    for alias in chosen:
        try:
            address = address_of([path], alias)
        except ValueError as error:  # a line that OpenSSH would refuse as well
            raise FleetError(BAD_USAGE, f"cannot read {path}: {error}") from error
        # An alias means something on this machine only; other hosts need the address behind it.
        found.append(NewHost(name=alias, ssh=alias, cluster_address=address if address != alias else None))
    return found


def _write(path: Path, text: str, *, force: bool) -> None:
    if path.exists() and not force:
        raise FleetError(BAD_USAGE, f"{path} exists", hint="--force overwrites it, -o writes elsewhere")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise FleetError(BAD_USAGE, f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _result(path: Path, cluster: str, hosts: Sequence[NewHost]) -> Result:
    count = f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}"
    lines = [f"wrote {path}: cluster {cluster}, {count}"]
    for host in hosts:
        login = f"{host.user}@" if host.user else ""
        at_port = f":{host.port}" if host.port else ""
        lines.append(f"  {host.name:<20} {login}{host.ssh}{at_port}")
    lines.append("next: odctl bootstrap")
    data = {"path": str(path), "cluster": cluster, "hosts": hosts}
    return Result(kind="inventory", data=data, prose="\n".join(lines))
