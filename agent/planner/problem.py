"""What is to be planned: the request as its asker states it, and the problem that strategies solve. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from functools import cached_property
from typing import Literal, Protocol

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.calibration import PRIOR, Calibration, link_factors
from agent.planner.cost import Estimate
from agent.planner.estimates import Estimates
from agent.planner.evidence import calibrate
from agent.planner.layout import Layout, Place
from agent.planner.learning.records import Lesson
from agent.planner.lessons import current_lessons
from agent.planner.memory import StageSizes
from agent.planner.plan import Healing, ModelRef, Objective, Serving
from agent.planner.rates import LinkTable, corrected_links

DEFAULT_PROMPT_TOKENS = 512
DEFAULT_ANSWER_TOKENS = 128
MAX_NEAREST = 3
MAX_LISTED = 12
"""Names that a hint lists."""


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides a plan. Equal requests give byte-identical plan files.

    Constraints left at None are the planner's to choose. `devices` are `host/device` names; with `hosts` they
    select what may be used (empty: all). `tensor_parallel_sizes` pins the size of each stage in order, and so the
    number of stages; `tensor` pins the size of every stage.
    """

    name: str
    model: ModelRef
    spec: ModelSpec
    facts: ClusterFacts
    objective: Objective = Objective()
    serving: Serving = Serving()
    healing: Healing = Healing()
    hosts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    stages: int | None = None
    tensor: int | None = None
    tensor_parallel_sizes: tuple[int, ...] = ()
    min_hosts: int = 1
    max_hosts: int | None = None
    replicas: int | Literal["max"] = 1
    """Copies of the model; `max`: as many as fit, or for throughput as many as serve the most tokens per second."""
    controllers: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    """Hosts, or `host/device` names, that must have a rank."""
    excluded: tuple[str, ...] = ()
    """Hosts, or `host/device` names, that must have none."""
    selected: str = ""
    """Selector that the facts' hosts were chosen by, for who reads the plan; empty: all hosts."""
    left_out: tuple[str, ...] = ()
    """Hosts that the facts lack because they must have no rank."""
    reserved_bytes: dict[str, int] = {}
    """Memory left alone, by `host/device`."""
    spread: str = ""
    """Label of hosts: no two replicas stand on hosts of the same value, a fault domain."""
    domain: str = ""
    """Label of hosts: no replica stands on hosts of two values, and none on hosts without it."""
    max_ttft_s: float | None = None
    max_time_per_token_s: float | None = None
    """SLOs: what a layout is estimated to take at `prompt_tokens` of prompt; a plan above them is refused."""
    prompt_tokens: int | None = None
    """Prompt that predictions and choices are made for; None: 512, or half the context where that is less."""
    answer_tokens: int | None = None
    """Answer likewise; None: 128, or what the context has left of it."""
    draft: ModelRef | None = None
    draft_spec: ModelSpec | None = None
    """Of the draft model; both are there where `serving.speculation` is `draft_model`, and nowhere else."""
    seed: int = 0
    lessons: tuple[Lesson, ...] = ()
    """What earlier plans were measured to do, oldest first: the adaptive strategy learns from it."""
    is_recorded: bool = True
    """Whether what the plan will be measured to do is kept to learn from."""
    may_explore: bool = False
    """Whether it may take a plan that is expected to be a little worse, to learn more."""
    plugins: tuple[Strategy, ...] = ()
    """Strategies beside ours: asked for by name, or competing where the strategy is `adaptive`."""


