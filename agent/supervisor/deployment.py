"""What a controller keeps of a deployment it decides for: durable in its journal, and the view it gives of it."""

from __future__ import annotations

import msgspec

from agent.facts.model import ModelSpec
from agent.journal import Journal
from agent.wire.agent import ApplyPhase, Forget, HostAddress, StopRanks
from agent.wire.gateway import CheckReport
from agent.wire.history import Cause

_PREFIX = "controller/"
_APPLY_PREFIX = "apply/"
_LEFT_PREFIX = "left/"
_PORTS_PREFIX = "ports/"


class Controlled(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment under this controller. `spawn_generation` is the one its processes were started under;
    healing moves `generation` on and leaves that as it is. `replica_generations` are those that the replicas are
    linked under: healing leaves whole ones alone, and 0 is one out of service (empty: all under `generation`).
    """

    plan_toml: str
    plan_hash: str
    spec: ModelSpec
    members: tuple[HostAddress, ...]
    generation: int
    spawn_generation: int
    gateway_socket: str
    applied_at_s: float
    checked: CheckReport | None
    replica_generations: tuple[int, ...] = ()
    cause: Cause = "apply"
    """What brought this generation; `by` and `reason` say more of it, for the history."""
    by: str = ""
    reason: str = ""
    apply_s: float = 0.0
    """Seconds from the apply's begin to its switch; 0: not known."""


class PendingApply(msgspec.Struct, frozen=True, kw_only=True):
    """An apply under way: what a restarted controller needs to roll it back or forward."""

    deployment: str
    generation: int
    holder: str
    phase: ApplyPhase
    members: tuple[HostAddress, ...]
    keep_generations: tuple[int, ...]
    gateway_host: str
    listen: str
    after_switch: Controlled
    """What the deployment is once the switch is done."""
    old_gateway_host: str = ""
    """Of the generation before; empty: there was none."""


class LeftBehind(msgspec.Struct, frozen=True, kw_only=True):
    """A host that was out of reach when a layout was retired, and what it is to be told when it is back."""

    address: HostAddress
    order: StopRanks | Forget


class StepPorts(msgspec.Struct, frozen=True, kw_only=True):
    """Where a layout's ranks accept connections, by host."""

    spawn_generation: int
    by_host: dict[str, tuple[int, ...]]


class ControllerState:
    """The journal's view of both, typed."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def get(self, deployment: str) -> Controlled | None:
        value = self._journal.get_state(_PREFIX + deployment)
        return None if value is None else msgspec.msgpack.decode(value, type=Controlled)

    def put(self, deployment: str, controlled: Controlled) -> None:
        self._journal.put_state(_PREFIX + deployment, msgspec.msgpack.encode(controlled))

    def delete(self, deployment: str) -> None:
        self._journal.delete_state(_PREFIX + deployment)
        self._journal.delete_state(_PORTS_PREFIX + deployment)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(key.removeprefix(_PREFIX) for key in self._journal.list_state(_PREFIX)))

    def put_step_ports(self, deployment: str, spawn_generation: int, by_host: dict[str, tuple[int, ...]]) -> None:
        ports = StepPorts(spawn_generation=spawn_generation, by_host=by_host)
        self._journal.put_state(_PORTS_PREFIX + deployment, msgspec.msgpack.encode(ports))

    def step_ports(self, deployment: str, spawn_generation: int) -> dict[str, tuple[int, ...]]:
        """Empty for a layout that nobody has heard a rank of."""
        value = self._journal.get_state(_PORTS_PREFIX + deployment)
        if value is None:
            return {}
        ports = msgspec.msgpack.decode(value, type=StepPorts)
        return ports.by_host if ports.spawn_generation == spawn_generation else {}

    def put_apply(self, pending: PendingApply) -> None:
        self._journal.put_state(_APPLY_PREFIX + pending.deployment, msgspec.msgpack.encode(pending))

    def end_apply(self, deployment: str) -> None:
        self._journal.delete_state(_APPLY_PREFIX + deployment)

    def leave_behind(self, deployment: str, left: tuple[LeftBehind, ...]) -> None:
        """Replaces what was left behind before: the newest layout says all there is to say."""
        if left:
            self._journal.put_state(_LEFT_PREFIX + deployment, msgspec.msgpack.encode(left))
        else:
            self._journal.delete_state(_LEFT_PREFIX + deployment)

    def left_behind(self) -> dict[str, tuple[LeftBehind, ...]]:
        return {
            key.removeprefix(_LEFT_PREFIX): msgspec.msgpack.decode(value, type=tuple[LeftBehind, ...])
            for key, value in self._journal.list_state(_LEFT_PREFIX).items()
        }

    def interrupted_applies(self) -> tuple[PendingApply, ...]:
        return tuple(
            msgspec.msgpack.decode(value, type=PendingApply)
            for value in self._journal.list_state(_APPLY_PREFIX).values()
        )
