"""What can be changed in a plan, as values. Replicas and stages count from 0; devices are `host/device` names."""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.planner.words import list_words


class MoveBoundary(msgspec.Struct, frozen=True, kw_only=True):
    """Give `stage` so many layers of the next one; below 0, give the next one so many of its own."""

    replica: int
    stage: int
    layers: int


class SetTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Split a stage over so many devices: those it has, and spare ones of the same kind, near ones first."""

    replica: int
    stage: int
    size: int


class PlaceStage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a stage on these devices; with a stage that has exactly these, it changes places."""

    replica: int
    stage: int
    devices: tuple[str, ...]


class AddStage(msgspec.Struct, frozen=True, kw_only=True):
    """A new stage behind `stage`, of which it takes the last layers: as many as balances the two."""

    replica: int
    stage: int
    devices: tuple[str, ...]


class RemoveStage(msgspec.Struct, frozen=True, kw_only=True):
    """Let the neighbours have a stage's layers, as balances them."""

    replica: int
    stage: int


class ShareHeads(msgspec.Struct, frozen=True, kw_only=True):
    """KV heads of each rank of a stage's tensor-parallel group; columns and vocabulary follow."""

    replica: int
    stage: int
    kv_heads: tuple[int, ...]


class SetServing(msgspec.Struct, frozen=True, kw_only=True):
    """A field of [serving]: `context`, `batch`, `dtype`, `quantisation`, `kv_cache_tokens` …; text is converted."""

    field: str
    value: str | int | bool


class Replan(msgspec.Struct, frozen=True, kw_only=True):
    """Have the planner lay it all out anew, without the excluded hosts and with the pinned ones."""

    excluded: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()


Edit = MoveBoundary | SetTensor | PlaceStage | AddStage | RemoveStage | ShareHeads | SetServing | Replan


def edit_words(edit: Edit) -> str:
    """`boundary behind stage 0.1: +2 layers`: for people."""
    match edit:
        case MoveBoundary(replica=r, stage=s, layers=layers):
            return f"boundary behind stage {r}.{s}: {layers:+d} {'layer' if abs(layers) == 1 else 'layers'}"
        case SetTensor(replica=r, stage=s, size=size):
            return f"stage {r}.{s} over {size} {'device' if size == 1 else 'devices'}"
        case PlaceStage(replica=r, stage=s, devices=devices):
            return f"stage {r}.{s} on {list_words(devices)}"
        case AddStage(replica=r, stage=s, devices=devices):
            return f"a stage behind {r}.{s} on {list_words(devices)}"
        case RemoveStage(replica=r, stage=s):
            return f"no stage {r}.{s}"
        case ShareHeads(replica=r, stage=s, kv_heads=kv_heads):
            return f"KV heads of stage {r}.{s}: {':'.join(map(str, kv_heads))}"
        case SetServing(field=field, value=value):
            return f"{field} = {value}"
        case Replan(excluded=excluded, pinned=pinned):
            without = f" without {list_words(excluded)}" if excluded else ""
            using = f" with {list_words(pinned)}" if pinned else ""
            return f"planned anew{without}{using}"
        case _:
            assert_never(edit)
