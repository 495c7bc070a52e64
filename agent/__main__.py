"""`python -m agent --prefix PREFIX`: read the config, wire the parts, run until told to end.

SIGTERM ends the agent only: engine ranks and gateways live on, and the next agent adopts them.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.api.cluster_client import ClusterClient
from agent.api.control import build_app
from agent.api.planes import serve_cluster, serve_control
from agent.errors import FleetError
from agent.journal import Journal
from agent.json_log import start_logging
from agent.pid_file import hold_pid_file
from agent.supervisor.paths import HostPaths
from agent.supervisor.ranks import tls_files
from agent.supervisor.supervisor import Supervisor
from agent.telemetry.facts import collect_facts, make_handshake
from agent.telemetry.gpu import GpuReader
from agent.telemetry.history import SampleHistory
from agent.telemetry.host import HostReader, OwnProcess
from agent.telemetry.sampler import Sampler
from agent.wire.agent import CLUSTER_ROUTES, AgentConfig

log = logging.getLogger("agent")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent", description="The agent of one host.")
    parser.add_argument("--prefix", type=Path, required=True, help="directory that bootstrap made")
    prefix: Path = parser.parse_args().prefix.absolute()
    try:
        config = read_config(prefix)
        with hold_pid_file(HostPaths(prefix).run / "agent.pid"):
            start_logging(HostPaths(prefix).log("agent"))
            asyncio.run(run(config))
    except FleetError as error:
        return _fail(error)
    except ExceptionGroup as group:
        known, unknown = group.split(FleetError)
        if unknown is not None or known is None:
            log.exception("agent failed")
            raise
        return _fail(_first_of(known))
    return 0


def read_config(prefix: Path) -> AgentConfig:
    """`etc/agent.json`. Raises FleetError E101."""
    path = prefix / "etc" / "agent.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=AgentConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise FleetError(
            "E101", f"{path} cannot be read: {error}", hint="bootstrap this host again to write it"
        ) from error
    return msgspec.structs.replace(config, prefix=str(prefix))


async def run(config: AgentConfig) -> None:
    """Until SIGTERM or SIGINT. Raises an ExceptionGroup when a part cannot go on."""
    paths = HostPaths(Path(config.prefix))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    started_at_s = time.time()
    tls = tls_files(paths)
    client = ClusterClient(tls, cluster=config.cluster)
    journal = Journal(paths.prefix / "var" / "journal.sqlite", host=config.host)
    # The sampler lists the supervisor's children, and the supervisor's facts are the sampler's GPUs.
    supervisor = Supervisor(
        config,
        journal=journal,
        client=client,
        make_handshake=lambda: make_handshake(config, started_at_s=started_at_s),
        collect_facts=lambda: collect_facts(config, sampler.gpus),
    )
    gpu_reader = GpuReader()

    def own_processes() -> Iterator[OwnProcess]:
        yield OwnProcess(pid=os.getpid(), role="agent", name="agent")
        if gpu_reader.pid is not None:
            yield OwnProcess(pid=gpu_reader.pid, role="agent", name="gpu_collector")
        yield from supervisor.own_processes()

    host_reader = HostReader(config.host, prefix=paths.prefix, own_processes=own_processes)
    sampler = Sampler(host_reader, gpu_reader, SampleHistory())
    control = build_app(supervisor, history=sampler.history, journal=journal)
    cluster = build_app(supervisor, history=sampler.history, journal=journal, only=CLUSTER_ROUTES)

    journal.append("AgentStarted", body={"pid": os.getpid(), "release": config.release})
    log.info("agent started", extra={"pid": os.getpid(), "host": config.host, "release": config.release})
    try:
        async with asyncio.TaskGroup() as group:
            ready = asyncio.Event()
            tasks = [group.create_task(sampler.run()), group.create_task(supervisor.run(ready.set))]
            # Nobody is answered before there is something to say: devices, and the children of a former agent.
            await sampler.has_sampled.wait()
            await ready.wait()
            tasks += [
                group.create_task(client.watch()),
                group.create_task(serve_control(control, paths.agent_socket)),
                group.create_task(
                    serve_cluster(cluster, config.cluster_address, config.cluster_port, tls, cluster=config.cluster)
                ),
            ]
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        await client.close()
        journal.append("AgentStopped", body={"pid": os.getpid()}, is_durable=True)
        journal.close()
        log.info("agent stopped", extra={"pid": os.getpid()})


def _first_of(group: ExceptionGroup[FleetError]) -> FleetError:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, FleetError)
    return first


def _fail(error: FleetError) -> int:
    """The reason goes to the log, and to stderr for whoever started us by hand."""
    if log.hasHandlers():
        log.error("agent cannot run", extra={"code": error.code, "reason": error.message, "hint": error.hint})
    sys.stderr.write(f"{error.code}: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
