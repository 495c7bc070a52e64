"""`odctl plan edit PLAN`: a plan changed by options, or in an editor, and written only when it is sound.

Before and after are shown with the same words as everywhere else. What does not fit is never written.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odctl.result import ExitCode, Result, exit_code_of, render_error, run_command

if TYPE_CHECKING:
    from agent.errors import FleetError
    from agent.facts.cluster import ClusterFacts
    from agent.planner.check import PlanProblem
    from agent.planner.edit import Basis, Edit, Edited
    from agent.planner.plan import Plan

_STAGE = re.compile(r"(\d+)\.(\d+)\Z")
FALLBACK_EDITOR = "vi"


@click.command("edit")
@click.argument("plan_path", metavar="PLAN", type=click.Path(dir_okay=False))
@click.option("-o", "--output", default="", help="Where it is written (-: stdout). Default: PLAN itself.")
@click.option(
    "--exclude",
    default="",
    metavar="HOST,…",
    help="Have it planned anew without these hosts (names, group:NAME, label=value); first of all.",
)
@click.option("--pin", default="", metavar="HOST,…", help="Have it planned anew with these hosts in it.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A serving setting: context, batch, dtype, quantisation, kv_cache_tokens … Repeat.",
)
@click.option("--remove-stage", "removed", multiple=True, metavar="R.S", help="Neighbours take its layers. Repeat.")
@click.option(
    "--add-stage",
    "added",
    nargs=2,
    multiple=True,
    metavar="R.S HOST/DEVICE[,…]",
    help="A stage behind this one, with its last layers. Repeat.",
)
@click.option(
    "--stage",
    "placed",
    nargs=2,
    multiple=True,
    metavar="R.S HOST/DEVICE[,…]",
    help="Hold a stage on these devices; it changes places with a stage that has just these. Repeat.",
)
@click.option("--tensor", "tensors", multiple=True, metavar="R.S=N", help="Split a stage over N devices. Repeat.")
@click.option(
    "--shares", "shares", multiple=True, metavar="R.S=N,N…", help="KV heads of each rank of a stage. Repeat."
)
@click.option(
    "--move-boundary",
    "boundaries",
    multiple=True,
    metavar="R.S=±N",
    help="The stage takes N layers of the next one, or gives it N. Repeat.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 2 when the plan would differ from the file.")
@click.option(
    "--force", is_flag=True, help="Replace another file; write a plan of a moved cluster. Never one that is wrong."
)
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, plan_path: str, as_json: bool, **options: Any) -> None:
    """Change PLAN, show what that changes, and write it if it is sound.

    Stages are R.S: replica and stage, counted from 0, as odctl show names them. Edits are made in the order in
    which these options stand here. Without any, PLAN opens in $VISUAL or $EDITOR; bytes and predictions need not
    be typed, they are computed when it is saved.
    """
    run_command(lambda: edit_plan(inventory_path, plan_path, **options), as_json=as_json)


def edit_plan(
    inventory_path: str, plan_path: str, *, output: str, check: bool, force: bool, **options: Any
) -> Result:
    """Raises E101 to E107 for a plan that is none, E111 without edits and terminal, E113 for an option that is no
    edit, E119 for a file that is there, E2xx when no host answers, E402 when the model has changed."""
    from odctl.commands.show import read_plan_text

    path = Path(plan_path)
    target = Path(output or plan_path)
    if output not in ("", "-") and not force and not check and target.exists() and not _is_same(target, path):
        raise _is_there(target)
    edits = edits_of(**options)
    text = read_plan_text(path)
    if not edits:
        return _edit_in_editor(inventory_path, path, text, output=output, check=check, force=force)

    from agent.planner.edit import apply_edit, begin_edit
    from agent.planner.file import plan_from_toml

    plan = plan_from_toml(text, file=plan_path)
    edits = [_with_hosts_named(edit, plan, inventory_path) for edit in edits]
    basis = _read_basis(inventory_path, plan)
    before = begin_edit(plan, basis)
    edits = [_with_hosts_asked(edit, before) for edit in edits]
    after = before
    for edit in edits:
        after = apply_edit(after, edit, basis)
    return outcome(
        before, after, edits, facts=basis.facts, path=path, text=text, output=output, check=check, force=force
    )


def edits_of(
    *,
    exclude: str = "",
    pin: str = "",
    settings: Sequence[str] = (),
    removed: Sequence[str] = (),
    added: Sequence[tuple[str, str]] = (),
    placed: Sequence[tuple[str, str]] = (),
    tensors: Sequence[str] = (),
    shares: Sequence[str] = (),
    boundaries: Sequence[str] = (),
) -> list[Edit]:
    """The edits that options mean, in the order in which they are made. Raises E113 naming the option."""
    from agent.planner.edit import (
        AddStage,
        MoveBoundary,
        PlaceStage,
        RemoveStage,
        Replan,
        SetServing,
        SetTensor,
        ShareHeads,
    )

    edits: list[Edit] = []
    if exclude or pin:
        edits.append(Replan(excluded=_names(exclude), pinned=_names(pin)))
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign:
            raise _no_edit("--set", text, "--set context=4096")
        edits.append(SetServing(field=key.strip(), value=value.strip()))
    # Highest first: what stands before them keeps its number.
    for r, s in sorted((_stage("--remove-stage", text, "--remove-stage 0.1") for text in removed), reverse=True):
        edits.append(RemoveStage(replica=r, stage=s))
    for where, devices in added:
        r, s = _stage("--add-stage", where, "--add-stage 0.1 gpu02/cuda:0")
        edits.append(AddStage(replica=r, stage=s, devices=_names(devices)))
    for where, devices in placed:
        r, s = _stage("--stage", where, "--stage 0.1 gpu02/cuda:0,gpu02/cuda:1")
        edits.append(PlaceStage(replica=r, stage=s, devices=_names(devices)))
    for text in tensors:
        r, s, (size,) = _numbers("--tensor", text, "--tensor 0.1=2", is_single=True)
        edits.append(SetTensor(replica=r, stage=s, size=size))
    for text in shares:
        r, s, kv_heads = _numbers("--shares", text, "--shares 0.1=5,3")
        edits.append(ShareHeads(replica=r, stage=s, kv_heads=kv_heads))
    for text in boundaries:
        r, s, (layers,) = _numbers("--move-boundary", text, "--move-boundary 0.0=+2", is_single=True)
        edits.append(MoveBoundary(replica=r, stage=s, layers=layers))
    return edits


def _with_hosts_named(edit: Edit, plan: Plan, inventory_path: str) -> Edit:
    """Selectors (`group:a`, `rack=b`, `gpu*`) as the hosts that they mean; the plan may name one that is gone."""
    from agent.planner.edit import Replan
    from odctl.inventory import load_inventory, select

    if not isinstance(edit, Replan):
        return edit
    inventory = load_inventory(inventory_path)

    def hosts(selectors: tuple[str, ...]) -> tuple[str, ...]:
        found = [
            [text] if text in plan.hosts else [host.name for host in select(inventory, text)] for text in selectors
        ]
        return tuple(dict.fromkeys(name for names in found for name in names))

    return Replan(excluded=hosts(edit.excluded), pinned=hosts(edit.pinned))


def _with_hosts_asked(edit: Edit, before: Edited) -> Edit:
    """With the hosts that the plan was asked for to be without, or with, unless the options say otherwise."""
    from agent.planner.edit import Replan

    if not isinstance(edit, Replan):
        return edit
    excluded = dict.fromkeys((*edit.excluded, *(name for name in before.excluded if name not in edit.pinned)))
    pinned = dict.fromkeys((*edit.pinned, *(name for name in before.pinned if name not in edit.excluded)))
    return Replan(excluded=tuple(excluded), pinned=tuple(pinned))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _stage(option: str, text: str, example: str) -> tuple[int, int]:
    found = _STAGE.match(text.strip())
    if found is None:
        raise _no_edit(option, text, example)
    return int(found[1]), int(found[2])


def _numbers(option: str, text: str, example: str, *, is_single: bool = False) -> tuple[int, int, tuple[int, ...]]:
    where, sign, value = text.partition("=")
    try:
        numbers = tuple(int(number) for number in value.split(","))
    except ValueError:
        raise _no_edit(option, text, example) from None
    if not sign or (is_single and len(numbers) != 1):
        raise _no_edit(option, text, example)
    return (*_stage(option, where, example), numbers)


def _no_edit(option: str, text: str, example: str) -> FleetError:
    from agent.errors import FleetError

    return FleetError("E113", f"{option} {text!r} is no edit", hint=f"write {example}")


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


def _is_there(path: Path) -> FleetError:
    from agent.errors import FleetError

    return FleetError("E119", f"{path} is there already", hint="name another file, or replace it with --force")


def _read_basis(inventory_path: str, plan: Plan) -> Basis:
    from odctl.editing import BasisRead, read_basis
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    async def look(fleet: Fleet, inventory: Inventory) -> BasisRead:
        return await read_basis(fleet, plan, cluster=inventory.cluster)

    found = visit_fleet(inventory_path, look)
    warn_unreachable(found.missing)
    return found.basis


# --- what it comes to ---------------------------------------------------------------------------------


def outcome(
    before: Edited,
    after: Edited,
    edits: Sequence[Edit],
    *,
    facts: ClusterFacts,
    path: Path,
    text: str,
    output: str,
    check: bool,
    force: bool,
) -> Result:
    """Before and after; the file is written where nothing forbids it."""
    import msgspec

    from agent.planner.compare import compare_plans
    from agent.planner.edit import edit_words
    from agent.planner.file import plan_hash, plan_to_toml
    from odctl.editing import write_plan_file

    new = plan_to_toml(after.plan)
    blocking = [each for each in after.problems if not (force and each.code.startswith("E4"))]
    writes = not blocking and not check
    target = output or str(path)
    if writes and output != "-" and not (new == text and not output):
        write_plan_file(Path(target), new, replaces=force or _is_same(Path(target), path))
    comparison = compare_plans([before.plan, after.plan], [str(path), "edited"])
    data = {
        "file": str(path),
        "output": target,
        "edits": [edit_words(edit) for edit in edits],
        "hash": plan_hash(after.plan),
        "before": msgspec.to_builtins(before.plan),
        "after": msgspec.to_builtins(after.plan),
        "comparison": msgspec.to_builtins(comparison),
        "problems": [msgspec.to_builtins(problem) for problem in after.problems],
        "differs": new != text,
        "is_written": writes,
    }
    for problem in after.problems:
        sys.stderr.write(_problem_text(problem))
    lines = edit_lines(before.plan, after.plan, edits, facts)
    if blocking:
        lines.append(f"not written: {len(blocking)} {'problem' if len(blocking) == 1 else 'problems'}")
        return Result(
            kind="plan_edit", data=data, prose="\n".join(lines), exit_code=exit_code_of(_as_error(blocking[0]))
        )
    if output == "-" and not check:
        sys.stderr.write("\n".join(lines) + "\n")
        return Result(kind="plan_edit", data=data, prose=new)
    if check:
        lines.append(f"the plan {'differs from' if new != text else 'equals'} {path}: nothing written")
        exit_code = ExitCode.CHANGES if new != text else ExitCode.OK
        return Result(kind="plan_edit", data=data, prose="\n".join(lines), exit_code=exit_code)
    lines.append(f"written to {target}: odctl apply {target}")
    return Result(kind="plan_edit", data=data, prose="\n".join(lines))


def edit_lines(before: Plan, after: Plan, edits: Sequence[Edit], facts: ClusterFacts) -> list[str]:
    """Edits, a line for each rank before and after, and the predictions with their changes."""
    from agent.planner.edit import edit_words
    from agent.planner.words import (
        bytes_interval_words,
        bytes_words,
        joules_interval_words,
        rate_interval_words,
        seconds_interval_words,
    )

    lines = [f"edit: {edit_words(edit)}" for edit in edits]
    rows = [("DEVICE", "BEFORE", "AFTER")]
    held = [_holdings(plan) for plan in (before, after)]
    usable = {
        f"{host.name}/{device.id}": bytes_words(device.usable_bytes)
        for host in facts.hosts
        for device in host.devices
    }
    for name in dict.fromkeys([*held[1], *held[0]]):
        now = f"{held[1][name]} of {usable[name]}" if name in held[1] and name in usable else held[1].get(name, "-")
        rows.append((name, held[0].get(name, "-"), now))
    rows.append(("", "", ""))
    old, new = before.predicted, after.predicted
    figures = [
        ("first token", old.ttft, new.ttft, seconds_interval_words),
        ("time per token", old.time_per_token, new.time_per_token, seconds_interval_words),
        (f"decode, batch {after.serving.batch}", old.throughput, new.throughput, rate_interval_words),
    ]
    if old.energy is not None and new.energy is not None:
        figures.append(("energy per token", old.energy, new.energy, joules_interval_words))
    if old.memory_peak is not None and new.memory_peak is not None:
        figures.append(("fullest device", old.memory_peak, new.memory_peak, bytes_interval_words))
    for name, was, becomes, words in figures:
        change = becomes.expected / was.expected - 1 if was.expected else 0.0
        said = f" {change:+.1%}" if abs(change) >= 5e-4 else ""
        rows.append((name, words(was), f"{words(becomes)}{said}"))
    cells = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines += [f"{a:<{cells[0]}}  {b:<{cells[1]}}  {c}".rstrip() for a, b, c in rows]
    before_words = f", before {old.bottleneck}" if old.bottleneck != new.bottleneck else ""
    lines.append(f"bottleneck: {new.bottleneck}{before_words}")
    if old.prompt_tokens != new.prompt_tokens:
        lines.append(f"predicted for a prompt of {new.prompt_tokens} tokens, before of {old.prompt_tokens}")
    return lines


def _holdings(plan: Plan) -> dict[str, str]:
    from agent.planner.plan import rank_places
    from agent.planner.words import bytes_words, layers_words

    held = {}
    for place in rank_places(plan):
        heads = place.shard.kv_heads
        is_grouped = len(plan.replicas[place.replica].stages[place.stage].shards) > 1
        units = heads[1] - heads[0]
        shared = f", {units} KV {'head' if units == 1 else 'heads'}" if is_grouped else ""
        held[f"{place.shard.host}/{place.shard.device}"] = (
            f"{place.rank_id} {layers_words(place.layers)}{shared}, {bytes_words(place.shard.bytes.total)}"
        )
    return held


def _as_error(problem: PlanProblem) -> FleetError:
    from agent.errors import FleetError

    return FleetError(problem.code, f"{problem.path}: {problem.message}", hint=problem.way_out)


def _problem_text(problem: PlanProblem) -> str:
    return render_error(_as_error(problem).detail)


# --- in an editor -------------------------------------------------------------------------------------


def _edit_in_editor(inventory_path: str, path: Path, text: str, *, output: str, check: bool, force: bool) -> Result:
    """A copy of the file in the user's editor, again until it is sound or given up; the copy stays if it is."""
    from agent.errors import FleetError
    from agent.planner.edit import begin_edit
    from agent.planner.file import plan_from_toml
    from odctl.editing import located

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise FleetError(
            "E111",
            "no edit is given, and there is no terminal for an editor",
            hint="give one, as --move-boundary 0.0=+2: odctl plan edit --help",
        )
    editor = _editor()
    plan = plan_from_toml(text, file=str(path))
    basis = _read_basis(inventory_path, plan)
    before = begin_edit(plan, basis)
    folder = Path(tempfile.mkdtemp(prefix="odctl-edit-"))
    copy = folder / path.name
    copy.write_text(text, encoding="utf-8")
    while True:
        _run_editor(editor, copy)
        edited_text = copy.read_text(encoding="utf-8", errors="replace")
        if edited_text == text:
            shutil.rmtree(folder)
            return Result(
                kind="plan_edit",
                data={"file": str(path), "differs": False, "is_written": False},
                prose=f"{path} is as it was: nothing edited",
            )
        try:
            after = computed_anew(edited_text, copy, before, basis)
            wrong = [each for each in after.problems if not (force and each.code.startswith("E4"))]
            if wrong:
                raise located(edited_text, wrong, file=str(copy))
        except FleetError as error:
            sys.stderr.write(render_error(error.detail))
            if _asks("edit again?"):
                continue
            raise FleetError(
                error.code, f"{path} is as it was; your text is kept in {copy}", hint="mend it, and copy it back"
            ) from error
        break
    if path.read_text(encoding="utf-8") != text and output in ("", str(path)):
        raise FleetError(
            "E119",
            f"{path} was changed by someone else meanwhile; your text is kept in {copy}",
            hint="compare the two, or write yours elsewhere with -o FILE",
        )
    try:
        result = outcome(
            before, after, (), facts=basis.facts, path=path, text=text, output=output, check=check, force=force
        )
    except FleetError as error:
        raise FleetError(error.code, f"{error.message}; your text is kept in {copy}", hint=error.hint) from error
    shutil.rmtree(folder)
    return result


