"""Histories as the rows that they gained: each row is kept once, however many snapshots show it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from odctl.fleet import FleetSnapshot
from odctl.fleet.history import DeploymentRow, History, HostRow

AnyRow = TypeVar("AnyRow", HostRow, DeploymentRow)


class NewRows(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rows that histories gained from one snapshot to the next, by name.

    The histories of those in `restarted_…` begin anew with these rows.
    """

    hosts: dict[str, tuple[HostRow, ...]] = {}
    deployments: dict[str, tuple[DeploymentRow, ...]] = {}
    restarted_hosts: tuple[str, ...] = ()
    restarted_deployments: tuple[str, ...] = ()


class Histories(msgspec.Struct, frozen=True, kw_only=True):
    """Of every host and deployment that had a row so far, by name."""

    hosts: dict[str, History[HostRow]] = {}
    deployments: dict[str, History[DeploymentRow]] = {}


def rows_between(before: FleetSnapshot | None, now: FleetSnapshot) -> NewRows:
    """What histories gained since; all of them without a snapshot before."""
    held_hosts = {host.name: host.history for host in before.hosts} if before else {}
    held_views = {view.name: view.history for view in before.deployments} if before else {}
    hosts, restarted_hosts = _gained(held_hosts, {host.name: host.history for host in now.hosts})
    deployments, restarted = _gained(held_views, {view.name: view.history for view in now.deployments})
    return NewRows(
        hosts=hosts,
        deployments=deployments,
        restarted_hosts=restarted_hosts,
        restarted_deployments=restarted,
    )


def with_rows(histories: Histories, rows: NewRows) -> Histories:
    """The histories with these rows at their ends; the given ones stay as they were."""
    return Histories(
        hosts=_grown(histories.hosts, rows.hosts, rows.restarted_hosts),
        deployments=_grown(histories.deployments, rows.deployments, rows.restarted_deployments),
    )


def histories_of(parts: Iterable[NewRows]) -> Histories:
    """As `with_rows` of one after the other, at once: for the many rows before a moment that is jumped to."""
    hosts: dict[str, list[HostRow]] = {}
    deployments: dict[str, list[DeploymentRow]] = {}
    for part in parts:
        _collect(hosts, part.hosts, part.restarted_hosts)
        _collect(deployments, part.deployments, part.restarted_deployments)
    return Histories(
        hosts={name: History.of(rows) for name, rows in hosts.items() if rows},
        deployments={name: History.of(rows) for name, rows in deployments.items() if rows},
    )


def _gained(
    held: dict[str, History[AnyRow]], now: dict[str, History[AnyRow]]
) -> tuple[dict[str, tuple[AnyRow, ...]], tuple[str, ...]]:
    rows: dict[str, tuple[AnyRow, ...]] = {}
    restarted = []
    for name, history in now.items():
        before = held.get(name)
        if before is history:
            continue
        new = history.since(before) if before is not None else None
        if new is None:
            restarted.append(name)
            new = history.rows()
        if new:
            rows[name] = new
    return rows, tuple(restarted)


def _grown(
    histories: dict[str, History[AnyRow]], rows: dict[str, tuple[AnyRow, ...]], restarted: tuple[str, ...]
) -> dict[str, History[AnyRow]]:
    if not rows and not restarted:
        return histories
    out: dict[str, History[AnyRow]] = {name: held for name, held in histories.items() if name not in restarted}
    for name, new in rows.items():
        held = out.get(name)
        if held is None:
            out[name] = History.of(new)
            continue
        for row in new:
            held = held.append(row)
        out[name] = held
    return out


def _collect(lists: dict[str, list[Any]], rows: dict[str, tuple[AnyRow, ...]], restarted: tuple[str, ...]) -> None:
    for name in restarted:
        lists[name] = []
    for name, new in rows.items():
        lists.setdefault(name, []).extend(new)
