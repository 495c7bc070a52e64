"""Whether a host will do, and with which interpreter: everything in the way is told before anything is changed.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import re

import msgspec

from agent.errors import FleetError
from agent.wire.agent import AgentConfig
from odctl.bootstrap.bundle import Bundle
from odctl.bootstrap.probe import ProbeFacts, PythonFacts

MAX_SOCKET_PATH_BYTES = 100
LONGEST_SOCKET_NAME = "0123456789.sock"
"""Sockets of ranks and gateways are ten hex digits (agent.supervisor.paths)."""
MAX_PREFIX_BYTES = MAX_SOCKET_PATH_BYTES - len("/run/") - len(LONGEST_SOCKET_NAME)
MAX_CLOCK_SKEW_S = 240.0
"""Leaves begin five minutes in the past; a host that lags further would refuse them."""
SPARE_DISK_BYTES = 64 << 20
"""For logs, the journal and a second release; models need room of their own."""
VENV_DISK_BYTES = 8 << 30
"""Torch with the CUDA libraries that it brings."""
OUR_NAMES = ("current", "current.new", "releases", "etc", "var", "run", "install.lock", "manifest.json")
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb2", "fuse.sshfs", "ceph", "lustre", "gpfs", "afs")
_PREFIX = re.compile(r"/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the inventory asks of one host. `renew_leaf` says why its certificate must be replaced, if it must."""

    config: AgentConfig
    """`prefix`, `release` and `is_degraded` are filled in from the probe."""
    bundle: Bundle
    ca: bytes
    renew_leaf: str
    python: str = ""


class PythonChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's interpreter; `venv_from` is the one that must build its environment first."""

    path: str
    venv_from: str = ""


def check_host(facts: ProbeFacts, wanted: Wanted) -> None:
    """Raise FleetError E303 with everything that stands in the way, before anything is changed."""
    troubles = [*_prefix_troubles(facts, wanted), *_room_troubles(facts, wanted)]
    if facts.missing_tools:
        troubles.append((f"it lacks {facts.missing_tools}", "install them there (coreutils, tar, util-linux)"))
    if abs(facts.clock_skew_s) > MAX_CLOCK_SKEW_S:
        troubles.append(
            (f"its clock is {facts.clock_skew_s:+.0f} s off ours", "start NTP there: certificates would be refused")
        )
    try:
        choose_python(facts, wanted)
    except FleetError as error:
        troubles.append((error.message, error.hint))
    if troubles:
        raise FleetError(
            "E303",
            "; ".join(message for message, _ in troubles),
            hint="; ".join(hint for _, hint in troubles if hint),
            host=wanted.config.host,
        )


def _prefix_troubles(facts: ProbeFacts, wanted: Wanted) -> list[tuple[str, str]]:
    prefix, troubles = facts.prefix, []
    length = len(prefix.encode())
    if length > MAX_PREFIX_BYTES:
        troubles.append(
            (
                f"the prefix {prefix} is {length} bytes long, {MAX_PREFIX_BYTES} is the most that leaves room for "
                f"the names of unix sockets",
                "give the host a shorter `prefix` in the inventory",
            )
        )
    if not _PREFIX.fullmatch(prefix) or "/../" in prefix + "/":
        troubles.append((f"the prefix {prefix!r} is not a plain absolute path", "change `prefix` in the inventory"))
    if not facts.is_writable:
        troubles.append(
            (f"{facts.user} may not write to {prefix}", "choose another `prefix`, or `chown` it to that user")
        )
    if facts.filesystem in NETWORK_FILESYSTEMS:
        troubles.append(
            (
                f"{prefix} is on a network file system ({facts.filesystem}), where the agent's journal is not safe",
                "set `prefix` to a directory on a disk of the host's own",
            )
        )
    # The lock alone is what an operator leaves who was killed before the manifest was written.
    foreign = sorted(set(OUR_NAMES) & set(facts.entries.split()) - {"install.lock"})
    if not facts.manifest and foreign:
        troubles.append(
            (
                f"{prefix} holds files that are not ours: {', '.join(foreign)}",
                "choose another `prefix`, or move them",
            )
        )
    config = facts.agent_config
    if config is not None and (config.cluster, config.host) != (wanted.config.cluster, wanted.config.host):
        troubles.append(
            (
                f"{prefix} belongs to host {config.host} of cluster {config.cluster}",
                "uninstall it with that inventory first, or choose another `prefix`",
            )
        )
    return troubles


