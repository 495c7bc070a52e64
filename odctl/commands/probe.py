"""`odctl probe`: what devices and links do, measured on the agents."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from agent.facts.model import Dtype, Quantisation
    from agent.facts.probe import DeviceProbe, GroupProbe, HostProbe, LinkProbe
    from odctl.probing import ProbeOutcome

MAX_MATRIX_HOSTS = 8
"""Of more, links are lines: a wider matrix fits no terminal."""


@click.command("probe")
@click.argument("selector", default="all")
@click.option(
    "--model",
    "model_name",
    default="",
    metavar="MODEL",
    help="Rehearse it: the engine's own layers in its widths, so that plans of it are predicted best. "
    "A directory or a name, as for odctl plan.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default=None,
    help="To rehearse in. Default: the model's.",
)
@click.option(
    "--quantisation",
    type=click.Choice(["none", "int8", "int4", "fp8"]),
    default="none",
    show_default=True,
    help="Likewise.",
)
@click.option(
    "--force", is_flag=True, help="Measure again what is known already; with --model, its rehearsal alone."
)
@click.option("--quick", is_flag=True, help="Small sizes: a few seconds a host, and rougher figures.")
@click.option("--even-serving", is_flag=True, help="Measure hosts that serve a deployment too: both suffer.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, as_json: bool, **options: Any) -> None:
    """Measure devices and links of the hosts SELECTed (names, group:NAME, label=value; all).

    What is known of the same hardware is shown with its age; plans are made with it.
    """
    run_command(lambda: probe(inventory_path, **options), as_json=as_json)


def probe(
    inventory_path: str,
    selector: str,
    *,
    model_name: str,
    dtype: Dtype | None,
    quantisation: Quantisation,
    force: bool,
    quick: bool,
    even_serving: bool,
) -> Result:
    """Raises E501 naming the deployment of a host that serves, E2xx when no host answers, E7xx for the model."""
    import time

    import msgspec

    from agent.errors import FleetError
    from agent.planner.plan import Serving
    from agent.wire.probe import QUICK, ProbeModel, ProbeSizes
    from odctl.apply import read_facts
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory, select
    from odctl.model_source import find_model
    from odctl.probing import probe_fleet
    from odctl.session import visit_fleet, warn_unreachable

    async def measure(fleet: Fleet, inventory: Inventory) -> tuple[ProbeOutcome, dict[str, FleetError]]:
        facts, missing = await read_facts(fleet, inventory.cluster)
        warn_unreachable(missing)
        if not facts.hosts:
            raise next(iter(missing.values()), FleetError("E105", "no host is left to measure"))
        sizes = QUICK if quick else ProbeSizes()
        model = None
        if model_name:
            spec = (await find_model(fleet, model_name)).spec
            model = ProbeModel(
                model=msgspec.structs.replace(spec, tensors=()),
                dtype=dtype or spec.dtype,
                quantisation=quantisation,
                prefill_chunk=Serving().prefill_chunk,
                sizes=sizes,
                even_serving=even_serving,
            )
        outcome = await probe_fleet(
            fleet,
            facts,
            model=model,
            sizes=sizes,
            is_forced=force,
            even_serving=even_serving,
            on_progress=_say,
        )
        return outcome, missing

    outcome, missing = visit_fleet(
        inventory_path, measure, hosts=lambda inventory: [host.name for host in select(inventory, selector)]
    )
    if outcome.troubles and not outcome.probes:
        raise outcome.troubles[0]
    for trouble in outcome.troubles:
        where = f"{trouble.host}: " if trouble.host else ""
        sys.stderr.write(f"warning: {where}{trouble.message}\n  = {trouble.hint}\n")
    now_s = time.time()
    code = ExitCode.PARTIAL if outcome.troubles else ExitCode.UNREACHABLE if missing else ExitCode.OK
    return Result(
        kind="probe",
        data=_data(outcome, missing, now_s),
        prose="\n".join(_lines(outcome, now_s)),
        exit_code=code,
    )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _data(outcome: ProbeOutcome, missing: dict[str, Any], now_s: float) -> dict[str, Any]:
    """Every figure, with what follows from it: rates of products, ages."""
    import msgspec

    def device(probe: DeviceProbe) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(probe)
        for entry, gemm in zip(found["gemms"], probe.gemms, strict=True):
            entry |= {"flops_per_s": gemm.flops_per_s, "weight_bytes_per_s": gemm.weight_bytes_per_s}
        for entry, attention in zip(found["attention"], probe.attention, strict=True):
            entry |= {"cache_bytes_per_s": attention.cache_bytes_per_s}
        return found

    return {
        "hosts": {
            name: {
                **msgspec.to_builtins(probe),
                "devices": [device(each) for each in probe.devices],
                "age_s": now_s - probe.measured_at_s,
                "is_fresh": name in outcome.fresh,
            }
            for name, probe in outcome.probes.items()
        },
        "links": [{**msgspec.to_builtins(link), "age_s": now_s - link.measured_at_s} for link in outcome.links],
        "groups": [
            {**msgspec.to_builtins(group), "age_s": now_s - group.measured_at_s} for group in outcome.groups
        ],
        "num_links_measured": outcome.num_links_measured,
        "troubles": [msgspec.to_builtins(trouble.detail) for trouble in outcome.troubles],
        "unreachable": {name: error.message for name, error in missing.items()},
    }


# --- prose --------------------------------------------------------------------------------------------


def _lines(outcome: ProbeOutcome, now_s: float) -> list[str]:
    lines = device_table(outcome.probes, now_s)
    rehearsed = model_table(outcome.probes, now_s)
    if rehearsed:
        lines += ["", *rehearsed]
    if outcome.links:
        lines += ["", *link_matrix(outcome.links, now_s)]
    if outcome.groups:
        lines += ["", *group_lines(outcome.groups)]
    return lines


def device_table(probes: dict[str, HostProbe], now_s: float) -> list[str]:
    """A row a device; rates of one row are of reading weights, those of a chunk of arithmetic."""
    from agent.planner.words import age_words, bytes_words

    head = ["device", "copy", "read", "bf16 1 row", "64 rows", "chunk", "int8 1 row", "chunk", "f32 chunk"]
    rows = [[*head, "attention", "disk", "measured"]]
    for name in sorted(probes):
        probe = probes[name]
        for device in probe.devices:
            disk = probe.disk_read_bytes_per_s if device is probe.devices[0] else None
            rows.append(
                [
                    f"{name}/{device.device}",
                    f"{bytes_words(device.copy_bytes_per_s)}/s",
                    f"{bytes_words(device.read_bytes_per_s)}/s",
                    *_product_cells(device),
                    ", ".join(
                        f"{a.context // 1024 or 1}k {bytes_words(a.cache_bytes_per_s)}/s" for a in device.attention
                    ),
                    f"{bytes_words(disk)}/s" if disk is not None else "",
                    age_words(now_s - probe.measured_at_s) + (", quick" if probe.is_quick else ""),
                ]
            )
    return _columns(rows)


def model_table(probes: dict[str, HostProbe], now_s: float) -> list[str]:
    """A row for each rehearsed share of a model's layer; empty where none was rehearsed."""
    from agent.planner.words import age_words, seconds_words

    head = ["rehearsed", "model", "share", "token", "8 sequences", "prompt", "head", "after a rest", "measured"]
    rows = [head]
    for name in sorted(probes):
        for device in probes[name].devices:
            for model in device.models:
                one, many, *_ = (step for step in model.steps if not step.is_prefill)
                chunk = [step for step in model.steps if step.is_prefill and step.sequences == 1][-1]
                rest = f"+{seconds_words(model.rests[-1].seconds)}" if model.rests else ""
                rows.append(
                    [
                        f"{name}/{device.device}",
                        model.widths,
                        f"1/{model.parts}" if model.parts > 1 else "whole layer",
                        seconds_words(one.seconds),
                        seconds_words(many.seconds),
                        f"{chunk.rows} rows {seconds_words(chunk.seconds)}",
                        seconds_words(model.heads[0].seconds),
                        rest,
                        age_words(now_s - model.measured_at_s),
                    ]
                )
    return _columns(rows) if len(rows) > 1 else []


