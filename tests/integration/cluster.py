"""A lab cluster on this machine, driven as an operator drives it: through `odctl` processes.

Everything is real: agents, ranks and gateways are processes, kept by the keeper, killed here by pid.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from agent.facts.fault import Fault
from agent.supervisor.processes import ProcessRecord, process_state
from agent.wire.agent import AbortRequest, DeploymentRecord, DeploymentState, DeploymentStatus, Event, FaultReport
from odctl.bootstrap.run import script
from odctl.fleet.frames import FrameSplitter
from odctl.lab import Lab
from odctl.lab.lab import LabHost

T = TypeVar("T")

POLL_S = 0.05
COMMAND_TIMEOUT_S = 120.0
MSGPACK = "application/msgpack"
MODULES = (b"agent", b"agent.engine", b"agent.api")


class AgentSilent(Exception):
    """An agent gives no answer, or none that was wanted."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one `odctl` said and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """Of `--json`; a failure's is its error."""
        return json.loads(self.stdout)["data"]


class Cluster:
    """A bootstrapped lab. Deployments of the tests live on it one after another."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts: dict[str, LabHost] = {host.name: host for host in lab.hosts}

    # --- the operator -------------------------------------------------------------------------------

    def odctl(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Answer:
        """One verb to its end, whatever its exit code."""
        done = subprocess.run(self._argv(arguments), capture_output=True, text=True, timeout=timeout_s, check=False)
        return Answer(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def start_odctl(self, *arguments: str) -> subprocess.Popen[str]:
        """One verb, left running; stdout and stderr are to be read from its pipes."""
        return subprocess.Popen(
            self._argv(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def must(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """The data of a verb that has to work."""
        answer = self.odctl(*arguments, "--json", timeout_s=timeout_s)
        assert answer.exit_code == 0, f"odctl {' '.join(arguments)}: {answer}"
        return answer.data

    def plan(self, model: Path, target: Path, *options: str) -> Path:
        """A plan file of the cluster as it is."""
        self.must("plan", str(model), "-o", str(target), *options)
        return target

    def apply(self, plan: Path) -> Any:
        return self.must("apply", str(plan), "--yes")

    def bootstrap(self, *hosts: str) -> None:
        answer = self.odctl("bootstrap", ",".join(hosts) if hosts else "all")
        assert answer.exit_code == 0, answer

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "odctl", "-i", str(self.lab.inventory_path), *arguments]

    # --- what agents say ----------------------------------------------------------------------------

    def get(self, host: str, route: str, kind: type[T], *, timeout_s: float = 5.0) -> T:
        """Ask one agent over its unix socket. Raises AgentSilent when it does not answer."""
        return msgspec.msgpack.decode(self._ask(host, "GET", route, timeout_s=timeout_s), type=kind)

    def abort(self, host: str, deployment: str) -> None:
        request = AbortRequest(deployment=deployment, holder="the tests")
        self._ask(host, "POST", "/v1/abort", body=msgspec.msgpack.encode(request))

    def status(self, controller: str, deployment: str) -> DeploymentStatus:
        return self.get(controller, f"/v1/deployments/{deployment}", DeploymentStatus)

    def try_status(self, controller: str, deployment: str) -> DeploymentStatus | None:
        """None while the controller does not answer, or knows nothing of it."""
        try:
            return self.status(controller, deployment)
        except AgentSilent:
            return None

    def records(self, host: str) -> tuple[DeploymentRecord, ...]:
        return self.get(host, "/v1/deployments", tuple[DeploymentRecord, ...])

    def faults(self, host: str) -> tuple[Fault, ...]:
        return self.get(host, "/v1/faults", FaultReport).faults

    def events(self, host: str, *, after: int = 0) -> list[Event]:
        """The journal of one agent, oldest first."""
        frames = self._ask(host, "GET", f"/v1/events?after={after}&limit=10000")
        return [msgspec.msgpack.decode(body, type=Event) for body in FrameSplitter().feed(frames)]

    def diary(self) -> str:
        """All journals by time, for a failed test to show; silent agents are named."""
        events: list[Event] = []
        silent: list[str] = []
        for host in self.hosts:
            try:
                events += self.events(host)
            except AgentSilent as error:
                silent.append(str(error))
        events.sort(key=lambda event: event.at_s)
        lines = (
            f"{event.at_s:.2f} {event.host} {event.kind} generation {event.generation} {event.body[:300]}"
            for event in events
        )
        return "\n".join([*silent, *lines])

    def wait_serving(self, controller: str, deployment: str, *, timeout_s: float = 60.0) -> DeploymentStatus:
        return self.wait_state(controller, deployment, "serving", timeout_s=timeout_s)

    def wait_state(
        self, controller: str, deployment: str, state: DeploymentState, *, timeout_s: float = 60.0
    ) -> DeploymentStatus:
        def reached() -> DeploymentStatus | None:
            status = self.try_status(controller, deployment)
            return status if status is not None and status.state == state else None

        return until(reached, timeout_s=timeout_s, what=lambda: self.try_status(controller, deployment))

    def _ask(self, host: str, method: str, route: str, *, body: bytes = b"", timeout_s: float = 5.0) -> bytes:
        connection = _UnixConnection(str(self.hosts[host].prefix / "run" / "agent.sock"), timeout_s)
        with contextlib.closing(connection):
            try:
                connection.request(method, route, body, {"accept": MSGPACK, "content-type": MSGPACK})
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                raise AgentSilent(f"{host}: {error!r}") from error
        if response.status >= 400:
            raise AgentSilent(f"{host}: {response.status} {answer!r}")
        return answer

    # --- processes ----------------------------------------------------------------------------------

    def agent_pid(self, host: str) -> int:
        return until(
            lambda: next((each.agent_pid for each in self.lab.status().hosts if each.name == host), None),
            timeout_s=40.0,
            what=f"an agent of {host}",
        )

    def children(self, host: str, role: str, deployment: str = "") -> list[ProcessRecord]:
        """Ranks or gateways of a host as their records say, those that run."""
        found = []
        for path in sorted((self.hosts[host].prefix / "run").glob("*.process.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
            except FileNotFoundError:
                continue
            if record.role == role and deployment in ("", record.deployment) and is_running(record.pid):
                found.append(record)
        return found

    def rank(self, deployment: str, rank_id: str) -> ProcessRecord:
        return next(
            record for host in self.hosts for record in self.children(host, "rank", deployment)
            if record.rank_id == rank_id
        )  # fmt: skip

    def kill_agent(self, host: str) -> int:
        """SIGKILL; the keeper starts another one."""
        pid = self.agent_pid(host)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_agent(self, host: str, *, not_pid: int = 0, timeout_s: float = 60.0) -> int:
        """The pid of an agent that answers."""

        def answers() -> int | None:
            pid = next(each.agent_pid for each in self.lab.status().hosts if each.name == host)
            if pid is None or pid == not_pid:
                return None
            try:
                self.records(host)
            except AgentSilent:
                return None
            return pid

        return until(answers, timeout_s=timeout_s, what=f"the agent of {host}")

    def keeper_pid(self, host: str) -> int:
        return next(pid for pid, is_keeper in _processes_of(str(self.hosts[host].prefix)) if is_keeper)

    def restart_keeper(self, host: str) -> None:
        """A fresh keeper: the pause before it starts a dead agent again grows with each death in a minute."""
        self.daemon(host, "restart")
        self.wait_agent(host)

    def daemon(self, host: str, verb: str) -> None:
        """What bootstrap does with a detached agent: `stop`, `start`, `restart`."""
        subprocess.run(
            ["sh", "-s", "--", verb, str(self.hosts[host].prefix)],
            input=script("daemon.sh"),
            capture_output=True,
            timeout=60,
            check=True,
        )

    def kill_host(self, host: str) -> list[int]:
        """SIGKILL to all processes of a host at once, its keeper first: the machine loses its power."""
        prefix = str(self.hosts[host].prefix)
        pids = sorted(_processes_of(prefix), key=lambda each: not each[1])
        for pid, _ in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(is_running(pid) for pid, _ in pids), what=f"the end of {host}")
        return [pid for pid, _ in pids]


def _processes_of(prefix: str) -> Iterator[tuple[int, bool]]:
    """Pids of a prefix's keeper, agent, ranks and gateways, and whether each is the keeper."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        is_here = any(argument.decode(errors="replace").startswith(prefix) for argument in arguments)
        is_keeper = any(argument.endswith(b"/agent/keeper.sh") for argument in arguments)
        is_ours = is_keeper or (b"-m" in arguments and arguments[arguments.index(b"-m") + 1] in MODULES)
        if is_here and is_ours:
            yield int(path.parent.name), is_keeper


