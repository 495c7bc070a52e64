"""`odctl bench TARGET`: put a load on a server of language models and print what it took."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    import httpx

    from odctl.bench.run import Measurement, Settings
    from odctl.bench.server import Api
    from odctl.fleet import Fleet

DEFAULT_REQUESTS = 16


@click.command("bench")
@click.argument("target")
@click.option(
    "--api",
    type=click.Choice(["auto", "openai", "ollama"]),
    default="auto",
    show_default=True,
    help="What it speaks.",
)
@click.option("--model", default="", help="Model to ask for. Default: the only one that the server has.")
@click.option("--requests", type=int, default=None, help="How many. Default: 16, or 4 for each client.")
@click.option("--duration", type=float, default=None, help="Seconds in which requests are begun.")
@click.option(
    "--concurrency", type=int, default=None, help="Clients that each ask again when answered. Default: 1."
)
@click.option("--rate", type=float, default=None, help="Requests a second, whatever the server does.")
@click.option("--arrivals", type=click.Choice(["fixed", "poisson"]), default="poisson", show_default=True)
@click.option(
    "--trace",
    default="",
    type=click.Path(dir_okay=False),
    help="Requests as a file says: JSON lines or CSV with arrival_s, prompt_tokens, output_tokens.",
)
@click.option(
    "--record",
    default="",
    type=click.Path(dir_okay=False),
    help="Write what was asked and measured as a trace, for `odctl simulate`.",
)
@click.option("--prompt", default="128", show_default=True, help="Tokens: 128, 64..256 or normal:128:32.")
@click.option("--output", default="64", show_default=True, help="Tokens, likewise.")
@click.option("--shared-prefix", type=int, default=0, help="First tokens that all prompts have in common.")
@click.option("--warm-up", type=int, default=2, show_default=True, help="Requests before, not counted.")
@click.option("--slo-ttft", type=float, default=None, metavar="MS", help="Goodput: first token within so many ms.")
@click.option("--slo-tpot", type=float, default=None, metavar="MS", help="Goodput: at most so many ms per token.")
@click.option(
    "--against", default="", metavar="TARGET", help="A second server, under the same load in alternation."
)
@click.option("--against-api", type=click.Choice(["auto", "openai", "ollama"]), default="auto", show_default=True)
@click.option("--against-model", default="")
@click.option("--rounds", type=int, default=None, help="Of the load. Default: 1, and 5 with --against.")
@click.option("--seed", type=int, default=None, help="Of lengths, words and arrivals. Default: another each time.")
@click.option(
    "--timeout", type=float, default=600.0, show_default=True, help="Seconds without a piece of an answer."
)
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, as_json: bool, **options: Any) -> None:
    """Measure TARGET: an address (http://host:port, host:port) or the name of a deployment.

    A deployment is reached through its host, as `odctl run` does it, which adds to the time of the first token;
    from elsewhere in the network, give the address that its HTTP API listens on.
    """
    run_command(lambda: bench(inventory_path, **options), as_json=as_json)


def bench(
    inventory_path: str,
    *,
    target: str,
    api: str = "auto",
    model: str = "",
    against: str = "",
    against_api: str = "auto",
    against_model: str = "",
    timeout: float = 600.0,
    record: str = "",
    **options: Any,
) -> Result:
    """Raises E118 for a load that cannot be, E808 for a server that does not answer; failed requests are counted.

    An interrupt ends the measurement, not the report: exit 130 with what was measured so far.
    """
    from odctl.bench.run import Measurement

    settings = settings_of(is_against=bool(against), **options)
    targets = [(target, api, model)]
    if against:
        targets.append((against, against_api, against_model))
    measurement = Measurement(settings, tell=_tell)
    is_interrupted = False
    try:
        _measure(inventory_path, targets, measurement, timeout_s=timeout)
    except KeyboardInterrupt:
        if not measurement.totals():
            raise
        is_interrupted = True
    if record:
        _record(measurement, record)
    return _result(measurement, is_interrupted=is_interrupted)


def settings_of(
    *,
    is_against: bool,
    requests: int | None = None,
    duration: float | None = None,
    concurrency: int | None = None,
    rate: float | None = None,
    arrivals: str = "poisson",
    trace: str = "",
    prompt: str = "128",
    output: str = "64",
    shared_prefix: int = 0,
    warm_up: int = 2,
    slo_ttft: float | None = None,
    slo_tpot: float | None = None,
    rounds: int | None = None,
    seed: int | None = None,
) -> Settings:
    """Raises E118 naming what is out of bounds or does not go together."""
    from agent.errors import FleetError
    from odctl.bench.load import MAX_CONCURRENCY, Arrivals, Load, check_load, parse_lengths
    from odctl.bench.measure import Objectives
    from odctl.bench.run import MAX_ROUNDS, MAX_WARM_UP, Settings
    from odctl.bench.trace_file import read_trace

    if trace and rate is not None:
        raise FleetError("E118", "--trace and --rate both say when requests come", hint="leave one out")
    if rounds is None:
        rounds = 5 if is_against else 1
    if not 1 <= rounds <= MAX_ROUNDS:
        raise FleetError("E118", f"{rounds} rounds: from 1 to {MAX_ROUNDS} are possible")
    if not 0 <= warm_up <= MAX_WARM_UP:
        raise FleetError("E118", f"{warm_up} requests to warm up: from 0 to {MAX_WARM_UP} are possible")
    clients = concurrency if concurrency is not None else 1
    asked = read_trace(trace) if trace else ()
    if requests is None and (asked or duration is None):
        requests = len(asked) or max(DEFAULT_REQUESTS, 4 * clients)
    arriving: Arrivals = "fixed" if arrivals == "fixed" else "poisson"
    is_closed = not asked and rate is None
    load = Load(
        arrivals="trace" if asked else "closed" if is_closed else arriving,
        concurrency=clients if is_closed or concurrency is not None else MAX_CONCURRENCY,
        rate_per_s=rate or 0.0,
        num_requests=requests,
        duration_s=duration,
        prompt=parse_lengths(prompt),
        output=parse_lengths(output),
        shared_prefix=shared_prefix,
        seed=random.randrange(1_000_000) if seed is None else seed,
        trace=asked,
    )
    check_load(load)
    objectives = Objectives(
        ttft_s=None if slo_ttft is None else slo_ttft / 1e3, tpot_s=None if slo_tpot is None else slo_tpot / 1e3
    )
    return Settings(load=load, objectives=objectives, warm_up=warm_up, rounds=rounds)


def _measure(
    inventory_path: str, targets: list[tuple[str, str, str]], measurement: Measurement, *, timeout_s: float
) -> None:
    """Open the way to every target, and measure. The fleet is visited only where a deployment is named."""
    import asyncio

    from odctl.session import visit_fleet

    if not all(_is_address(name) for name, _, _ in targets):
        visit_fleet(
            inventory_path,
            lambda fleet, _inventory: _drive(targets, measurement, fleet=fleet, timeout_s=timeout_s),
        )
    else:
        asyncio.run(_drive(targets, measurement, fleet=None, timeout_s=timeout_s))


async def _drive(
    targets: list[tuple[str, str, str]], measurement: Measurement, *, fleet: Fleet | None, timeout_s: float
) -> None:
    from contextlib import AsyncExitStack

    import httpx

    from odctl.bench.server import find_server

    servers = []
    async with AsyncExitStack() as stack:
        for name, api, model in targets:
            if _is_address(name):
                url = name if "://" in name else f"http://{name}"
                # Every client of the load has a connection of its own; proxies would be measured too.
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                client = await stack.enter_async_context(
                    httpx.AsyncClient(base_url=url, limits=limits, trust_env=False)
                )
                label, model_name = url, model
            else:
                assert fleet is not None, "a deployment is reached through the fleet"
                client, label, served = await _gateway_of(fleet, name, measurement.settings)
                model_name = model or served
            servers.append(
                await find_server(client, label=label, api=_api(api), model=model_name, timeout_s=timeout_s)
            )
        await measurement.run(*servers)


async def _gateway_of(fleet: Fleet, name: str, settings: Settings) -> tuple[httpx.AsyncClient, str, str]:
    """Client, label and the model's name there. The client belongs to the fleet."""
    from odctl.bench.deployment import gateway_client
    from odctl.deployments import read_deployments

    status = (await read_deployments(fleet)).one(name).reachable_status()
    client, label = await gateway_client(fleet, status, settings.load)
    return client, label, status.name


def _api(name: str) -> Api | None:
    return None if name == "auto" else "openai" if name == "openai" else "ollama"


def _is_address(target: str) -> bool:
    """Deployments have names without a colon."""
    return ":" in target


def _result(measurement: Measurement, *, is_interrupted: bool) -> Result:
    from odctl.bench.report import figures_text, load_line, ratios_text

    settings, totals = measurement.settings, measurement.totals()
    parts = [load_line(settings.load)]
    parts += [figures_text(label, each, settings.objectives) for label, each in totals]
    if found := measurement.ratios():
        parts.append(ratios_text(totals[0][0], totals[1][0], found))
    if is_interrupted:
        parts.append("interrupted: these are the figures up to then")
    failed = sum(each.num_failed for _, each in totals)
    answered = sum(each.num_answered for _, each in totals)
    code = ExitCode.OK if not failed else ExitCode.PARTIAL if answered else ExitCode.ERROR
    return Result(
        kind="bench",
        data=measurement.report() | {"is_interrupted": is_interrupted},
        prose="\n\n".join(parts),
        exit_code=ExitCode.INTERRUPTED if is_interrupted else code,
    )


def _record(measurement: Measurement, path: str) -> None:
    from odctl.bench.trace_file import write_trace

    recorded = measurement.recorded()
    if recorded:
        write_trace(path, recorded)
        _tell(f"{len(recorded)} answered requests written to {path}")
    else:
        _tell(f"no request was answered: {path} is not written")


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