class Problem:
    """A request made ready: usable devices in a stable order, links, and one way to estimate a layout.

    `memory_scale` above 1 pretends that devices had more memory: how much is missing is found with it. A probe asks
    whether anything fits, and does not look for the best.
    """

    def __init__(
        self,
        request: PlanRequest,
        places: tuple[Place, ...],
        serving: Serving,
        *,
        memory_scale: float = 1.0,
        is_probe: bool = False,
        searches: dict[Hashable, tuple[int, ...]] | None = None,
        calibration: Calibration = PRIOR,
        lessons: tuple[Lesson, ...] | None = None,
    ) -> None:
        self.request = request
        self.is_probe = is_probe
        self.places = places
        self.serving = serving
        self.memory_scale = memory_scale
        self.calibration = calibration
        self.lessons = request.lessons if lessons is None else lessons
        """The request's, held against what the calibration predicts now."""
        self.plain_links = LinkTable(request.facts, is_network_trusted=serving.trusted_network)
        """As they are known: what estimates are made with, whose parts are corrected afterwards."""
        self.link_facts, self.links = request.facts.links, self.plain_links
        """As measured runs corrected them: what a search for layouts goes by."""
        if factors := link_factors(calibration):
            self.link_facts = corrected_links(request.facts, factors)
            corrected = msgspec.structs.replace(request.facts, links=self.link_facts)
            self.links = LinkTable(corrected, is_network_trusted=serving.trusted_network)
        self.sizes = StageSizes(request.spec, serving, request.draft_spec)
        self.searches: dict[Hashable, tuple[int, ...]] = {} if searches is None else searches
        """Orders found, by all that decides them: strategies and variants of a problem ask for the same ones."""

    @property
    def spec(self) -> ModelSpec:
        return self.request.spec

    @property
    def draft(self) -> ModelSpec | None:
        return self.request.draft_spec

    @cached_property
    def prompt_tokens(self) -> int:
        wanted = self.request.prompt_tokens
        return wanted if wanted is not None else max(1, min(DEFAULT_PROMPT_TOKENS, self.serving.context // 2))

    @cached_property
    def answer_tokens(self) -> int:
        wanted = self.request.answer_tokens
        if wanted is not None:
            return wanted
        return max(1, min(DEFAULT_ANSWER_TOKENS, self.serving.context - self.prompt_tokens))

    @cached_property
    def estimates(self) -> Estimates:
        return Estimates(
            self.spec,
            self.serving,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            links=self.plain_links,
            calibration=self.calibration,
        )

    @cached_property
    def is_forced(self) -> bool:
        """A strategy that splits is asked for by name, and there is something to split over."""
        return self.request.objective.strategy in {"pipeline", "tensor", "hybrid"} and len(self.places) > 1

    def usable_bytes(self, place: Place) -> int:
        return int(place.device.usable_bytes * self.memory_scale)

    def fits(self, layout: Layout) -> bool:
        usable = {place.name: self.usable_bytes(place) for place in layout.places}
        return self.sizes.layout_fits(layout, usable)

    def estimate(self, layout: Layout) -> Estimate:
        return self.estimates.of(layout)

    def varied(
        self,
        *,
        request: PlanRequest | None = None,
        places: tuple[Place, ...] | None = None,
        serving: Serving | None = None,
        memory_scale: float | None = None,
        is_probe: bool | None = None,
    ) -> Problem:
        """The same problem but for what is given."""
        varied = Problem(
            request or self.request,
            self.places if places is None else places,
            serving or self.serving,
            memory_scale=self.memory_scale if memory_scale is None else memory_scale,
            is_probe=self.is_probe if is_probe is None else is_probe,
            searches=self.searches,
            calibration=self.calibration,
            lessons=self.lessons,
        )
        before = self.request
        if serving is None and (request is None or _is_estimated_alike(request, before)):
            varied.estimates = self.estimates
        return varied


def _is_estimated_alike(one: PlanRequest, other: PlanRequest) -> bool:
    """Whether layouts of two requests have the same estimates."""
    asked = (one.spec, one.prompt_tokens, one.answer_tokens)
    return asked == (other.spec, other.prompt_tokens, other.answer_tokens) and one.facts is other.facts


class Strategy(Protocol):
    """One way to divide a model. Proposes feasible layouts, best guesses of its kind; none when nothing fits."""

    name: str

    def propose(self, problem: Problem) -> list[Layout]: ...


def objective_value(problem: Problem, estimate: Estimate) -> float:
    """What the request's objective wants small: seconds per token, seconds to the first one, joules …"""
    match problem.request.objective.kind:
        case "latency" | "context":
            return estimate.time_per_token_s
        case "ttft":
            return estimate.ttft_s
        case "throughput":
            return 1.0 / estimate.tokens_per_s
        case "energy":
            return estimate.joules_per_token


def is_allowed(request: PlanRequest, layout: Layout, estimate: Estimate) -> bool:
    """True when a layout has the pinned hosts and is estimated to keep the SLOs."""
    return (
        set(request.pinned) <= {*layout.hosts, *(place.name for place in layout.places)}
        and (request.max_ttft_s is None or estimate.ttft_s <= request.max_ttft_s)
        and (request.max_time_per_token_s is None or estimate.time_per_token_s <= request.max_time_per_token_s)
    )


def choose_estimated(problem: Problem, layouts: list[Layout]) -> tuple[Layout, Estimate] | None:
    """The best allowed layout by its estimate; ties go to fewer ranks and stages, then balance, then names."""
    best: tuple[tuple[float, int, int, float, float, tuple[str, ...]], Layout, Estimate] | None = None
    for layout in layouts:
        estimate = problem.estimate(layout)
        if not is_allowed(problem.request, layout, estimate):
            continue
        names = tuple(place.name for place in layout.places)
        # Nine digits: differences below are rounding of sums, and must not decide between plans.
        squares = sum(seconds**2 for seconds in estimate.stage_s)
        value, slowest, uneven = (
            float(f"{x:.9g}") for x in (objective_value(problem, estimate), max(estimate.stage_s), squares)
        )
        key = (value, len(names), len(layout.stages), slowest, uneven, names)
        if best is None or key < best[0]:
            best = (key, layout, estimate)
    return None if best is None else (best[1], best[2])


def make_problem(request: PlanRequest, *, calibration: Calibration | None = None) -> Problem:
    """Check a request against its facts and select devices. Raises FleetError E105 to E109 for what cannot be.

    `calibration` is that of the request's facts, for a caller that has fitted it before.
    """
    spec = request.spec
    known = {host.name for host in request.facts.hosts}
    for kind, names in (("host", request.hosts), ("controller", request.controllers)):
        for name in names:
            if name not in known:
                raise FleetError("E106", f"no {kind} `{name}` in the cluster", hint=near(name, known))
    places = _selected_places(request)
    _check_pinned(request, places)
    if not places:
        raise FleetError("E602", "no device is left to plan with", hint="select more hosts, or run `odctl status`")
    serving = request.serving
    if serving.context > spec.max_context:
        raise FleetError(
            "E106",
            f"context {serving.context} is above the {spec.max_context} positions that {spec.name} knows",
            hint=f"ask for --context {spec.max_context} or less",
        )
    _check_draft(request)
    if min(serving.context, serving.batch, serving.prefill_chunk) < 1:
        raise FleetError(
            "E106",
            f"context {serving.context}, batch {serving.batch} and prefill chunk {serving.prefill_chunk} "
            "must be at least 1",
        )
    asked = (request.prompt_tokens or 0) + (request.answer_tokens or 0)
    if asked > serving.context and request.objective.kind != "context":
        raise FleetError(
            "E106",
            f"predictions for {asked} tokens of prompt and answer, in a context of {serving.context}",
            hint=f"ask for --context {asked}, or for predictions of less",
        )
    _check_constraints(request, num_places=len(places), num_hosts=len({place.host for place in places}))
    calibration = calibration or calibrate(request.facts)
    lessons = current_lessons(request.lessons, request.facts, calibration)
    return Problem(request, places, serving, calibration=calibration, lessons=lessons)


def pinned_hosts(request: PlanRequest) -> frozenset[str]:
    """Hosts that must have a rank, or of which a device must."""
    return frozenset(name.partition("/")[0] for name in request.pinned)


def _check_pinned(request: PlanRequest, places: tuple[Place, ...]) -> None:
    hosts = {host.name for host in request.facts.hosts}
    devices = {f"{host.name}/{device.id}" for host in request.facts.hosts for device in host.devices}
    for name in request.pinned:
        if name in hosts:
            if name not in {place.host for place in places}:
                raise FleetError(
                    "E107",
                    f"host `{name}` is pinned, but none of its devices may be used",
                    hint="drop --pin or select it",
                )
        elif name not in devices:
            kind, known = ("device", devices) if "/" in name else ("host", hosts)
            raise FleetError("E106", f"no {kind} `{name}` in the cluster to pin", hint=near(name, known))
        elif name not in {place.name for place in places}:
            raise FleetError(
                "E107", f"device `{name}` is pinned, but may not be used", hint="drop --pin or select it"
            )


def _check_draft(request: PlanRequest) -> None:
    serving, draft = request.serving, request.draft_spec
    if (draft is None) != (request.draft is None) or (draft is None) == (serving.speculation == "draft_model"):
        named = draft.name if draft is not None else "none"
        raise FleetError(
            "E107",
            f"speculation {serving.speculation} contradicts the draft model, which is {named}",
            hint="--draft MODEL goes with --speculation draft_model",
        )
    if draft is not None and serving.context > draft.max_context:
        raise FleetError(
            "E106",
            f"context {serving.context} is above the {draft.max_context} positions that draft model {draft.name} "
            "knows",
            hint=f"ask for --context {draft.max_context} or less, or another draft model",
        )


def allowed_places(request: PlanRequest) -> tuple[Place, ...]:
    """Every device that may be used, CPUs beside GPUs too, with what is reserved taken off its memory."""
    places = {
        f"{host.name}/{device.id}": Place(host=host.name, device=device)
        for host in request.facts.hosts
        for device in sorted(host.devices, key=lambda device: _natural(device.id))
        if not request.hosts or host.name in request.hosts
    }
    hosts = {place.host for place in places.values()}
    for name in request.excluded:
        if name not in places and name not in hosts:
            kind, known = ("device", set(places)) if "/" in name else ("host", hosts)
            raise FleetError("E106", f"no {kind} `{name}` in the cluster to exclude", hint=near(name, known))
    for name in request.reserved_bytes:
        if name not in places:
            raise FleetError("E106", f"no device `{name}` in the cluster", hint=near(name, set(places)))
    for name, num_bytes in request.reserved_bytes.items():
        usable = places[name].device.usable_bytes
        if not 0 <= num_bytes <= usable:
            raise FleetError("E106", f"{num_bytes} bytes of {name} are reserved, of {usable} usable ones")
        device = msgspec.structs.replace(places[name].device, usable_bytes=usable - num_bytes)
        places[name] = Place(host=places[name].host, device=device)
    return tuple(place for name, place in places.items() if not {name, place.host} & set(request.excluded))


def _selected_places(request: PlanRequest) -> tuple[Place, ...]:
    places = allowed_places(request)
    if request.devices:
        known = {place.name for place in places}
        for name in request.devices:
            if name not in known:
                raise FleetError("E106", f"no device `{name}` in the cluster", hint=near(name, known))
        return tuple(place for place in places if place.name in request.devices)
    with_gpu = {place.host for place in places if place.device.kind == "cuda"}
    # A host's CPU beside its own GPU slows a pipeline by its memory bandwidth; it is used when asked for by name.
    return tuple(place for place in places if place.device.kind == "cuda" or place.host not in with_gpu)


def _check_constraints(request: PlanRequest, *, num_places: int, num_hosts: int) -> None:
    spec, sizes = request.spec, request.tensor_parallel_sizes
    stages = len(sizes) if sizes else request.stages
    if sizes and request.stages not in {None, len(sizes)}:
        raise FleetError("E107", f"{len(sizes)} tensor-parallel sizes are given for {request.stages} stages")
    if sizes and request.tensor is not None and set(sizes) != {request.tensor}:
        raise FleetError("E107", f"tensor {request.tensor} contradicts the tensor-parallel sizes {list(sizes)}")
    if stages is not None and not 1 <= stages <= spec.num_layers:
        raise FleetError("E106", f"{stages} stages cannot share the {spec.num_layers} layers of {spec.name}")
    if request.objective.strategy == "pipeline" and max((*sizes, request.tensor or 1)) > 1:
        raise FleetError(
            "E107", "a pipeline has one device per stage", hint="ask for --strategy hybrid to split stages as well"
        )
    wanted = [*sizes, *([request.tensor] if request.tensor is not None else [])]
    for size in wanted:
        if not 1 <= size <= spec.num_kv_heads:
            raise FleetError(
                "E106",
                f"tensor-parallel size {size} cannot share the {spec.num_kv_heads} KV heads of {spec.name}",
                hint=f"ask for 1 to {spec.num_kv_heads}",
            )
    replicas = 1 if request.replicas == "max" else request.replicas
    needed = replicas * (sum(sizes) if sizes else (request.stages or 1) * (request.tensor or 1))
    if replicas < 1 or needed > num_places:
        raise FleetError(
            "E602",
            f"{needed} devices are needed ({replicas} replicas), {num_places} are there",
            hint="ask for fewer stages or replicas, or add hosts",
        )
    if request.domain and not any(host.labels.get(request.domain) for host in request.facts.hosts):
        known = {label for host in request.facts.hosts for label in host.labels}
        raise FleetError(
            "E602",
            f"no host has the label `{request.domain}`, whose values replicas are to stand within",
            hint=near(request.domain, known) if known else "label hosts in the inventory",
        )
    if request.spread:
        values = {host.labels.get(request.spread, "") for host in request.facts.hosts} - {""}
        if len(values) < replicas:
            raise FleetError(
                "E602",
                f"{replicas} replicas cannot be spread over {len(values)} values of the label `{request.spread}`",
                hint="ask for fewer replicas, or label more hosts in the inventory",
            )
    num_pinned = len(pinned_hosts(request))
    if num_pinned > (request.max_hosts or num_pinned):
        raise FleetError("E107", f"{num_pinned} hosts are pinned, at most {request.max_hosts} asked for")
    if request.pinned and request.replicas != 1:
        raise FleetError("E107", "pinned hosts are for one replica", hint="drop --pin, or plan one replica")
    if request.min_hosts > num_hosts:
        raise FleetError("E602", f"at least {request.min_hosts} hosts are asked for, {num_hosts} are there")
    if request.max_hosts is not None and request.max_hosts < request.min_hosts:
        raise FleetError("E107", f"at most {request.max_hosts} hosts and at least {request.min_hosts} asked for")


def _natural(device_id: str) -> tuple[str, int]:
    """`cuda:2` before `cuda:10`."""
    kind, _, index = device_id.partition(":")
    return kind, int(index) if index.isdigit() else 0


def near(name: str, known: set[str]) -> str:
    """A hint for a name that is not known: the nearest ones, else what there is."""
    found = difflib.get_close_matches(name, sorted(known), n=MAX_NEAREST)
    if found:
        return f"did you mean {' or '.join(f'`{each}`' for each in found)}?"
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"known: {', '.join(sorted(known)[:MAX_LISTED])}{more}"
