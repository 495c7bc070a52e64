"""The operator's part of making a plan: what was asked, the fleet as it is now, and the request that is solved.

One way for `odctl plan` and for the terminal UI: equal words give equal plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from agent.documents import closest
from agent.errors import FleetError
from agent.planner.learning.records import Lesson
from agent.planner.make import make_plan
from agent.planner.plan import Objective, Plan, Serving
from agent.planner.problem import PlanRequest
from odctl.apply import add_runs, read_facts
from odctl.fleet import Fleet
from odctl.inventory import Inventory, select
from odctl.learning import read_lessons
from odctl.model_source import check_same_tokens, find_model
from odctl.plugins import load_strategies, strategy_names

BAD_ASK = "E113"
GB = 1e9
Count = Annotated[int, msgspec.Meta(ge=1)]


class PlanAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as it is asked for, in the words of `odctl plan`: a field is an option, its default the option's.

    `hosts`, `exclude` and `pin` are host selectors, the latter two with HOST/DEVICE names among them.
    """

    model: str
    name: str = ""
    """Of the deployment; empty: the model's."""
    objective: Literal["latency", "ttft", "throughput", "context", "energy"] = "latency"
    strategy: str = "adaptive"
    hosts: str = "all"
    exclude: str = ""
    context: Count = 2048
    batch: Count = 8
    kv_cache_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    speculation: Literal["none", "prompt_lookup", "draft_model"] | None = None
    """None: `draft_model` where a draft is named."""
    draft: str = ""
    max_drafts: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: the model's."""
    quantisation: Literal["none", "int8", "int4", "fp8"] = "none"
    exact: bool = False
    stages: Count | None = None
    tensor: str = ""
    """`2`, or a size for each stage: `1,2`."""
    min_hosts: Count = 1
    max_hosts: Count | None = None
    replicas: str = "1"
    """A number, or `max`."""
    pin: str = ""
    exclude_device: tuple[str, ...] = ()
    reserve: tuple[str, ...] = ()
    """`HOST/DEVICE=GB` each."""
    spread: str = ""
    domain: str = ""
    max_ttft: float | None = None
    """Seconds, as `max_time_per_token`."""
    max_time_per_token: float | None = None
    prompt_tokens: Count | None = None
    answer_tokens: Count | None = None
    listen: str = "127.0.0.1:11434"
    controller: tuple[str, ...] = ()
    seed: int = 0


class AskedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner is to solve, and what of the fleet is not in it."""

    request: PlanRequest
    missing: dict[str, FleetError]
    """Hosts that were to be used and did not answer."""
    absent: dict[str, str]
    """Every host that is left out, with the reason."""

    def make(self) -> Plan:
        """Raises FleetError E6xx when nothing fits, E119 for a strategy plugin that does not work."""
        return make_plan(self.request)


def parse_ask(model: str, text: str) -> PlanAsk:
    """`objective=throughput hosts=rack=r03 context=4096 exact`: the options of `odctl plan` as words.

    Raises FleetError E113 naming the word that is none, and the value that its field does not take.
    """
    fields = {field.name: field for field in msgspec.structs.fields(PlanAsk) if field.name != "model"}
    given: dict[str, Any] = {}
    for word in text.split():
        typed, sign, value = word.partition("=")
        name = typed.removeprefix("--").replace("-", "_")
        if name not in fields:
            hint = closest(name, fields) or f"there are {', '.join(fields)}"
            raise FleetError(BAD_ASK, f"`{word}` says nothing of a plan", hint=hint)
        is_list = isinstance(fields[name].default, tuple)
        given[name] = value.split(",") if is_list else value if sign else "true"
        try:
            msgspec.convert({"model": model, name: given[name]}, PlanAsk, strict=False)
        except msgspec.ValidationError as error:
            raise FleetError(BAD_ASK, f"`{word}`: {_reason(error)}") from None
    asked = msgspec.convert({"model": model, **given}, PlanAsk, strict=False)
    if asked.strategy not in strategy_names():
        hint = f"the strategies are {', '.join(strategy_names())}"
        raise FleetError(BAD_ASK, f"`strategy={asked.strategy}` is none", hint=hint)
    _count(asked.replicas)
    _tensor(asked.tensor)
    _reserved(asked.reserve)
    return asked


def ask_words() -> tuple[str, ...]:
    """Every word that `parse_ask` takes, as the options of `odctl plan` are spelt."""
    return tuple(field.replace("_", "-") for field in PlanAsk.__struct_fields__ if field != "model")


def _reason(error: msgspec.ValidationError) -> str:
    return str(error).partition(" - at ")[0]


def chosen_hosts(ask: PlanAsk, inventory: Inventory) -> tuple[list[str], dict[str, str]]:
    """Hosts that may be used, by name, and why the others may not. Raises FleetError E108."""
    excluded, _ = hosts_and_devices(inventory, ask.exclude)
    selected = {host.name for host in select(inventory, ask.hosts)}
    absent = {
        host.name: "excluded" if host.name in excluded else f"not selected by --hosts {ask.hosts}"
        for host in inventory.hosts
        if host.name in excluded or host.name not in selected
    }
    return sorted(selected - set(excluded)), absent


async def read_request(fleet: Fleet, inventory: Inventory, ask: PlanAsk) -> AskedPlan:
    """What the planner needs to know of the chosen hosts, of the model and of what was measured.

    Raises FleetError E701 when a model is nowhere, E711 when the draft model has other tokens, E113 for words that
    contradict each other, E119 for a strategy plugin that does not work, E2xx when no host answers.
    """
    guessing, sizes = _guessing(ask), _tensor(ask.tensor)
    plugins = load_strategies(ask.strategy)
    names, absent = chosen_hosts(ask, inventory)
    left_out, excluded_devices = hosts_and_devices(inventory, ask.exclude)
    facts, missing = await read_facts(fleet, inventory.cluster, hosts=names)
    facts = await add_runs(fleet, facts)
    if not facts.hosts:
        raise next(iter(missing.values()), FleetError("E105", "no host is left to plan with"))
    found = await find_model(fleet, ask.model)
    drafter = await find_model(fleet, ask.draft) if ask.draft else None
    if drafter is not None:
        await check_same_tokens(fleet, found, drafter)
    most_context = min(each.spec.max_context for each in (found, drafter) if each is not None)
    name, learning = ask.name or found.ref.name, inventory.learning
    request = PlanRequest(
        name=name,
        model=found.ref,
        spec=found.spec,
        facts=facts,
        objective=msgspec.convert({"kind": ask.objective, "strategy": ask.strategy}, Objective),
        serving=msgspec.convert(
            {
                "context": min(ask.context, most_context),
                "batch": ask.batch,
                "kv_cache_tokens": ask.kv_cache_tokens,
                "speculation": guessing,
                "max_drafts": ask.max_drafts,
                "dtype": ask.dtype or found.spec.dtype,
                "quantisation": ask.quantisation,
                "exact": ask.exact,
                "listen": ask.listen,
                "trusted_network": inventory.trusted_network,
            },
            Serving,
        ),
        stages=ask.stages,
        tensor=sizes[0] if len(sizes) == 1 else None,
        tensor_parallel_sizes=sizes if len(sizes) > 1 else (),
        min_hosts=ask.min_hosts,
        max_hosts=ask.max_hosts,
        replicas=_count(ask.replicas),
        pinned=tuple(itertools.chain(*hosts_and_devices(inventory, ask.pin))),
        excluded=(*ask.exclude_device, *excluded_devices),
        selected="" if ask.hosts == "all" else ask.hosts,
        left_out=left_out,
        reserved_bytes=_reserved(ask.reserve),
        spread=ask.spread,
        domain=ask.domain,
        max_ttft_s=ask.max_ttft,
        max_time_per_token_s=ask.max_time_per_token,
        prompt_tokens=ask.prompt_tokens,
        answer_tokens=ask.answer_tokens,
        controllers=ask.controller,
        seed=ask.seed,
        draft=drafter.ref if drafter is not None else None,
        draft_spec=drafter.spec if drafter is not None else None,
        lessons=await _lessons_for(fleet, inventory, ask),
        is_recorded=learning.enabled,
        may_explore=learning.explore and name not in learning.protected,
        plugins=plugins,
    )
    return AskedPlan(request=request, missing=missing, absent=absent | dict.fromkeys(missing, "did not answer"))


def hosts_and_devices(inventory: Inventory, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hosts that the selectors of a list mean, and its HOST/DEVICE names. Raises FleetError E108."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    devices = tuple(part for part in parts if "/" in part and "=" not in part)
    for name in devices:
        inventory.host(name.partition("/")[0])
    selectors = ",".join(part for part in parts if part not in devices)
    return tuple(host.name for host in select(inventory, selectors)) if selectors else (), devices


async def _lessons_for(fleet: Fleet, inventory: Inventory, ask: PlanAsk) -> tuple[Lesson, ...]:
    """None where the strategy is named, or learning is switched off."""
    if ask.strategy != "adaptive" or not inventory.learning.enabled:
        return ()
    lessons, _ = await read_lessons(fleet)
    return lessons


def _guessing(ask: PlanAsk) -> str:
    """How tokens are guessed. Raises FleetError E113 where the words contradict each other."""
    guessing = ask.speculation or ("draft_model" if ask.draft else "none")
    if (guessing == "draft_model") != bool(ask.draft):
        given = f"--draft {ask.draft}" if ask.draft else "no --draft"
        raise FleetError(
            BAD_ASK,
            f"--speculation {guessing} contradicts {given}",
            hint="leave --speculation out" if ask.draft else "name a small model with --draft MODEL",
        )
    return guessing


def _reserved(texts: Sequence[str]) -> dict[str, int]:
    """Bytes by HOST/DEVICE."""
    found = {}
    for text in texts:
        name, _, amount = text.partition("=")
        try:
            found[name] = int(float(amount.removesuffix("GB")) * GB)
        except ValueError:
            raise FleetError(
                BAD_ASK, f"--reserve {text!r} is not HOST/DEVICE=GB", hint="write --reserve gpu01/cuda:0=8"
            ) from None
    return found


def _count(text: str) -> int | Literal["max"]:
    if text == "max":
        return "max"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise FleetError(BAD_ASK, f"--replicas {text!r} is neither a number above 0 nor max", hint="write --replicas 2")


def _tensor(text: str) -> tuple[int, ...]:
    """The size of each stage, or one for all of them; empty: the planner chooses."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise FleetError(
            BAD_ASK, f"--tensor {text!r} is not a list of numbers", hint="write --tensor 1,2"
        ) from None