def _product_cells(device: DeviceProbe) -> list[str]:
    from agent.planner.words import bytes_words

    def rows_of(dtype: str, quantisation: str) -> list[Any]:
        return [gemm for gemm in device.gemms if (gemm.dtype, gemm.quantisation) == (dtype, quantisation)]

    plain, codes, wide = rows_of("bfloat16", "none"), rows_of("bfloat16", "int8"), rows_of("float32", "none")
    return [
        f"{bytes_words(plain[0].weight_bytes_per_s)}/s",
        _flops_words(plain[-2].flops_per_s),
        _flops_words(plain[-1].flops_per_s),
        f"{bytes_words(codes[0].weight_bytes_per_s)}/s",
        _flops_words(codes[-1].flops_per_s),
        _flops_words(wide[-1].flops_per_s),
    ]


def _flops_words(flops_per_s: float) -> str:
    return f"{flops_per_s / 1e12:.1f} TF/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:.0f} GF/s"


def link_matrix(links: Sequence[LinkProbe], now_s: float) -> list[str]:
    """From rows to columns: one-way latency and rate, by the carrier that would serve."""
    from agent.planner.words import age_words

    names = sorted({link.source for link in links} | {link.target for link in links})
    local = [link for link in links if link.source == link.target]
    across = [link for link in links if link.source != link.target]
    lines = []
    for carrier in sorted({link.carrier for link in across}):
        cells = {(link.source, link.target): _link_words(link) for link in across if link.carrier == carrier}
        oldest_s = min(link.measured_at_s for link in across if link.carrier == carrier)
        lines.append(f"links by {carrier}, from row to column, measured {age_words(now_s - oldest_s)}")
        if len(names) <= MAX_MATRIX_HOSTS:
            rows = [["", *names]]
            for source in names:
                rows.append([source, *(cells.get((source, target), "-") for target in names)])
            lines += _columns(rows)
        else:
            lines += _columns([[source, ">", target, words] for (source, target), words in sorted(cells.items())])
    for link in local:
        ends = f"{link.source}: {link.source_device} > {link.target_device}"
        lines.append(f"{ends}  {_link_words(link)} by {link.carrier}")
    return lines


def _link_words(link: LinkProbe) -> str:
    from agent.planner.words import bytes_words, seconds_words

    return f"{seconds_words(link.latency_s)} {bytes_words(link.bytes_per_s)}/s"


def group_lines(groups: Sequence[GroupProbe]) -> list[str]:
    """All-reduces of candidate groups, a line each."""
    from agent.planner.words import bytes_words, seconds_words

    rows = [["all-reduce", "carrier", "time for so many bytes"]]
    for group in groups:
        sums = ", ".join(f"{bytes_words(each.num_bytes)} {seconds_words(each.seconds)}" for each in group.sums)
        rows.append([" + ".join(group.members), group.carrier, sums])
    return _columns(rows)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
