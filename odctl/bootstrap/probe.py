"""What a host is and what of ours it holds: one script over the transport, one question to a running agent."""

from __future__ import annotations

import importlib.resources
import time
from typing import TypeVar

import httpx
import msgspec

from agent.errors import FleetError
from agent.wire.agent import AgentConfig, Handshake
from odctl.ssh.http import agent_client
from odctl.ssh.transport import Transport

PROBE_TIMEOUT_S = 60.0
HANDSHAKE_TIMEOUT_S = 5.0
_T = TypeVar("_T")
_BEGIN, _END = b"<<<odctl-probe\n", b"odctl-probe>>>"


class PythonFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One interpreter of a host. `packages` are installed versions of those that were asked for."""

    path: str
    version: str
    has_venv: bool
    packages: dict[str, str]

    @property
    def is_new_enough(self) -> bool:
        major, minor = (int(part) for part in self.version.split(".")[:2])
        return (major, minor) >= (3, 11)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` under the prefix: all that we put on a host, so that it can be taken away again."""

    version: int = 1
    paths: tuple[str, ...]
    """Names in the prefix."""
    unit: str = ""
    """Name of the systemd user unit; empty where the agent is detached."""
    had_linger: bool = False
    """Whether the account lingered before we came."""


class ProbeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `probe.sh`, and of the agent that runs there (`handshake`), if one answers."""

    now_s: float
    os: str
    arch: str
    kernel: str
    libc: str
    uid: int
    user: str
    boot_id: str
    prefix: str
    """Absolute: `~/` is resolved on the host."""
    memlock_kib: float
    """Hard limit; -1 for none."""
    has_gpu: bool
    missing_tools: str
    exists: bool
    disk_free_bytes: int
    filesystem: str
    is_writable: bool
    is_noexec: bool
    has_user_bus: bool
    runtime_directory: str
    has_linger: bool
    pythons: tuple[PythonFacts, ...]
    current: str
    interpreter: str
    """What runs the current release."""
    releases: str
    """Names, newest first, separated by spaces."""
    entries: str
    """Names in the prefix, separated by spaces."""
    lock_age_s: float
    """-1: nobody bootstraps this host."""
    manifest: bytes
    config: bytes
    ca: bytes
    leaf: bytes
    unit: bytes
    has_key: bool
    configured_at_s: float
    """When the newest of config and certificates was written; -1 when there is none."""
    has_socket: bool
    is_agent_running: bool
    is_keeper_running: bool
    clock_skew_s: float = 0.0
    """The host's clock minus ours, half a round trip uncertain."""
    handshake: Handshake | None = None

    @property
    def agent_config(self) -> AgentConfig | None:
        return _decode_or_none(self.config, AgentConfig)

    @property
    def known_manifest(self) -> Manifest | None:
        return _decode_or_none(self.manifest, Manifest)


async def probe_host(
    transport: Transport, *, prefix: str, python: str = "", venv: str = "venv", packages: tuple[str, ...] = ()
) -> ProbeFacts:
    """Probe one host; changes nothing there.

    Raises FleetError E2xx when it cannot be reached, E303 when its shell does not answer as a POSIX shell does.
    """
    script = importlib.resources.files("odctl.bootstrap").joinpath("probe.sh").read_bytes()
    await transport.connect()
    asked_at_s = time.time()
    answer = await transport.run(
        ["sh", "-s", "--", prefix, python, venv, " ".join(packages)], stdin=script, timeout_s=PROBE_TIMEOUT_S
    )
    answered_at_s = time.time()
    facts = parse_probe(answer.stdout, host=transport.host, stderr=answer.stderr)
    facts = msgspec.structs.replace(facts, clock_skew_s=_skew(asked_at_s, facts.now_s, answered_at_s))
    if facts.has_socket:
        handshake = await ask_handshake(transport, f"{facts.prefix}/run/agent.sock")
        facts = msgspec.structs.replace(facts, handshake=handshake)
    return facts


def parse_probe(stdout: bytes, *, host: str, stderr: bytes = b"") -> ProbeFacts:
    """Facts from the script's output, whatever a login shell printed around them."""
    _, begin, rest = stdout.rpartition(_BEGIN)
    body, end, _ = rest.partition(_END)
    tail = stderr.decode(errors="replace").strip()[-500:]
    if not begin or not end:
        raise FleetError(
            "E303", "the probe was cut short", hint=tail or "is /bin/sh a POSIX shell there?", host=host
        )
    try:
        return msgspec.json.decode(body, type=ProbeFacts)
    except msgspec.DecodeError as error:
        raise FleetError(
            "E303", f"the probe's answer cannot be read: {error}", hint=tail or "report this", host=host
        ) from error


async def ask_handshake(transport: Transport, socket: str) -> Handshake | None:
    """The running agent's handshake; `None` when none answers, or not in words that we know."""
    try:
        async with agent_client(transport, socket) as client:
            answer = await client.get("/v1/handshake", timeout=HANDSHAKE_TIMEOUT_S)
            answer.raise_for_status()
            return msgspec.msgpack.decode(answer.content, type=Handshake)
    except (httpx.HTTPError, msgspec.DecodeError, FleetError, OSError):
        # A socket whose agent died refuses, a foreign one answers scrap: both mean that no agent of ours is there.
        return None


def _skew(asked_at_s: float, told_s: float, answered_at_s: float) -> float:
    """Zero while the host's time lies within the exchange; otherwise how far it lies outside."""
    if told_s < asked_at_s:
        return told_s - asked_at_s
    return max(0.0, told_s - answered_at_s)


def _decode_or_none(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(data, type=kind) if data else None
    except msgspec.DecodeError:
        return None
