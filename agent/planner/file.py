"""`plan.toml`: a plan as a file that people read, edit and keep in version control. Pure: text in, text out.

The writer is deterministic: equal plans are equal bytes. The first line carries the plan's hash; a file edited by
hand no longer matches it, which is allowed and can be told (`is_edited`): the hash that counts is always computed
from the content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import msgspec

from agent.documents import CONTRADICTION, NOT_ALLOWED, Document, KeyPath, Problem, convert, parse_document
from agent.planner.plan import (
    PLAN_VERSION,
    Asked,
    DraftRef,
    Healing,
    Learning,
    ModelRef,
    Objective,
    Plan,
    Predicted,
    Range,
    Replica,
    Serving,
    Shard,
    ShardBytes,
    Stage,
)

_HASH_LINE = re.compile(r"\A# odctl plan sha256:([0-9a-f]{64})$", re.MULTILINE)
_NOTHING_ASKED = Asked()
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Pair = tuple[Count, Count]


class BytesTable(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "bytes"
    weights: Count
    kv_cache: Count
    activations: Count
    headroom: Count


class ShardTable(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "shard"
    host: str
    device: str
    heads: Pair
    kv_heads: Pair
    columns: Pair
    vocab: Pair
    bytes: BytesTable


class StageTable(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "stage"
    layers: Pair
    shard: Annotated[tuple[ShardTable, ...], msgspec.Meta(min_length=1)]


class ReplicaTable(msgspec.Struct, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "replica"
    stage: Annotated[tuple[StageTable, ...], msgspec.Meta(min_length=1)]


class ServingTable(Serving, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "serving"
    context: Positive = 2048
    batch: Positive = 8
    prefill_chunk: Positive = 256
    queue: Count = 512
    max_drafts: Positive = 8
    kv_cache_tokens: Count = 0


class DraftTable(DraftRef, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "draft"
    weight_bytes: Count
    predicted_cost: Annotated[float, msgspec.Meta(ge=0)]


class AskedTable(Asked, frozen=True, kw_only=True):
    document_noun: ClassVar[str] = "asked"


class PlanTable(msgspec.Struct, frozen=True, kw_only=True):
    """The file's shape: `replica`, `stage` and `shard` are singular there, as TOML's arrays of tables read."""

    document_noun: ClassVar[str] = "plan"
    version: int
    name: str
    model: ModelRef
    draft: DraftTable | None = None
    objective: Objective = Objective()
    replica: Annotated[tuple[ReplicaTable, ...], msgspec.Meta(min_length=1)]
    serving: ServingTable
    controllers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    predicted: Predicted
    healing: Healing = Healing()
    cluster: str = ""
    facts_digest: str = ""
    why: tuple[str, ...] = ()
    learning: Learning | None = None
    asked: AskedTable | None = None


def plan_hash(plan: Plan) -> str:
    """sha256 over the plan's canonical JSON, in hex: its name wherever a plan is referred to.

    Plans without a draft model, a word on learning or a constraint have the hash that they had before there were
    such things. Constraints are hashed as the objective and the reasons are: who reads the plan goes by them.
    """
    content = dict(_fields(plan))  # in the order of the fields
    for name in ("draft", "learning", "asked"):
        if content[name] is None:
            del content[name]
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def plan_to_toml(plan: Plan) -> str:
    """The plan file's text. Every field is written, in a fixed order, so that it can be edited without a manual;
    of constraints those alone that there are, for they are no settings."""
    lines = [f"# odctl plan sha256:{plan_hash(plan)}"]
    head = ("version", "name", "cluster", "facts_digest", "controllers")
    lines += [f"{key} = {_value(getattr(plan, key))}" for key in head]
    lines += ["why = [", *(f"  {_value(line)}," for line in plan.why), "]"] if plan.why else ["why = []"]
    lines += _table("model", plan.model)
    if plan.draft is not None:
        lines += _table("draft", plan.draft)
    lines += _table("objective", plan.objective)
    for replica in plan.replicas:
        lines += ["", "[[replica]]"]
        for stage in replica.stages:
            lines += ["", "  [[replica.stage]]", f"  layers = {_value(stage.layers)}"]
            for shard in stage.shards:
                lines += ["", "    [[replica.stage.shard]]"]
                lines += [f"    {key} = {_value(value)}" for key, value in _fields(shard)]
    lines += _table("serving", plan.serving) + _table("healing", plan.healing) + _table("predicted", plan.predicted)
    if plan.learning is not None:
        lines += _table("learning", plan.learning)
    if plan.asked is not None:
        told = ((key, value) for key, value in _fields(plan.asked) if value != getattr(_NOTHING_ASKED, key))
        lines += ["", "[asked]", *(f"{key} = {_value(value)}" for key, value in told)]
    return "\n".join(lines) + "\n"


def plan_from_toml(text: str, *, file: str) -> Plan:
    """The plan in a file's text. Raises DocumentError (E101 to E107) with every problem at its line and column.

    What only the model or the cluster can tell is left to `planner.check`.
    """
    document = parse_document(text, file=file)
    table = convert(
        document,
        PlanTable,
        extra_checks=(_check_version, _check_draft, _check_ranges, _check_places, _check_bounds),
    )
    return Plan(
        name=table.name,
        model=table.model,
        objective=table.objective,
        replicas=tuple(_replica(replica) for replica in table.replica),
        serving=msgspec.convert(table.serving, Serving, from_attributes=True),
        controllers=table.controllers,
        predicted=table.predicted,
        healing=table.healing,
        draft=msgspec.convert(table.draft, DraftRef | None, from_attributes=True),
        cluster=table.cluster,
        facts_digest=table.facts_digest,
        why=table.why,
        learning=table.learning,
        asked=_asked(table.asked),
        version=table.version,
    )


def is_edited(text: str, plan: Plan) -> bool:
    """True when the file's hash line is missing or no longer that of its content: someone changed it by hand."""
    recorded = _HASH_LINE.search(text)
    return recorded is None or recorded[1] != plan_hash(plan)


