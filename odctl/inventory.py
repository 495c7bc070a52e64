"""`inventory.toml` -> Inventory: which hosts there are, how each is reached, and what we may use of it.

Reads one file and the environment's home directory; connects to nothing. Paths on the operator's machine have
`~` resolved; paths on hosts (`prefix`, `python`, `model_dirs`) keep it for the host to resolve.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from agent.documents import (
    CONTRADICTION,
    MISSING_KEY,
    NOT_ALLOWED,
    UNREADABLE,
    Document,
    DocumentError,
    Problem,
    Span,
    closest,
    convert,
    parse_document,
)
from agent.errors import FleetError

DEFAULT_PREFIX = "~/.local/share/odctl"
DEFAULT_CLUSTER_PORT = 7433
NO_SUCH_HOST = "E108"
"""A selector that matches nothing."""

HostKeys = Literal["strict", "accept-new"]
TransportKind = Literal["ssh", "local"]

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=600)]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        extra={"form": "a name of letters, digits, `.`, `_` and `-`, at most 63 long"},
    ),
]
ClusterName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        extra={"form": "a name of lower-case letters, digits and `-`, at most 63 long"},
    ),
]
HostKeyPin = Annotated[
    str,
    msgspec.Meta(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$", extra={"form": "`SHA256:` and 43 base64 characters"}),
]
Address = Annotated[
    str, msgspec.Meta(pattern=r"^[^\s@/]+$", extra={"form": "an alias, host name or address, without `user@`"})
]
LABEL = re.compile(r"^\s*(?P<label>[^\s=,]+)\s*=\s*(?P<value>[^=,]*?)\s*$")

_ADDRESS = re.compile(
    r"^(?:(?P<user>[^@]+)@)?(?P<address>\[[^]]+\]|[^:@]+"
    r"|[^@\[\]]+:[^@\[\]]*:[^@\[\]]*)(?::(?P<port>\d+))?$"
)
"""The last form is an IPv6 address without brackets, which then has no port."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What we may use of a host. `devices` and `threads` are `None` for all there are."""

    memory_fraction: float = 0.9
    devices: tuple[str, ...] | None = None
    threads: int | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One host with every default applied. `None` leaves a choice to ssh_config, and then to OpenSSH's default."""

    name: str
    transport: TransportKind
    ssh: str
    """Alias in ssh_config, host name or address."""
    user: str | None
    port: int | None
    identity: Path | None
    """The only key offered; without one, the keys of the SSH agent and of ssh_config."""
    jump: tuple[str, ...] | None
    """Hosts to go through, first to last: names of this inventory, aliases, or `user@address:port`.

    Empty for none at all; `None` leaves it to ssh_config's ProxyJump.
    """
    host_keys: HostKeys
    host_key: str | None
    """Pinned fingerprint, `SHA256:…`."""
    connect_timeout_s: float
    cluster_address: str
    cluster_port: int
    labels: dict[str, str]
    python: str | None
    """Interpreter on the host that already has the pinned torch; `None` lets bootstrap install one."""
    prefix: str
    model_dirs: tuple[str, ...]
    home: Path | None
    """Home directory of a `local` host; the operator's own when `None`."""
    limits: Limits


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """Whether applied plans are recorded and advise later ones, and whether plans may be chosen to learn more."""

    document_noun: ClassVar[str] = "learning"
    enabled: bool = True
    explore: bool = False
    protected: tuple[str, ...] = ()
    """Deployments that are never explored with."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    cluster: str
    trusted_network: bool = False
    """Nobody else hears what passes between the hosts: plans may name carriers without encryption there."""
    hosts: tuple[Host, ...]
    """Sorted by name."""
    groups: dict[str, tuple[str, ...]]
    """Host names of each group, sorted."""
    known_hosts: tuple[Path, ...]
    """Files to read host keys from; missing ones count as empty. `accept-new` writes to none of these."""
    ssh_config: tuple[Path, ...]
    """OpenSSH client configurations that exist, the user's first."""
    learning: Learning = Learning()

    @property
    def directory(self) -> Path:
        """The operator's own state for this cluster: CA, accepted host keys."""
        return cluster_directory(self.cluster)

    def host(self, name: str) -> Host:
        """The host of that name. Raises FleetError E108."""
        found = self.find(name)
        if found is None:
            names = [host.name for host in self.hosts]
            hint = closest(name, names) or f"hosts: {', '.join(names)}"
            raise FleetError(NO_SUCH_HOST, f"no host `{name}` in {self.path}", hint=hint)
        return found

    def find(self, name: str) -> Host | None:
        return next((host for host in self.hosts if host.name == name), None)


