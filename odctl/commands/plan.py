"""`odctl plan`: facts in, plan file out."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odctl.plugins import StrategyParameter
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
@click.option("--tensor", default="", help="Tensor-parallel size of each stage: 2, or 1,2.")
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
@click.option("--exclude-device", multiple=True, help="HOST/DEVICE not to use; repeat.")
@click.option("--reserve", multiple=True, help="Memory to leave alone: HOST/DEVICE=GB; repeat.")
@click.option("--spread", default="", help="Label of hosts: no two replicas share one of its values.")
@click.option("--domain", default="", help="Label of hosts: each replica stands within one of its values.")
@click.option("--max-ttft", type=float, default=None, help="Most seconds to the first token.")
@click.option(
    "--max-time-per-token",
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
@click.option("--controller", multiple=True, help="Host that decides; repeat for standbys.")
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
    output: str,
    explain: bool = False,
    pareto: bool = False,
    check: bool = False,
    **words: Any,
) -> Result:
    """`words` are fields of `odctl.planning.PlanAsk`. Raises what `read_request` and `AskedPlan.make` raise."""
    import msgspec

    from agent.planner.file import plan_hash, plan_to_toml
    from agent.planner.layout_text import preview_lines, section_lines
    from agent.planner.make import explain_made
    from odctl.fleet import Fleet
    from odctl.planning import AskedPlan, PlanAsk, chosen_hosts, read_request
    from odctl.probing import measured_line
    from odctl.session import visit_fleet, warn_unreachable

    asked = PlanAsk(**words)

    async def read(fleet: Fleet, inventory: Inventory) -> AskedPlan:
        return await read_request(fleet, inventory, asked)

    found = visit_fleet(inventory_path, read, hosts=lambda inventory: chosen_hosts(asked, inventory)[0])
    warn_unreachable(found.missing)
    request = found.request
    if pareto:
        return _pareto(request)
    made = found.make()
    text = plan_to_toml(made)
    data: dict[str, Any] = {"plan": msgspec.to_builtins(made), "hash": plan_hash(made), "file": output}
    width = shutil.get_terminal_size((100, 24)).columns
    lines = [*preview_lines(made, width=width), measured_line(request.facts, made.hosts, now_s=time.time())]
    if explain:
        sections = explain_made(made, request, now_s=time.time(), absent=found.absent)
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
