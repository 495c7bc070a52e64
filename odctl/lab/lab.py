"""Make, describe and remove a lab. Everything of it lies in one directory, but for its authority's keys.

The hosts share this machine: each may use an equal share of memory and cores, has a home and a prefix of its
own, and listens on its own loopback address.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import tomlkit

from agent.errors import FleetError
from odctl.bootstrap.bundle import Bundle, make_bundle
from odctl.bootstrap.run import HostOutcome, OnProgress, bootstrap_hosts, script
from odctl.inventory import cluster_directory, load_inventory
from odctl.lab.sshd import LabSshd, make_key
from odctl.pki import open_authority
from odctl.ssh.connect import transport_for

LabKind = Literal["local", "ssh"]

MAX_HOSTS = 100
MEMORY_SHARE = 0.9
"""Of this machine, for all lab hosts together."""
STOP_TIMEOUT_S = 90.0


class LabHost(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    home: str
    address: str
    cluster_port: int
    ssh_port: int = 0

    @property
    def prefix(self) -> Path:
        return Path(self.home) / "odctl"


class LabRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`lab.json`: marks a directory as a lab, and says what is in it."""

    name: str
    kind: LabKind
    hosts: tuple[LabHost, ...]


class LabHostStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    address: str
    cluster_port: int
    ssh_port: int
    sshd_pid: int | None
    agent_pid: int | None


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: LabKind
    directory: str
    inventory: str
    hosts: tuple[LabHostStatus, ...]


