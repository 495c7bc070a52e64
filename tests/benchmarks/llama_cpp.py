"""llama.cpp as its users run it: its server, its RPC servers, its own benchmark. All are stopped by their pids."""

from __future__ import annotations

import contextlib
import csv
import io
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.benchmarks.peers import Peers
from tests.integration.cluster import free_listen

START_S = 180.0
"""Weights are read, and for RPC also sent."""
STOP_S = 20.0
BENCH_S = 300.0


@contextmanager
def llama_server(
    peers: Peers, gguf: Path, *, slots: int, context: int, split: tuple[int, ...] = ()
) -> Iterator[str]:
    """Its address. One thread; `split` are layers for each of as many RPC servers, one thread each.

    `context` is what each slot has.
    """
    listen = free_listen()
    with contextlib.ExitStack() as stack:
        way = []
        if split:
            servers = [stack.enter_context(_rpc_server(peers)) for _ in split]
            layers = ",".join(str(count) for count in split)
            way = ["--rpc", ",".join(servers), "-ngl", "99", "-ts", layers, "-fit", "off"]
        argv = [
            *(str(peers.tool("llama-server")), "-m", str(gguf), "--host", "127.0.0.1"),
            *("--port", listen.split(":")[1], "-t", "1", "-tb", "1"),
            *("-np", str(slots), "-c", str(slots * context), "--cache-ram", "0", "--no-webui"),
            *way,
        ]
        stack.enter_context(_running(argv, peers.folder / "llama-server.log"))
        _wait_healthy(f"http://{listen}/health", peers.folder / "llama-server.log")
        yield listen


def llama_bench(peers: Peers, gguf: Path, *, prefill: int = 0, decode: int = 0) -> float:
    """Tokens a second of its own benchmark, with one thread: llama.cpp's engine alone."""
    done = subprocess.run(
        [
            *(str(peers.tool("llama-bench")), "-m", str(gguf), "-t", "1", "-r", "1", "-o", "csv"),
            *("-p", str(prefill), "-n", str(decode)),
        ],
        capture_output=True,
        text=True,
        timeout=BENCH_S,
        check=True,
    )
    [row] = csv.DictReader(io.StringIO(done.stdout))
    return float(row["avg_ts"])


@contextmanager
def _rpc_server(peers: Peers) -> Iterator[str]:
    listen = free_listen()
    host, port = listen.split(":")
    argv = [str(peers.tool("ggml-rpc-server")), "-H", host, "-p", port, "-t", "1", "-d", "CPU"]
    with _running(argv, peers.folder / "rpc-server.log"):
        yield listen


@contextmanager
def _running(argv: list[str], log: Path) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_healthy(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    raise RuntimeError(f"llama-server did not come up within {START_S:g} s:\n{end}")