def cluster_directory(cluster: str) -> Path:
    """`~/.local/share/odctl/clusters/<cluster>` on the operator's machine (XDG_DATA_HOME honoured).

    ODCTL_HOME names another place for all that the operator keeps.
    """
    if home := os.environ.get("ODCTL_HOME"):
        return Path(home).expanduser() / "clusters" / cluster
    data_home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data_home).expanduser() / "odctl" / "clusters" / cluster


def split_address(text: str) -> tuple[str | None, str, int | None]:
    """User, address and port of `[user@]address[:port]`; IPv6 in brackets when it has a port.

    Raises ValueError for anything else.
    """
    found = _ADDRESS.match(text.removeprefix("ssh://").strip())
    if not found:
        raise ValueError(f"`{text}` is not [user@]address[:port]")
    return found["user"], found["address"].strip("[]"), int(found["port"]) if found["port"] else None


class _Cluster(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "cluster"
    name: ClusterName = ""
    """Required, but by a check, so that a file without it is still told everything else."""
    trusted_network: bool = False


class _Defaults(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "defaults"
    user: str | None = None
    port: Port | None = None
    identity: str | None = None
    jump: tuple[str, ...] | None = None
    host_keys: HostKeys = "strict"
    known_hosts: str | None = None
    ssh_config: str | None = None
    connect_timeout_s: Seconds = 15.0
    cluster_port: Port = DEFAULT_CLUSTER_PORT
    python: str | None = None
    prefix: str = DEFAULT_PREFIX
    model_dirs: tuple[str, ...] = ()
    memory_fraction: Fraction = 0.9
    threads: Threads | None = None


class _Limits(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "limits"
    memory_fraction: Fraction | None = None
    devices: tuple[str, ...] | None = None
    threads: Threads | None = None


class _Host(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "host"
    ssh: Address | None = None
    transport: TransportKind = "ssh"
    user: str | None = None
    port: Port | None = None
    identity: str | None = None
    jump: tuple[str, ...] | None = None
    host_keys: HostKeys | None = None
    host_key: HostKeyPin | None = None
    connect_timeout_s: Seconds | None = None
    cluster_address: Address | None = None
    cluster_port: Port | None = None
    labels: dict[str, str] = {}
    python: str | None = None
    prefix: str | None = None
    model_dirs: tuple[str, ...] | None = None
    home: str | None = None
    limits: _Limits = _Limits()


class _Group(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "group"
    hosts: tuple[str, ...] | None = None
    match: str | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "inventory"
    cluster: _Cluster = _Cluster()
    version: Literal[1] = 1
    defaults: _Defaults = _Defaults()
    hosts: dict[Name, _Host] = {}
    groups: dict[Name, _Group] = {}
    learning: Learning = Learning()


def load_inventory(path: str | Path) -> Inventory:
    """Read and resolve an inventory. Raises DocumentError (E1xx) with every problem of the file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        hint = "`odctl init HOST…` writes one; `-i FILE` names another"
        raise FleetError(UNREADABLE, f"there is no {path}", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(UNREADABLE, f"cannot read {path}: {error}") from error
    return parse_inventory(text, path=path)


def parse_inventory(text: str, *, path: Path) -> Inventory:
    """As `load_inventory`, from text that is not on disk; `path` stands in messages."""
    document = parse_document(text, file=str(path))
    if not document.data:
        problem = Problem(
            code=UNREADABLE, message="the inventory is empty", file=str(path), span=Span(line=1, column=1)
        )
        raise DocumentError((problem,))
    checks = (_check_cluster, _check_addresses, _check_groups, _check_jumps, _check_local)
    file = convert(document, _File, extra_checks=checks)
    hosts = tuple(_resolve(name, file.hosts[name], file.defaults) for name in sorted(file.hosts))
    return Inventory(
        path=path,
        cluster=file.cluster.name,
        trusted_network=file.cluster.trusted_network,
        hosts=hosts,
        groups={name: _group_members(group, hosts) for name, group in file.groups.items()},
        known_hosts=_known_hosts_files(file.defaults),
        ssh_config=_ssh_config_files(file.defaults),
        learning=file.learning,
    )


def select(inventory: Inventory, selector: str) -> tuple[Host, ...]:
    """Hosts by `all`, names, globs (`gpu*`), `group:a` and `label=value`; a comma joins. Sorted by name.

    Raises FleetError E108 for a part that matches nothing, with what was probably meant.
    """
    chosen: set[str] = set()
    parts = [part.strip() for part in selector.split(",") if part.strip()]
    if not parts:
        raise FleetError(NO_SUCH_HOST, "an empty host selector", hint="`all`, a name, `group:a` or `label=value`")
    for part in parts:
        chosen |= _select_part(inventory, part)
    return tuple(host for host in inventory.hosts if host.name in chosen)


def _select_part(inventory: Inventory, part: str) -> set[str]:
    names = [host.name for host in inventory.hosts]
    if part == "all":
        return set(names)
    if part.startswith("group:"):
        group = part.removeprefix("group:")
        if group not in inventory.groups:
            hint = closest(group, inventory.groups) or f"groups: {', '.join(inventory.groups) or 'none'}"
            raise FleetError(NO_SUCH_HOST, f"no group `{group}` in {inventory.path}", hint=hint)
        return set(inventory.groups[group])
    if condition := LABEL.match(part):
        found = {host.name for host in inventory.hosts if _has_label(host, condition)}
        if not found:
            values = sorted(
                {f"{label}={value}" for host in inventory.hosts for label, value in host.labels.items()}
            )
            hint = closest(part, values) or f"labels: {', '.join(values) or 'none'}"
            raise FleetError(NO_SUCH_HOST, f"no host has the label `{part}`", hint=hint)
        return found
    found = set(fnmatch.filter(names, part))
    if not found:
        if part in inventory.groups:
            raise FleetError(NO_SUCH_HOST, f"no host `{part}`", hint=f"the group is `group:{part}`")
        inventory.host(part)
    return found


def _has_label(host: Host, condition: re.Match[str]) -> bool:
    return host.labels.get(condition["label"]) == condition["value"]


def _resolve(name: str, host: _Host, defaults: _Defaults) -> Host:
    identity = host.identity or defaults.identity
    address = host.ssh or name
    return Host(
        name=name,
        transport=host.transport,
        ssh=address,
        user=host.user or defaults.user,
        port=host.port or defaults.port,
        identity=Path(identity).expanduser() if identity else None,
        jump=_jump_of(name, host, defaults),
        host_keys=host.host_keys or defaults.host_keys,
        host_key=host.host_key,
        connect_timeout_s=host.connect_timeout_s or defaults.connect_timeout_s,
        cluster_address=_cluster_address(name, host),
        cluster_port=host.cluster_port or defaults.cluster_port,
        labels=host.labels,
        python=host.python or defaults.python,
        prefix=host.prefix or defaults.prefix,
        model_dirs=defaults.model_dirs if host.model_dirs is None else host.model_dirs,
        home=Path(host.home).expanduser() if host.home else None,
        limits=Limits(
            memory_fraction=host.limits.memory_fraction or defaults.memory_fraction,
            devices=host.limits.devices,
            threads=host.limits.threads or defaults.threads,
        ),
    )


def _cluster_address(name: str, host: _Host) -> str:
    if host.cluster_address:
        return host.cluster_address
    return "127.0.0.1" if host.transport == "local" else host.ssh or name


def _jump_of(name: str, host: _Host, defaults: _Defaults) -> tuple[str, ...] | None:
    if host.transport == "local":
        return ()
    if host.jump is not None:
        return host.jump
    # A bastion that is itself in the inventory does not go through itself.
    return None if defaults.jump is None or name in defaults.jump else defaults.jump


def _group_members(group: _Group, hosts: Sequence[Host]) -> tuple[str, ...]:
    named = set(group.hosts or ())
    conditions = [condition for part in (group.match or "").split(",") if (condition := LABEL.match(part))]
    return tuple(
        host.name
        for host in hosts
        if host.name in named or (conditions and all(_has_label(host, condition) for condition in conditions))
    )


def _known_hosts_files(defaults: _Defaults) -> tuple[Path, ...]:
    if defaults.known_hosts:
        return (Path(defaults.known_hosts).expanduser(),)
    return (
        Path("~/.ssh/known_hosts").expanduser(),
        Path("~/.ssh/known_hosts2").expanduser(),
        Path("/etc/ssh/ssh_known_hosts"),
    )


def _ssh_config_files(defaults: _Defaults) -> tuple[Path, ...]:
    if defaults.ssh_config:
        return (Path(defaults.ssh_config).expanduser(),)
    candidates = (Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config"))
    return tuple(path for path in candidates if path.is_file())


def _check_cluster(document: Document, file: _File) -> Iterable[Problem]:
    if not file.cluster.name:
        label = "the cluster needs a name, which its certificates and state carry"
        hint = 'start with:  [cluster]  name = "lab"'
        yield document.problem(
            MISSING_KEY, "missing key `cluster.name`", ("cluster", "name"), label=label, hint=hint
        )


def _check_addresses(document: Document, file: _File) -> Iterable[Problem]:
    """Two agents cannot listen on one address and port."""
    seen: dict[tuple[str, int], str] = {}
    for name, host in file.hosts.items():
        address = (_cluster_address(name, host), host.cluster_port or file.defaults.cluster_port)
        other = seen.setdefault(address, name)
        if other != name:
            stated = next((key for key in ("cluster_address", "cluster_port", "ssh") if getattr(host, key)), None)
            place = ("hosts", name, stated) if stated else ("hosts", name)
            yield document.problem(
                CONTRADICTION,
                f"`{name}` and `{other}` have the same cluster address {address[0]}:{address[1]}",
                place,
                label=f"also `{other}`'s",
                hint="give one of them another `cluster_address` or `cluster_port`",
            )


def _check_groups(document: Document, file: _File) -> Iterable[Problem]:
    # Names come from the text: a host with a mistake in it is wrong, but not unknown.
    names = list(document.data.get("hosts", {}))
    for name, group in file.groups.items():
        if (group.hosts is None) == (group.match is None):
            yield document.problem(
                CONTRADICTION, f"group `{name}` needs either `hosts` or `match`", ("groups", name)
            )
        for index, host in enumerate(group.hosts or ()):
            if host not in names:
                yield document.problem(
                    CONTRADICTION,
                    f"group `{name}` names an unknown host `{host}`",
                    ("groups", name, "hosts", index),
                    label="not a host of this inventory",
                    hint=closest(host, names),
                )
        for part in (group.match or "=").split(",") if group.match is not None else ():
            if not LABEL.match(part):
                yield document.problem(
                    NOT_ALLOWED,
                    f"group `{name}` has a `match` that is not `label=value`",
                    ("groups", name, "match"),
                    hint='several conditions: match = "rack=a, gpu=4090" (all must hold)',
                )


def _check_jumps(document: Document, file: _File) -> Iterable[Problem]:
    """No host may be reached through itself, and none through a `local` one."""
    jumps = {name: _jump_of(name, host, file.defaults) or () for name, host in file.hosts.items()}
    reported: set[frozenset[str]] = set()
    for name, host in file.hosts.items():
        place = ("hosts", name, "jump") if host.jump is not None else ("defaults", "jump")
        for jump in jumps[name]:
            if not _ADDRESS.match(jump):
                what = f"`{jump}` is neither a host of this inventory nor [user@]address[:port]"
                yield document.problem(NOT_ALLOWED, what, place)
            if jump in file.hosts and file.hosts[jump].transport == "local":
                yield document.problem(
                    CONTRADICTION,
                    f"`{name}` jumps through `{jump}`, which is reached without SSH",
                    place,
                    label='a host with transport = "local"',
                )
        cycle = _jump_cycle(name, jumps)
        if cycle and frozenset(cycle) not in reported:
            reported.add(frozenset(cycle))
            yield document.problem(
                CONTRADICTION,
                f"`{name}` is reached through itself: {' -> '.join(cycle)}",
                place,
                label="jumps in a circle",
            )


def _jump_cycle(start: str, jumps: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The way from `start` back to itself, or nothing."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for jump in jumps.get(way[-1], ()):
            if jump == start:
                return (*way, jump)
            if jump not in seen:
                seen.add(jump)
                ways.append((*way, jump))
    return ()


def _check_local(document: Document, file: _File) -> Iterable[Problem]:
    """What a host's transport does not use is a misunderstanding, not a detail."""
    ssh_only = ("user", "port", "identity", "jump", "host_keys", "host_key", "connect_timeout_s")
    for name, host in file.hosts.items():
        unused = ssh_only if host.transport == "local" else ("home",)
        for key in unused:
            if getattr(host, key) is not None:
                yield document.problem(
                    CONTRADICTION,
                    f'`{key}` means nothing for a host with transport = "{host.transport}"',
                    ("hosts", name, key),
                    of="key",
                )