@contextmanager
def open_cluster(
    *, num_hosts: int = 3, memory_fraction: float | None = None, model_dirs: tuple[Path, ...] = ()
) -> Iterator[Cluster]:
    """A lab of its own with running agents; all of it is gone at the end, whatever happened."""
    name = f"i{secrets.token_hex(3)}"
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(name=name, num_hosts=num_hosts, model_dirs=model_dirs)
        patch.setenv("ODCTL_HOME", str(lab.directory / "operator"))
        patch.setenv("OMP_NUM_THREADS", "1")
        with lab:
            if memory_fraction is not None:
                set_memory_fraction(lab.inventory_path, memory_fraction)
            outcomes = lab.bootstrap()
            assert all(outcome.error is None for outcome in outcomes), outcomes
            yield Cluster(lab)


def set_memory_fraction(inventory: Path, fraction: float) -> None:
    lines = inventory.read_text().splitlines()
    changed = [f"memory_fraction = {fraction}" if line.startswith("memory_fraction") else line for line in lines]
    inventory.write_text("\n".join(changed) + "\n")


def until(
    condition: Callable[[], T | None], *, timeout_s: float = 15.0, what: object = "it", poll_s: float = POLL_S
) -> T:
    """The first true value of `condition`; fails after the limit with what was awaited (called, if it can be)."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what() if callable(what) else what}")
        time.sleep(poll_s)


def is_running(pid: int) -> bool:
    return process_state(pid) not in ("", "Z")


def free_listen(address: str = "127.0.0.1") -> str:
    with socket.create_server((address, 0)) as server:
        return f"{address}:{server.getsockname()[1]}"