class Lab:
    """A lab of `num_hosts` hosts in `directory`. As a context manager: `up` at its begin, `down` at its end."""

    def __init__(
        self,
        *,
        name: str = "lab",
        num_hosts: int = 3,
        kind: LabKind = "local",
        directory: Path | None = None,
        python: str = sys.executable,
        model_dirs: Sequence[str | Path] = (),
    ) -> None:
        if not 1 <= num_hosts <= MAX_HOSTS:
            raise FleetError("E107", f"a lab has 1 to {MAX_HOSTS} hosts, not {num_hosts}")
        self.name = name
        self.kind: LabKind = kind
        # Short, because the hosts' unix sockets lie in it.
        self.directory = (directory or Path("/tmp") / f"odctl-lab-{name}").absolute()  # noqa: S108 - checked in up()
        self._num_hosts = num_hosts
        self._python = python
        self._model_dirs = tuple(str(path) for path in model_dirs)

    @property
    def cluster(self) -> str:
        return f"odctl-lab-{self.name}"

    @property
    def inventory_path(self) -> Path:
        return self.directory / "inventory.toml"

    @property
    def hosts(self) -> tuple[LabHost, ...]:
        """Raises FleetError E901 when there is no lab."""
        return self._record_or_raise().hosts

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> None:
        """Make the lab, or start again what of it does not run. Raises FleetError E901."""
        self._claim_directory()
        record = self._record()
        if record is None:
            record = self._design()
        elif (record.kind, len(record.hosts)) != (self.kind, self._num_hosts):
            raise FleetError(
                "E901",
                f"{self.directory} holds a lab of {len(record.hosts)} {record.kind} hosts",
                hint=f"`odctl lab down --name {self.name}` first, or give this one another --name",
            )
        for host in record.hosts:
            Path(host.home).mkdir(exist_ok=True, mode=0o700)
        if self.kind == "ssh":
            self._start_sshds(record)
        self.inventory_path.write_text(self._inventory(record))

    def bootstrap(
        self, *, bundle: Bundle | None = None, on_progress: OnProgress | None = None
    ) -> tuple[HostOutcome, ...]:
        """Install and start the agents. As `odctl bootstrap -i <inventory>`."""
        return asyncio.run(self.bootstrap_async(bundle=bundle, on_progress=on_progress))

    async def bootstrap_async(
        self, *, bundle: Bundle | None = None, on_progress: OnProgress | None = None
    ) -> tuple[HostOutcome, ...]:
        inventory = load_inventory(self.inventory_path)
        return await bootstrap_hosts(
            inventory,
            inventory.hosts,
            bundle=bundle or make_bundle(),
            authority=open_authority(inventory.cluster),
            transport_of=lambda name: transport_for(inventory, name),
            on_progress=on_progress,
        )

    def down(self) -> None:
        """Stop everything of the lab and remove it. Does nothing when there is no lab."""
        record = self._record()
        if record is None:
            return
        for host in record.hosts:
            self._stop_processes(host)
            self._sshd(host).stop()
        shutil.rmtree(self.directory)
        shutil.rmtree(cluster_directory(self.cluster), ignore_errors=True)

    def status(self) -> LabStatus:
        """Raises FleetError E901 when there is no lab."""
        record = self._record_or_raise()
        return LabStatus(
            name=record.name,
            kind=record.kind,
            directory=str(self.directory),
            inventory=str(self.inventory_path),
            hosts=tuple(
                LabHostStatus(
                    name=host.name,
                    address=host.address,
                    cluster_port=host.cluster_port,
                    ssh_port=host.ssh_port,
                    sshd_pid=self._sshd(host).pid(),
                    agent_pid=_running_agent(host.prefix),
                )
                for host in record.hosts
            ),
        )

    def _claim_directory(self) -> None:
        """The default place is everybody's: a directory that another user put there is not ours to fill."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = self.directory.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        is_empty = not any(self.directory.iterdir()) if is_ours else False
        if not is_ours or (self._record() is None and not is_empty):
            raise FleetError(
                "E901", f"{self.directory} is there and is no lab of ours", hint="choose another with --dir"
            )

    def _design(self) -> LabRecord:
        hosts = []
        for index in range(1, self._num_hosts + 1):
            address = f"127.0.0.{index + 1}"
            cluster_port, ssh_port = _free_ports(address)
            hosts.append(
                LabHost(
                    name=f"h{index}",
                    home=str(self.directory / f"h{index}"),
                    address=address,
                    cluster_port=cluster_port,
                    ssh_port=ssh_port if self.kind == "ssh" else 0,
                )
            )
        record = LabRecord(name=self.name, kind=self.kind, hosts=tuple(hosts))
        self._record_path.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        return record

    def _start_sshds(self, record: LabRecord) -> None:
        make_key(self._client_key)
        authorized = self.directory / "authorized_keys"
        authorized.write_bytes((self.directory / "client_key.pub").read_bytes())
        sshds = [self._sshd(host) for host in record.hosts]
        for sshd in sshds:
            sshd.start(authorized_keys=authorized)
        (self.directory / "known_hosts").write_text("".join(sshd.known_hosts_line for sshd in sshds))
        # An empty one: what the operator's own ssh_config says of these addresses is none of the lab's business.
        (self.directory / "ssh_config").touch()

    def _inventory(self, record: LabRecord) -> str:
        count = len(record.hosts)
        document = tomlkit.document()
        document["cluster"] = {"name": self.cluster}
        defaults: dict[str, object] = {
            "python": self._python,
            "memory_fraction": round(MEMORY_SHARE / count, 4),
            "threads": max(1, (os.cpu_count() or 1) // count),
        }
        if self._model_dirs:
            defaults["model_dirs"] = list(self._model_dirs)
        if record.kind == "ssh":
            defaults |= {
                "user": getpass.getuser(),
                "identity": str(self._client_key),
                "known_hosts": str(self.directory / "known_hosts"),
                "ssh_config": str(self.directory / "ssh_config"),
            }
        document["defaults"] = defaults
        hosts = tomlkit.table(is_super_table=True)
        for host in record.hosts:
            entry: dict[str, object] = {
                "cluster_address": host.address,
                "cluster_port": host.cluster_port,
                "prefix": str(host.prefix),
                "labels": {"lab": record.name},
            }
            if record.kind == "ssh":
                entry |= {"ssh": host.address, "port": host.ssh_port}
            else:
                entry |= {"transport": "local", "home": host.home}
            hosts[host.name] = entry
        document["hosts"] = hosts
        return tomlkit.dumps(document)

    def _stop_processes(self, host: LabHost) -> None:
        stopped = subprocess.run(
            ["sh", "-s", "--", "stop-all", str(host.prefix)],
            input=script("daemon.sh"),
            capture_output=True,
            timeout=STOP_TIMEOUT_S,
            check=False,
        )
        if stopped.returncode != 0:
            said = stopped.stderr.decode(errors="replace").strip()
            raise FleetError("E901", f"processes of {host.name} do not end: {said}", host=host.name)

    def _sshd(self, host: LabHost) -> LabSshd:
        return LabSshd(
            directory=self.directory / "sshd" / host.name,
            home=Path(host.home),
            address=host.address,
            port=host.ssh_port,
        )

    @property
    def _client_key(self) -> Path:
        return self.directory / "client_key"

    @property
    def _record_path(self) -> Path:
        return self.directory / "lab.json"

    def _record(self) -> LabRecord | None:
        try:
            return msgspec.json.decode(self._record_path.read_bytes(), type=LabRecord)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise FleetError(
                "E901", f"{self._record_path} cannot be read: {error}", hint=f"remove {self.directory} by hand"
            ) from error

    def _record_or_raise(self) -> LabRecord:
        record = self._record()
        if record is None:
            raise FleetError("E901", f"there is no lab in {self.directory}", hint="`odctl lab up` makes one")
        return record


def _free_ports(address: str) -> tuple[int, int]:
    """Two ports that nobody listens on now, held at once so that they differ."""
    with socket.create_server((address, 0)) as first, socket.create_server((address, 0)) as second:
        return int(first.getsockname()[1]), int(second.getsockname()[1])


def _running_agent(prefix: Path) -> int | None:
    try:
        pid = int((prefix / "run" / "agent.pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(prefix).encode() in arguments else None