def _asked(table: AskedTable | None) -> Asked | None:
    """None of an empty table too: nothing was asked."""
    asked = msgspec.convert(table, Asked | None, from_attributes=True)
    return None if asked == _NOTHING_ASKED else asked


def _replica(table: ReplicaTable) -> Replica:
    return Replica(
        stages=tuple(
            Stage(layers=stage.layers, shards=tuple(_shard(shard) for shard in stage.shard))
            for stage in table.stage
        )
    )


def _shard(table: ShardTable) -> Shard:
    return Shard(
        host=table.host,
        device=table.device,
        heads=table.heads,
        kv_heads=table.kv_heads,
        columns=table.columns,
        vocab=table.vocab,
        bytes=msgspec.convert(table.bytes, ShardBytes, from_attributes=True),
    )


# --- what no type can say -----------------------------------------------------------------------------


def _check_version(document: Document, plan: PlanTable) -> Iterator[Problem]:
    if plan.version != PLAN_VERSION:
        yield document.problem(
            NOT_ALLOWED,
            f"plan version {plan.version} is not {PLAN_VERSION}, the one this odctl reads",
            ("version",),
            label="unknown version",
            hint="plan anew, or use the odctl that wrote it",
        )


def _check_draft(document: Document, plan: PlanTable) -> Iterator[Problem]:
    speculation = plan.serving.speculation
    if speculation == "draft_model" and plan.draft is None:
        yield document.problem(
            CONTRADICTION,
            "the plan guesses with a draft model, and names none",
            ("serving", "speculation"),
            label="there is no [draft]",
            hint='plan again with --draft MODEL, or set it to "none" or "prompt_lookup"',
        )
    if speculation != "draft_model" and plan.draft is not None:
        yield document.problem(
            CONTRADICTION,
            f'the plan names draft model `{plan.draft.name}`, and `serving.speculation` is "{speculation}"',
            ("draft",),
            label="never used",
            hint='plan again without --draft, or set `speculation = "draft_model"` in [serving]',
        )


