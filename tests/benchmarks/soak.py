"""`make soak`: an hour of mixed load on a deployment of two stages. Nothing may leak, every one must end clearly.

Clients ask through both APIs, streamed and whole, long and short, greedy and seeded, with shared beginnings, with a
JSON schema, with too much; some hang up. The KV cache is too small for all of them: sequences lose their blocks.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from agent.wire.gateway import BackendStatus, GatewayStatus
from tests.benchmarks.output import say
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.integration.models import write_endless_model

NAME, CONTROLLER = "soak", "h1"
NUM_CLIENTS = 12
CONTEXT, BATCH, KV_TOKENS = 512, 8, 640
REQUEST_S = 120.0
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SAMPLES = 60
"""Readings of memory and file descriptors over the whole time."""
SHARED = "def first(text): return text.strip() " * 6

ALLOWED_GROWTH_BYTES = 16 * 2**20
ALLOWED_GROWTH = 0.05
ALLOWED_DESCRIPTORS = 4
"""Connections that are kept for the next request come and go."""


class SoakReport(msgspec.Struct, kw_only=True):
    seconds: float
    ends: dict[str, int]
    """How requests ended: answered, refused, left."""
    unclear: list[str]
    """Those that ended otherwise: with less than was asked for, in silence, or with an error that is none."""
    growth: dict[str, int]
    """Bytes of resident memory by process, from the second quarter of the time to the last."""
    resident: dict[str, int]
    """In the second quarter."""
    descriptors: dict[str, int]
    """File descriptors more than before the load, once all is idle again."""
    blocks_held: int
    counted: dict[str, int]
    """By the gateway: finished, failed, cancelled, preemptions, found prefixes, accepted drafts."""
    faults: int

    def problems(self) -> list[str]:
        """What must not be; empty when the deployment is as it was."""
        found = list(self.unclear)
        for process, grown in self.growth.items():
            if grown > max(ALLOWED_GROWTH_BYTES, ALLOWED_GROWTH * self.resident[process]):
                found.append(f"{process} grew by {grown / 2**20:.1f} MiB from {self.resident[process] / 2**20:.1f}")
        found += [
            f"{process} has {count} file descriptors more"
            for process, count in self.descriptors.items()
            if count > ALLOWED_DESCRIPTORS
        ]
        if self.blocks_held:
            found.append(f"{self.blocks_held} blocks are held while nothing runs")
        if self.faults:
            found.append(f"{self.faults} faults")
        if self.counted["failed"]:
            found.append(f"{self.counted['failed']} requests failed in the gateway")
        return found


class _Watch:
    """Memory and file descriptors of the deployment's processes, by role."""

    def __init__(self, cluster: Cluster) -> None:
        self._processes = {
            f"{record.role} {record.rank_id or host}": psutil.Process(record.pid)
            for host in cluster.hosts
            for role in ("rank", "gateway")
            for record in cluster.children(host, role)
        }
        self._processes |= {f"agent {host}": psutil.Process(cluster.agent_pid(host)) for host in cluster.hosts}
        self.resident: dict[str, list[int]] = {name: [] for name in self._processes}

    def read(self) -> None:
        for name, process in self._processes.items():
            self.resident[name].append(process.memory_info().rss)

    def descriptors(self) -> dict[str, int]:
        return {name: process.num_fds() for name, process in self._processes.items()}

    def quarters(self) -> tuple[dict[str, int], dict[str, int]]:
        """Medians of the second and of the last quarter: the first one warms up."""
        second, last = {}, {}
        for name, values in self.resident.items():
            quarter = max(1, len(values) // 4)
            second[name] = int(statistics.median(values[quarter : 2 * quarter] or values))
            last[name] = int(statistics.median(values[-quarter:]))
        return second, last


class _Client:
    """Asks one random thing after the other until the time is over."""

    def __init__(self, listen: str, seed: int, ends: Counter[str], unclear: list[str]) -> None:
        self._random = random.Random(seed)
        self._http = httpx.Client(base_url=f"http://{listen}", timeout=REQUEST_S, trust_env=False)
        self._ends = ends
        self._unclear = unclear

    def run_until(self, deadline: float) -> None:
        ways = (
            *(self._openai_stream,) * 3,
            *(self._ollama_stream,) * 3,
            *(self._whole,) * 2,
            self._leaver,
            self._leaver,
            self._with_schema,
            self._too_long,
            self._mistaken,
        )
        with self._http:
            while time.monotonic() < deadline:
                way = self._random.choice(ways)
                try:
                    end = way()
                except (httpx.HTTPError, msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
                    end = f"{type(error).__name__}: {error}"
                kind = way.__name__.strip("_")
                if end in ("answered", "refused", "left"):
                    self._ends[end] += 1
                else:
                    self._unclear.append(f"{kind}: {end}")

    def _prompt(self) -> str:
        words = " ".join(str(self._random.randrange(1000)) for _ in range(self._random.randrange(1, 40)))
        return SHARED + words if self._random.random() < 0.4 else words

    def _settings(self, tokens: int) -> dict[str, Any]:
        seeded = {"seed": self._random.randrange(100), "temperature": 0.9}
        drawn = seeded if self._random.random() < 0.5 else {"temperature": 0}
        return {"model": NAME, "prompt": self._prompt(), "max_tokens": tokens, **drawn}

    def _openai_stream(self) -> str:
        tokens = self._random.randrange(1, 64)
        body = self._settings(tokens) | {"stream": True, "stream_options": {"include_usage": True}}
        with self._http.stream("POST", "/v1/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        if not lines or lines[-1] != "data: [DONE]":
            return f"no end after {len(lines)} events"
        last = msgspec.json.decode(lines[-2][6:])
        if "error" in last:
            return f"error: {last['error']}"
        counted = last["usage"]["completion_tokens"]
        return "answered" if counted == tokens else f"{counted} of {tokens} tokens"

    def _ollama_stream(self) -> str:
        tokens = self._random.randrange(1, 64)
        body = {"model": NAME, "prompt": self._prompt(), "options": {"num_predict": tokens, "temperature": 0.7}}
        with self._http.stream("POST", "/api/generate", json=body) as response:
            last = msgspec.json.decode(list(response.iter_lines())[-1])
        if not last.get("done"):
            return f"no end: {last}"
        return "answered" if last["eval_count"] == tokens else f"{last['eval_count']} of {tokens} tokens"

    def _whole(self) -> str:
        tokens = self._random.randrange(1, 48)
        answer = self._http.post("/v1/completions", json=self._settings(tokens))
        if answer.status_code != httpx.codes.OK:
            return f"{answer.status_code}: {answer.text}"
        counted = answer.json()["usage"]["completion_tokens"]
        return "answered" if counted == tokens else f"{counted} of {tokens} tokens"

    def _leaver(self) -> str:
        """Hangs up after some pieces, or before the first."""
        body = self._settings(200) | {"stream": True}
        wanted = self._random.randrange(0, 12)
        with self._http.stream("POST", "/v1/completions", json=body) as response:
            if wanted:
                for index, _ in enumerate(response.iter_lines()):
                    if index >= wanted:
                        break
        return "left"

    def _with_schema(self) -> str:
        chat = [{"role": "user", "content": self._prompt()}]
        form = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA}}
        body = {"model": NAME, "messages": chat, "max_tokens": 60, "temperature": 0.5, "response_format": form}
        answer = self._http.post("/v1/chat/completions", json=body)
        if answer.status_code != httpx.codes.OK:
            return f"{answer.status_code}: {answer.text}"
        [choice] = answer.json()["choices"]
        text = choice["message"]["content"]
        if choice["finish_reason"] == "length":
            return "answered" if text.lstrip().startswith("{") else f"no object: {text!r}"
        return "answered" if isinstance(msgspec.json.decode(text)["n"], int) else f"no number: {text!r}"

    def _too_long(self) -> str:
        body = self._settings(4) | {"prompt": "long " * CONTEXT * 2}
        return self._refused(self._http.post("/v1/completions", json=body), "context")

    def _mistaken(self) -> str:
        body = {"model": "nobody", "prompt": "x"}
        return self._refused(self._http.post("/api/generate", json=body), "nobody")

    def _refused(self, answer: httpx.Response, word: str) -> str:
        is_clear = answer.status_code in (400, 404) and word in answer.text
        return "refused" if is_clear else f"{answer.status_code}: {answer.text}"


@contextmanager
def soak_cluster() -> Iterator[tuple[Cluster, str]]:
    """A cluster of two hosts with the deployment on it, and the address of its HTTP API."""
    with tempfile.TemporaryDirectory(prefix="ods-") as folder, open_cluster(num_hosts=2) as cluster:
        model = write_endless_model(Path(folder) / "endless")
        listen = free_listen()
        plan = cluster.plan(
            model,
            Path(folder) / "plan.toml",
            *("--name", NAME, "--listen", listen, "--controller", CONTROLLER, "--strategy", "pipeline"),
            *("--stages", "2", "--min-hosts", "2", "--context", str(CONTEXT), "--batch", str(BATCH)),
            *("--kv-cache-tokens", str(KV_TOKENS), "--speculation", "prompt_lookup"),
        )
        cluster.apply(plan)
        yield cluster, listen


def soak(
    cluster: Cluster, listen: str, *, seconds: float, seed: int = 0, tell: Callable[[str], None] = say
) -> SoakReport:
    """Put mixed load on the deployment for so long, and compare how it was with how it is."""
    _warm_up(listen)
    before = _when_idle(cluster)
    watch = _Watch(cluster)
    descriptors = watch.descriptors()
    ends: Counter[str] = Counter()
    unclear: list[str] = []
    deadline = time.monotonic() + seconds
    clients = [
        threading.Thread(target=_Client(listen, seed + number, ends, unclear).run_until, args=(deadline,))
        for number in range(NUM_CLIENTS)
    ]
    begun = time.monotonic()
    for client in clients:
        client.start()
    for sample in range(SAMPLES):
        clients[0].join(max(0.0, begun + seconds * (sample + 1) / SAMPLES - time.monotonic()))
        watch.read()
        if sample % (SAMPLES // 6) == 0:
            tell(f"{time.monotonic() - begun:.0f} s: {dict(ends)}, {len(unclear)} unclear")
    for client in clients:
        client.join(REQUEST_S)
        if client.is_alive():
            unclear.append("a request that does not end")
    after = _when_idle(cluster)
    second, last = watch.quarters()
    return SoakReport(
        seconds=seconds,
        ends=dict(ends),
        unclear=unclear,
        growth={name: last[name] - second[name] for name in last},
        resident=second,
        descriptors={name: count - descriptors[name] for name, count in watch.descriptors().items()},
        blocks_held=after.blocks_held,
        counted={
            name: getattr(after, name) - getattr(before, name)
            for name in ("finished", "failed", "cancelled", "preemptions", "prefix_hit_tokens", "drafts_accepted")
        },
        faults=len(cluster.faults(CONTROLLER)),
    )


def _warm_up(listen: str) -> None:
    """Every way once: modules are imported and caches made when first used."""
    ends: Counter[str] = Counter()
    unclear: list[str] = []
    client = _Client(listen, 1_000_000, ends, unclear)
    client.run_until(time.monotonic() + 2.0)
    assert not unclear, unclear


def _when_idle(cluster: Cluster) -> BackendStatus:
    """The gateway's word once nothing runs and nothing waits."""

    def idle() -> BackendStatus | None:
        [gateway] = [record for host in cluster.hosts for record in cluster.children(host, "gateway")]
        with httpx.Client(transport=httpx.HTTPTransport(uds=gateway.socket), base_url="http://gateway") as client:
            status = msgspec.msgpack.decode(client.get("/control/status").content, type=GatewayStatus)
        [backend] = status.backends
        return backend if not backend.running and not backend.queued else None

    return until(idle, timeout_s=REQUEST_S, what="an idle gateway")


def main() -> int:
    # As an interrupt: the cluster is taken down on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with soak_cluster() as (cluster, listen):
        report = soak(cluster, listen, seconds=options.seconds, seed=options.seed)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    problems = report.problems()
    sys.stdout.write("\n".join(problems or ["nothing leaked, and every request ended clearly"]) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
