"""What changed from one snapshot to the next, as messages, and a snapshot out of what changed. Pure.

Fields are taken from the views' own definitions: one that a view gains is recorded without a word here. Parts that
are equal to those before are left out, and the same object again when they are read.

Histories are no part of it (`recording.rows` keeps them). A host's `sample_age_s` grows with every snapshot, so the
time at which its sample came is kept instead.
"""

from __future__ import annotations

from typing import Any, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from agent.wire.agent import DeploymentStatus
from odctl.fleet import FleetSnapshot, HostView
from odctl.fleet.history import History
from odctl.fleet.snapshot import DeploymentView
from odctl.recording.rows import Histories

_ADDED = {"name", "received_at_s", "status_change"}
"""Fields of the messages that are no fields of what changes; names never do."""


def _change_type(name: str, of: type[msgspec.Struct], *, left_out: set[str], more: list[Any]) -> Any:
    """A struct with the fields of another, each of which may be unset."""
    fields = [
        (field.name, field.type | UnsetType, UNSET)
        for field in msgspec.structs.fields(of)
        if field.name not in left_out and get_origin(field.type) is not History
    ]
    return msgspec.defstruct(name, [*more, *fields], frozen=True, kw_only=True, omit_defaults=True)


# Types that are made here are Any to the type checker.
HostChange: Any = _change_type(
    "HostChange",
    HostView,
    left_out={"name", "sample_age_s"},
    more=[("name", str), ("received_at_s", float | UnsetType, UNSET)],
)
StatusChange: Any = _change_type("StatusChange", DeploymentStatus, left_out=set(), more=[])
DeploymentChange: Any = _change_type(
    "DeploymentChange",
    DeploymentView,
    left_out={"name"},
    more=[("name", str), ("status_change", StatusChange | UnsetType, UNSET)],
)
FleetChange: Any = _change_type(
    "FleetChange", FleetSnapshot, left_out={"taken_at_s", "hosts", "deployments"}, more=[]
)
FrameChange: Any = msgspec.defstruct(
    "FrameChange",
    [
        ("fleet", FleetChange),
        ("hosts", tuple[HostChange, ...], ()),
        ("deployments", tuple[DeploymentChange, ...], ()),
        ("host_names", tuple[str, ...] | UnsetType, UNSET),
        ("deployment_names", tuple[str, ...] | UnsetType, UNSET),
    ],
    frozen=True,
    kw_only=True,
    omit_defaults=True,
)
"""One snapshot beside the one before. Names are set where they, or their order, are not those of before."""


def change_between(before: FleetSnapshot | None, now: FleetSnapshot) -> Any:
    """A `FrameChange`. Without a snapshot before, it is all of this one but the histories."""
    hosts = {host.name: host for host in before.hosts} if before else {}
    views = {view.name: view for view in before.deployments} if before else {}
    host_changes = [_host_change(hosts.get(host.name), before, host, now) for host in now.hosts]
    view_changes = [_deployment_change(views.get(view.name), view) for view in now.deployments]
    host_names = tuple(host.name for host in now.hosts)
    view_names = tuple(view.name for view in now.deployments)
    return FrameChange(
        fleet=FleetChange(**_differences(before, now, FleetChange)),
        hosts=tuple(change for change in host_changes if change is not None),
        deployments=tuple(change for change in view_changes if change is not None),
        host_names=UNSET if before is not None and tuple(hosts) == host_names else host_names,
        deployment_names=UNSET if before is not None and tuple(views) == view_names else view_names,
    )


def snapshot_of(
    before: FleetSnapshot | None, change: Any, histories: Histories, *, taken_at_s: float
) -> FleetSnapshot:
    """The snapshot after a `FrameChange`. `before` is None only for one that is all of a snapshot."""
    hosts = {host.name: host for host in before.hosts} if before else {}
    views = {view.name: view for view in before.deployments} if before else {}
    host_changes = {each.name: each for each in change.hosts}
    view_changes = {each.name: each for each in change.deployments}
    host_names = tuple(hosts) if change.host_names is UNSET else change.host_names
    view_names = tuple(views) if change.deployment_names is UNSET else change.deployment_names
    fields = {
        "taken_at_s": taken_at_s,
        "hosts": tuple(
            _host(
                name,
                before,
                hosts.get(name),
                change=host_changes.get(name),
                histories=histories,
                taken_at_s=taken_at_s,
            )
            for name in host_names
        ),
        "deployments": tuple(
            _deployment(name, views.get(name), view_changes.get(name), histories) for name in view_names
        ),
        **_set_fields(change.fleet),
    }
    return FleetSnapshot(**fields) if before is None else msgspec.structs.replace(before, **fields)


def _host_change(
    held: HostView | None, before: FleetSnapshot | None, host: HostView, now: FleetSnapshot
) -> Any | None:
    fields = _differences(held, host, HostChange)
    if host.sample is not None:
        received_at_s = now.taken_at_s - host.sample_age_s
        if held is None or before is None or received_at_s != before.taken_at_s - held.sample_age_s:
            fields["received_at_s"] = received_at_s
    return HostChange(name=host.name, **fields) if fields else None


def _deployment_change(held: DeploymentView | None, view: DeploymentView) -> Any | None:
    """A status whose counters went on is told by its counters: the plan in it is long."""
    fields = _differences(held, view, DeploymentChange)
    if held is not None and held.status is not None and fields.get("status") is not None:
        fields["status_change"] = StatusChange(**_differences(held.status, fields.pop("status"), StatusChange))
    return DeploymentChange(name=view.name, **fields) if fields else None


def _host(
    name: str,
    before: FleetSnapshot | None,
    held: HostView | None,
    *,
    change: Any | None,
    histories: Histories,
    taken_at_s: float,
) -> HostView:
    fields = _set_fields(change) if change is not None else {}
    received_at_s = fields.pop("received_at_s", None)
    if received_at_s is None and held is not None and before is not None:
        received_at_s = before.taken_at_s - held.sample_age_s
    has_sample = fields.get("sample", held.sample if held is not None else None) is not None
    fields |= {
        "name": name,
        "history": histories.hosts.get(name) or History(),
        "sample_age_s": max(0.0, taken_at_s - received_at_s) if has_sample and received_at_s is not None else 0.0,
    }
    return HostView(**fields) if held is None else msgspec.structs.replace(held, **fields)


def _deployment(name: str, held: DeploymentView | None, change: Any | None, histories: Histories) -> DeploymentView:
    fields = _set_fields(change) if change is not None else {}
    status_change = fields.pop("status_change", None)
    if status_change is not None and held is not None and held.status is not None:
        fields["status"] = msgspec.structs.replace(held.status, **_set_fields(status_change))
    fields |= {"name": name, "history": histories.deployments.get(name) or History()}
    return DeploymentView(**fields) if held is None else msgspec.structs.replace(held, **fields)


def _differences(before: msgspec.Struct | None, now: msgspec.Struct, of: Any) -> dict[str, Any]:
    """The fields of `now` that a message has, and that differ from those before."""
    out = {}
    for name in of.__struct_fields__:
        if name in _ADDED:
            continue
        value = getattr(now, name)
        if before is None or ((held := getattr(before, name)) is not value and held != value):
            out[name] = value
    return out


def _set_fields(change: Any) -> dict[str, Any]:
    values = ((name, getattr(change, name)) for name in change.__struct_fields__ if name != "name")
    return {name: value for name, value in values if value is not UNSET}