def computed_anew(text: str, file: Path, before: Edited, basis: Basis) -> Edited:
    """A text as an edited plan, bytes and predictions anew. Raises its problems at their lines."""
    from agent.errors import FleetError
    from agent.planner.check import check_shape
    from agent.planner.edit import adopt_plan
    from agent.planner.file import plan_from_toml
    from odctl.editing import located

    plan = plan_from_toml(text, file=str(file))
    if problems := check_shape(plan, basis.spec):
        raise located(text, problems, file=str(file))
    try:
        return adopt_plan(plan, before, basis)
    except FleetError as error:
        raise FleetError(error.code, f"{file}: {error.message}", hint=error.hint) from error


def _editor() -> list[str]:
    """The user's editor as argv. Raises E101 where there is none by that name."""
    from agent.errors import FleetError

    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or FALLBACK_EDITOR
    try:
        argv = shlex.split(named)
    except ValueError:
        argv = []
    if not argv or shutil.which(argv[0]) is None:
        raise FleetError("E101", f"there is no editor `{named}`", hint="set VISUAL or EDITOR to one that is there")
    return argv


def _run_editor(editor: Sequence[str], path: Path) -> None:
    from agent.errors import FleetError

    done = subprocess.run([*editor, str(path)], check=False)
    if done.returncode != 0:
        raise FleetError(
            "E112",
            f"`{shlex.join(editor)}` ended with {done.returncode}: nothing was written",
            hint=f"your text is kept in {path}",
        )


def _asks(question: str) -> bool:
    """Yes unless it is a no, or the end of input."""
    sys.stderr.write(f"{question} [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return bool(answer) and answer.strip().lower() not in ("n", "no")