def _room_troubles(facts: ProbeFacts, wanted: Wanted) -> list[tuple[str, str]]:
    troubles = []
    needed = SPARE_DISK_BYTES
    if wanted.bundle.release not in facts.releases.split():
        needed += wanted.bundle.unpacked_bytes
    try:
        builds_venv = bool(choose_python(facts, wanted).venv_from)
    except FleetError:  # told by check_host
        builds_venv = False
    if builds_venv:
        needed += VENV_DISK_BYTES
        if facts.is_noexec:
            troubles.append(
                (f"{facts.prefix} is mounted noexec", "choose another `prefix`, or `python =` with torch installed")
            )
    if facts.disk_free_bytes < needed:
        troubles.append(
            (
                f"{_mib(facts.disk_free_bytes)} MiB are free at {facts.prefix}, {_mib(needed)} MiB are needed",
                "free some space there, or choose a `prefix` on another disk",
            )
        )
    return troubles


def choose_python(facts: ProbeFacts, wanted: Wanted) -> PythonChoice:
    """The first interpreter that has everything, or an environment to be built from the first new enough.

    Raises FleetError E303.
    """
    host = wanted.config.host
    usable = [python for python in facts.pythons if python.is_new_enough]
    if not usable:
        found = ", ".join(f"{python.path} is {python.version}" for python in facts.pythons) or "there is none"
        what = f"`python = {wanted.python}`" if wanted.python else "Python 3.11 or later"
        raise FleetError(
            "E303", f"needs {what}: {found}", hint="install one, or name one with `python =`", host=host
        )
    for python in usable:
        if not missing_packages(python, wanted.bundle):
            return PythonChoice(path=python.path)
    venv = f"{facts.prefix}/{wanted.bundle.venv}"
    for python in usable:
        if python.has_venv and not python.path.startswith(venv + "/"):
            return PythonChoice(path=f"{venv}/bin/python", venv_from=python.path)
    lacks = ", ".join(missing_packages(usable[0], wanted.bundle))
    raise FleetError(
        "E303",
        f"{usable[0].path} lacks {lacks}, and has no venv module to build an environment with",
        hint="install python3-venv there, or name an interpreter that has them with `python =`",
        host=host,
    )


def missing_packages(python: PythonFacts, bundle: Bundle) -> tuple[str, ...]:
    """Requirements that this interpreter does not meet, with what it has instead."""
    missing = []
    for requirement in bundle.requirements:
        installed = python.packages.get(requirement.name)
        if installed is None:
            missing.append(str(requirement))
        elif not requirement.accepts(installed):
            missing.append(f"{requirement} (has {installed})")
    return tuple(missing)


def host_warnings(facts: ProbeFacts) -> list[str]:
    """What works, but not as well as it could."""
    warnings = []
    if not facts.has_user_bus:
        warnings.append("degraded: no systemd user manager keeps the agent; it does not come back after a reboot")
    if facts.has_gpu and 0 <= facts.memlock_kib < 64 * 1024:
        warnings.append(
            f"only {facts.memlock_kib:.0f} KiB may be locked in memory: NCCL over RDMA will fail "
            "(raise LimitMEMLOCK in a drop-in of user@.service)"
        )
    if abs(facts.clock_skew_s) > 5:
        warnings.append(f"its clock is {facts.clock_skew_s:+.0f} s off ours")
    return warnings


def _mib(num_bytes: int) -> int:
    return num_bytes >> 20
