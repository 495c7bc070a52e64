"""A deployment as a server to measure, reached the way that a chat goes: its gateway's socket, through its host."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from agent.errors import FleetError
from agent.planner.plan import Serving
from agent.wire.agent import DeploymentStatus
from odctl.bench.load import TUNNEL_CONCURRENCY, Lengths, Load, check_load, parse_lengths
from odctl.bench.measure import Objectives
from odctl.bench.run import MAX_WARM_UP, Measurement, Settings
from odctl.bench.server import find_server
from odctl.fleet import Fleet

if TYPE_CHECKING:
    import httpx

ANSWER_TIMEOUT_S = 600.0
DEFAULT_REQUESTS = 16
MAX_REQUESTS = 10_000
"""Of a load that is typed: its figures are reckoned anew twice a second while it runs."""
WARM_UP = 2
FIELDS = ("concurrency", "requests", "prompt", "output", "warm-up", "seed")


async def gateway_client(fleet: Fleet, status: DeploymentStatus, load: Load) -> tuple[httpx.AsyncClient, str]:
    """Client, which belongs to the fleet, and a label. Raises E118 for a load that this way does not carry."""
    if load.arrivals == "closed" and load.concurrency > TUNNEL_CONCURRENCY:
        raise FleetError(
            "E118",
            f"{load.concurrency} at a time: the way through {status.gateway_host} carries {TUNNEL_CONCURRENCY}",
            hint=f"give the address: odctl bench http://{status.listen}",
        )
    client = await fleet.client_of(status.gateway_host, status.gateway_socket)
    return client, f"{status.name} on {status.gateway_host}"


async def measure_deployment(fleet: Fleet, status: DeploymentStatus, measurement: Measurement) -> None:
    """Put the measurement's load on it. Cancelled, it breaks off, and the measurement keeps what was measured.

    Raises E808 when it does not answer, E118 as `gateway_client` does.
    """
    client, label = await gateway_client(fleet, status, measurement.settings.load)
    server = await find_server(client, label=label, api="openai", model=status.name, timeout_s=ANSWER_TIMEOUT_S)
    await measurement.run(server)


def default_load(serving: Serving) -> str:
    """A load for `parse_load` that the deployment can serve: as many at a time as it has slots, within bounds."""
    clients = max(1, min(serving.batch, TUNNEL_CONCURRENCY))
    prompt, output = min(128, serving.context // 4), min(64, serving.context // 4)
    requests = max(DEFAULT_REQUESTS, 4 * clients)
    return f"concurrency={clients} requests={requests} prompt={prompt} output={output} warm-up={WARM_UP}"


def parse_load(text: str, serving: Serving) -> Settings:
    """`concurrency=4 requests=16 prompt=128 output=64..256`: clients that each ask again when answered.

    Raises E118 naming the word that is wrong, and for what the deployment's context has no room for.
    """
    words = _words(text)
    seed = _number(words, "seed", random.randrange(1_000_000))
    clients = _number(words, "concurrency", 1)
    load = Load(
        arrivals="closed",
        concurrency=clients,
        rate_per_s=0.0,
        num_requests=_number(words, "requests", max(DEFAULT_REQUESTS, 4 * clients)),
        duration_s=None,
        prompt=parse_lengths(words.get("prompt", "128")),
        output=parse_lengths(words.get("output", "64")),
        seed=seed,
    )
    check_load(load)
    if (load.num_requests or 0) > MAX_REQUESTS:
        raise FleetError(
            "E118", f"requests={load.num_requests}: up to {MAX_REQUESTS} here", hint="`odctl bench` takes more"
        )
    if clients > TUNNEL_CONCURRENCY:
        raise FleetError("E118", f"concurrency={clients}: the way through a host carries {TUNNEL_CONCURRENCY}")
    warm_up = _number(words, "warm-up", WARM_UP)
    if not 0 <= warm_up <= MAX_WARM_UP:
        raise FleetError("E118", f"warm-up={warm_up}: from 0 to {MAX_WARM_UP} are possible")
    most = _most(load.prompt) + _most(load.output)
    if most > serving.context:
        raise FleetError(
            "E118",
            f"prompt and output take up to {most} tokens, the context has {serving.context}",
            hint="make one of them shorter",
        )
    return Settings(load=load, objectives=Objectives(), warm_up=warm_up)


def _words(text: str) -> dict[str, str]:
    words: dict[str, str] = {}
    for word in text.split():
        name, sign, value = word.partition("=")
        if name not in FIELDS or not sign or not value:
            raise FleetError("E118", f"`{word}` says nothing of a load", hint=f"NAME=VALUE of {', '.join(FIELDS)}")
        words[name] = value
    return words


def _number(words: dict[str, str], name: str, default: int) -> int:
    text = words.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise FleetError("E118", f"{name}={text} is no whole number")
    return int(text)


def _most(lengths: Lengths) -> int:
    """Of a normal distribution its mean: what lies above is cut by the server, and told as short answers."""
    return lengths.high if lengths.mean is None else round(lengths.mean)
