"""`odctl plan`: facts in, plan file out."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from odctl.plugins import StrategyParameter, load_strategies
from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from agent.planner.problem import PlanRequest
    from odctl.inventory import Inventory


class PlanCommand(click.Command):
    """`plan MODEL`, and `plan edit PLAN` behind it: the one word that is no model (`./edit` is).

    A group would take its options before its argument only, and MODEL for the name of a subcommand.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] != ["edit"]:
            return super().make_context(info_name, args, parent, **extra)
        from odctl.commands.plan_edit import command as edit

        return edit.make_context(f"{info_name} edit", args[1:], parent, **extra)


@click.command(
    "plan", cls=PlanCommand, epilog="odctl plan edit PLAN changes a plan file (a model named edit is ./edit)."
)
@click.argument("model")
@click.option(
    "-o", "--output", default="plan.toml", show_default=True, help="Where the plan is written (-: stdout)."
)
@click.option("--name", default="", help="Name of the deployment, the one clients ask for. Default: the model's.")
@click.option(
    "--objective",
    default="latency",
    show_default=True,
    type=click.Choice(["latency", "ttft", "throughput", "context", "energy"]),
)
@click.option(
    "--strategy",
    default="adaptive",
    show_default=True,
    type=StrategyParameter(),
    help="Ours, or a plugin's; adaptive lets all of them compete.",
)
@click.option(
    "--hosts",
    "selector",
    default="all",
    show_default=True,
    help="Hosts that may be used: names, group:NAME, label=value.",
)
@click.option("--exclude", default="", help="Not to be used: hosts as in --hosts, or HOST/DEVICE.")
@click.option("--context", type=int, default=2048, show_default=True, help="Tokens a sequence may have.")
@click.option("--batch", type=int, default=8, show_default=True, help="Sequences that decode together.")
@click.option(
    "--kv-cache-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Positions that all sequences share; 0: batch times context. Fewer save memory, and may make some wait.",
)
@click.option(
    "--speculation",
    type=click.Choice(["none", "prompt_lookup", "draft_model"]),
    default=None,
    help="Guess tokens and verify them in one pass: the same answers, sooner. prompt_lookup guesses what followed "
    "the same words before, draft_model asks the model of --draft. Default: none, or draft_model with --draft.",
)
@click.option(
    "--draft",
    default="",
    metavar="MODEL",
    help="A small model with the same tokenizer that guesses for the large one, found as MODEL is.",
)
@click.option(
    "--max-drafts",
    type=click.IntRange(min=1, max=64),
    default=8,
    show_default=True,
    help="Most tokens guessed at once.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default=None,
    help="Dtype served. Default: the model's.",
)
@click.option(
    "--quantisation",
    type=click.Choice(["none", "int8", "int4", "fp8"]),
    default="none",
    show_default=True,
    help="How matrices are kept: int8 decodes fastest, int4 is smallest. odctl models check tells the cost.",
)
@click.option("--exact", is_flag=True, help="The same tokens whatever shares the batch, and after a fault; slower.")
@click.option("--stages", type=int, default=None, help="Exactly so many pipeline stages.")
@click.option("--tensor", "tensor_sizes", default="", help="Tensor-parallel size of each stage: 2, or 1,2.")
@click.option("--min-hosts", type=int, default=1, show_default=True)
@click.option("--max-hosts", type=int, default=None)
@click.option(
    "--replicas",
    default="1",
    show_default=True,
    metavar="N|max",
    help="Copies of the model; max: as many as fit, or for throughput as many as serve the most.",
)
@click.option("--pin", default="", help="Must have a part of it: hosts as in --hosts, or HOST/DEVICE.")
@click.option("--exclude-device", "excluded_devices", multiple=True, help="HOST/DEVICE not to use; repeat.")
@click.option("--reserve", "reserved", multiple=True, help="Memory to leave alone: HOST/DEVICE=GB; repeat.")
@click.option("--spread", default="", help="Label of hosts: no two replicas share one of its values.")
@click.option("--domain", default="", help="Label of hosts: each replica stands within one of its values.")
@click.option("--max-ttft", "max_ttft_s", type=float, default=None, help="Most seconds to the first token.")
@click.option(
    "--max-time-per-token",
    "max_time_per_token_s",
    type=float,
    default=None,
    help="Most seconds per later token.",
)
@click.option("--explain", is_flag=True, help="Also say at length what bounds the plan and what would help it.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=None,
    help="Prompt that predictions and the choice are made for.  [default: 512, or half the context]",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=1),
    default=None,
    help="Answer likewise.  [default: 128, or what the context leaves]",
)
@click.option("--pareto", is_flag=True, help="Write nothing; show every layout that is best at something.")
@click.option("--listen", default="127.0.0.1:11434", show_default=True, help="Address of the HTTP API.")
@click.option("--controller", "controllers", multiple=True, help="Host that decides; repeat for standbys.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--check", is_flag=True, help="Write nothing; exit 2 when the plan would differ from the file.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, as_json: bool, **options: Any) -> None:
    """Plan a deployment of MODEL (a directory, or the name, path or digest of a model on a host)."""
    run_command(lambda: plan(inventory_path, **options), as_json=as_json)


def plan(
    inventory_path: str,
    *,
    model: str,
    output: str,
    name: str = "",
    objective: str = "latency",
    strategy: str = "adaptive",
    selector: str = "all",
    exclude: str = "",
    context: int = 2048,
    batch: int = 8,
    kv_cache_tokens: int = 0,
    speculation: str | None = None,
    draft: str = "",
    max_drafts: int = 8,
    dtype: str | None = None,
    quantisation: str = "none",
    exact: bool = False,
    stages: int | None = None,
    tensor_sizes: str = "",
    min_hosts: int = 1,
    max_hosts: int | None = None,
    replicas: str = "1",
    pin: str = "",
    excluded_devices: tuple[str, ...] = (),
    reserved: tuple[str, ...] = (),
    spread: str = "",
    domain: str = "",
    max_ttft_s: float | None = None,
    max_time_per_token_s: float | None = None,
    explain: bool = False,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    pareto: bool = False,
    listen: str = "127.0.0.1:11434",
    controllers: tuple[str, ...] = (),
    seed: int = 0,
    check: bool = False,
) -> Result:
    """Raises E601 when nothing fits, E701 when a model is nowhere, E711 when the draft model has other tokens, E113
    for options that contradict each other, E119 for a strategy plugin that does not work, E2xx when
    no host answers."""
    import msgspec

    from agent.errors import FleetError
    from agent.planner.file import plan_hash, plan_to_toml
    from agent.planner.layout_text import preview_lines, section_lines
    from agent.planner.learning.records import Lesson
    from agent.planner.make import explain_made, make_plan
    from agent.planner.plan import Objective, Serving
    from agent.planner.problem import PlanRequest
    from odctl.apply import add_runs, read_facts
    from odctl.fleet import Fleet
    from odctl.inventory import select
    from odctl.learning import read_lessons
    from odctl.model_source import check_same_tokens, find_model
    from odctl.probing import measured_line
    from odctl.session import visit_fleet, warn_unreachable

    guessing = speculation or ("draft_model" if draft else "none")
    if (guessing == "draft_model") != bool(draft):
        given = f"--draft {draft}" if draft else "no --draft"
        raise FleetError(
            "E113",
            f"--speculation {guessing} contradicts {given}",
            hint="leave --speculation out" if draft else "name a small model with --draft MODEL",
        )

    plugins = load_strategies(strategy)
    absent: dict[str, str] = {}

    def chosen_hosts(inventory: Inventory) -> list[str]:
        excluded, _ = hosts_and_devices(inventory, exclude)
        selected = {host.name for host in select(inventory, selector)}
        for host in inventory.hosts:
            if host.name in excluded or host.name not in selected:
                absent[host.name] = "excluded" if host.name in excluded else f"not selected by --hosts {selector}"
        return sorted(selected - set(excluded))

    async def lessons_for(fleet: Fleet, inventory: Inventory) -> tuple[Lesson, ...]:
        """None where the strategy is named, or learning is switched off."""
        if strategy != "adaptive" or not inventory.learning.enabled:
            return ()
        lessons, _ = await read_lessons(fleet)
        return lessons

    async def ask(fleet: Fleet, inventory: Inventory) -> PlanRequest:
        facts, missing = await read_facts(fleet, inventory.cluster)
        facts = await add_runs(fleet, facts)
        warn_unreachable(missing)
        absent.update(dict.fromkeys(missing, "did not answer"))
        if not facts.hosts:
            raise next(iter(missing.values()), FleetError("E105", "no host is left to plan with"))
        found = await find_model(fleet, model)
        drafter = await find_model(fleet, draft) if draft else None
        if drafter is not None:
            await check_same_tokens(fleet, found, drafter)
        most_context = min(each.spec.max_context for each in (found, drafter) if each is not None)
        return PlanRequest(
            name=name or found.ref.name,
            model=found.ref,
            spec=found.spec,
            facts=facts,
            objective=msgspec.convert({"kind": objective, "strategy": strategy}, Objective),
            serving=msgspec.convert(
                {
                    "context": min(context, most_context),
                    "batch": batch,
                    "kv_cache_tokens": kv_cache_tokens,
                    "speculation": guessing,
                    "max_drafts": max_drafts,
                    "dtype": dtype or found.spec.dtype,
                    "quantisation": quantisation,
                    "exact": exact,
                    "listen": listen,
                    "trusted_network": inventory.trusted_network,
                },
                Serving,
            ),
            stages=stages,
            tensor=int(tensor_sizes) if tensor_sizes.isdigit() else None,
            tensor_parallel_sizes=_sizes(tensor_sizes) if "," in tensor_sizes else (),
            min_hosts=min_hosts,
            max_hosts=max_hosts,
            replicas=_count(replicas),
            pinned=tuple(itertools.chain(*hosts_and_devices(inventory, pin))),
            excluded=(*excluded_devices, *hosts_and_devices(inventory, exclude)[1]),
            selected="" if selector == "all" else selector,
            left_out=hosts_and_devices(inventory, exclude)[0],
            reserved_bytes=dict(_reserved(text) for text in reserved),
            spread=spread,
            domain=domain,
            max_ttft_s=max_ttft_s,
            max_time_per_token_s=max_time_per_token_s,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            controllers=controllers,
            seed=seed,
            draft=drafter.ref if drafter is not None else None,
            draft_spec=drafter.spec if drafter is not None else None,
            lessons=await lessons_for(fleet, inventory),
            is_recorded=inventory.learning.enabled,
            may_explore=inventory.learning.explore and (name or found.ref.name) not in inventory.learning.protected,
            plugins=plugins,
        )

    request = visit_fleet(inventory_path, ask, hosts=chosen_hosts)
    if pareto:
        return _pareto(request)
    made = make_plan(request)
    text = plan_to_toml(made)
    data: dict[str, Any] = {"plan": msgspec.to_builtins(made), "hash": plan_hash(made), "file": output}
    width = shutil.get_terminal_size((100, 24)).columns
    lines = [*preview_lines(made, width=width), measured_line(request.facts, made.hosts, now_s=time.time())]
    if explain:
        sections = explain_made(made, request, now_s=time.time(), absent=absent)
        data["explanation"] = msgspec.to_builtins(sections)
        lines += ["", *section_lines(sections, width=width), ""]
    preview = "\n".join(lines)
    if check:
        path = Path(output)
        differs = not path.exists() or path.read_text() != text
        prose = preview + ("\nthe plan differs from " if differs else "\nthe plan equals ") + output
        return Result(kind="plan", data=data, prose=prose, exit_code=ExitCode.CHANGES if differs else ExitCode.OK)
    if output == "-":
        return Result(kind="plan", data=data, prose=text)
    Path(output).write_text(text)
    return Result(kind="plan", data=data, prose=f"{preview}\nwritten to {output}: odctl apply {output}")


def _pareto(request: PlanRequest) -> Result:
    """Every choice, a line each. Raises E602 when there is none: `make_plan` says why."""
    import msgspec

    from agent.planner.make import make_plan
    from agent.planner.pareto import pareto_choices
    from agent.planner.words import list_words, rate_words, seconds_words

    choices = pareto_choices(request)
    if not choices:
        make_plan(request)
    lines = [f"{len(choices)} layouts of which none beats another in everything, one replica each:"]
    for choice in choices:
        split = ", ".join(
            f"{name} {layers}" for name, layers in zip(choice.stages[:4], choice.layers[:4], strict=True)
        )
        more = f" and {len(choice.stages) - 4} more stages" if len(choice.stages) > 4 else ""
        best = f"  best at {list_words(choice.best_at, most=5)}" if choice.best_at else ""
        lines.append(
            f"  {seconds_words(choice.time_per_token_s)} per token, first after {seconds_words(choice.ttft_s)}, "
            f"{rate_words(choice.tokens_per_s)}, context {choice.context}, {choice.joules_per_token:.3g} J "
            f"a token: {choice.shape}, layers {split}{more}{best}"
        )
    lines.append("--objective takes the one that is best at it; --max-ttft and --max-time-per-token narrow them")
    data = {"choices": [msgspec.to_builtins(choice) for choice in choices]}
    return Result(kind="pareto", data=data, prose="\n".join(lines))


def hosts_and_devices(inventory: Inventory, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hosts that the selectors of a list mean, and its HOST/DEVICE names. Raises FleetError E108."""
    from odctl.inventory import select

    parts = [part.strip() for part in text.split(",") if part.strip()]
    devices = tuple(part for part in parts if "/" in part and "=" not in part)
    for name in devices:
        inventory.host(name.partition("/")[0])
    selectors = ",".join(part for part in parts if part not in devices)
    return tuple(host.name for host in select(inventory, selectors)) if selectors else (), devices


def _reserved(text: str) -> tuple[str, int]:
    from agent.errors import FleetError

    name, _, amount = text.partition("=")
    try:
        return name, int(float(amount.removesuffix("GB")) * 1e9)
    except ValueError:
        raise FleetError(
            "E113", f"--reserve {text!r} is not HOST/DEVICE=GB", hint="write --reserve gpu01/cuda:0=8"
        ) from None


def _count(text: str) -> int | Literal["max"]:
    from agent.errors import FleetError

    if text == "max":
        return "max"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise FleetError("E113", f"--replicas {text!r} is neither a number above 0 nor max", hint="write --replicas 2")


def _sizes(text: str) -> tuple[int, ...]:
    from agent.errors import FleetError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FleetError("E113", f"--tensor {text!r} is not a list of numbers", hint="write --tensor 1,2") from None