def _check_ranges(document: Document, plan: PlanTable) -> Iterator[Problem]:
    for path, value in _ranges(plan):
        if value[0] >= value[1]:
            yield document.problem(
                CONTRADICTION,
                f"`{path[-1]}` is [{value[0]}, {value[1]}], which holds nothing: ranges are [first, end)",
                path,
                label="first must be below end",
            )


def _check_places(document: Document, plan: PlanTable) -> Iterator[Problem]:
    seen: dict[tuple[str, str], KeyPath] = {}
    for path, shard in _shards(plan):
        place = (shard.host, shard.device)
        if place in seen:
            line = document.span((*seen[place], "device")).line
            yield document.problem(
                CONTRADICTION,
                f"device `{shard.host}/{shard.device}` holds two shards",
                (*path, "device"),
                label=f"already used at line {line}",
                hint="each device holds one shard of one plan",
            )
        seen.setdefault(place, path)


def _check_bounds(document: Document, plan: PlanTable) -> Iterator[Problem]:
    predicted = plan.predicted
    for field, bounds, expected in (
        ("ttft_bounds_s", predicted.ttft_bounds_s, predicted.ttft_s),
        ("time_per_token_bounds_s", predicted.time_per_token_bounds_s, predicted.time_per_token_s),
        ("tokens_per_s_bounds", predicted.tokens_per_s_bounds, predicted.tokens_per_s),
    ):
        if bounds and not (len(bounds) == 2 and bounds[0] <= expected <= bounds[1]):
            yield document.problem(
                CONTRADICTION,
                f"`{field}` is {list(bounds)}, which is not a low and a high around the predicted {expected:g}",
                ("predicted", field),
                label="must be [low, high], or [] where it is not known",
                hint="odctl plan predicts anew",
            )
    for field, ends in (("joules_per_token", predicted.joules_per_token), ("peak_bytes", predicted.peak_bytes)):
        if ends and not (len(ends) == 3 and 0 < ends[0] <= ends[1] <= ends[2]):
            yield document.problem(
                CONTRADICTION,
                f"`{field}` is {list(ends)}, which is not a low, an expected and a high above 0",
                ("predicted", field),
                label="must be [low, expected, high], or [] where it is not known",
                hint="odctl plan predicts anew",
            )


def _shards(plan: PlanTable) -> Iterator[tuple[KeyPath, ShardTable]]:
    for r, replica in enumerate(plan.replica):
        for s, stage in enumerate(replica.stage):
            for t, shard in enumerate(stage.shard):
                yield ("replica", r, "stage", s, "shard", t), shard


def _ranges(plan: PlanTable) -> Iterator[tuple[KeyPath, Range]]:
    for r, replica in enumerate(plan.replica):
        for s, stage in enumerate(replica.stage):
            yield ("replica", r, "stage", s, "layers"), stage.layers
    for path, shard in _shards(plan):
        for field in ("heads", "kv_heads", "columns", "vocab"):
            yield (*path, field), getattr(shard, field)


# --- writing ------------------------------------------------------------------------------------------


def _fields(value: msgspec.Struct) -> Iterable[tuple[str, Any]]:
    return ((field, getattr(value, field)) for field in value.__struct_fields__)


def _table(name: str, value: msgspec.Struct) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {_value(item)}" for key, item in _fields(value))]


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped as well.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case Mapping():
            pairs = (f"{_key(key)} = {_value(item)}" for key, item in value.items())
            return "{ " + ", ".join(pairs) + " }" if value else "{}"
        case msgspec.Struct():
            return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in _fields(value)) + " }"
        case _:
            raise AssertionError(f"{value!r} has no form in a plan file")


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else json.dumps(key, ensure_ascii=False)
