"""Labs come up, come up again, and leave nothing; their hosts bootstrap over real sshds."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import FleetError
from odctl.bootstrap.bundle import make_bundle
from odctl.bootstrap.uninstall import uninstall_hosts
from odctl.inventory import cluster_directory, load_inventory
from odctl.lab import Lab
from odctl.ssh.connect import transport_for
from tests.odctl.bootstrap.tiny_agent import tiny_bundle
from tests.odctl.processes import is_running

needs_sshd = pytest.mark.skipif(
    shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="there is no sshd here"
)


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ODCTL_HOME", str(tmp_path))
    return f"t{secrets.token_hex(3)}"


@pytest.fixture
def ssh_lab(name: str) -> Iterator[Lab]:
    with Lab(name=name, num_hosts=3, kind="ssh") as lab:
        yield lab


def test_the_inventory_shares_this_machine_and_nothing_else(name: str, tmp_path: Path) -> None:
    with Lab(name=name, num_hosts=2, model_dirs=[tmp_path]) as lab:
        inventory = load_inventory(lab.inventory_path)
        assert [host.name for host in inventory.hosts] == ["h1", "h2"]
        assert len({(host.cluster_address, host.cluster_port) for host in inventory.hosts}) == 2
        assert len({host.prefix for host in inventory.hosts}) == 2
        assert sum(host.limits.memory_fraction for host in inventory.hosts) <= 0.9
        assert all(host.limits.threads == max(1, (os.cpu_count() or 1) // 2) for host in inventory.hosts)
        assert all(host.python == sys.executable for host in inventory.hosts)
        assert all(host.model_dirs == (str(tmp_path),) for host in inventory.hosts)
        assert lab.directory.stat().st_mode & 0o777 == 0o700
    assert not lab.directory.exists()


def test_up_twice_is_up_once_and_another_shape_is_refused(name: str) -> None:
    with Lab(name=name, num_hosts=2) as lab:
        before = lab.inventory_path.read_text()
        Lab(name=name, num_hosts=2).up()
        assert lab.inventory_path.read_text() == before
        with pytest.raises(FleetError, match="holds a lab of 2 local hosts"):
            Lab(name=name, num_hosts=3).up()


def test_a_directory_of_someone_else_is_neither_used_nor_removed(name: str, tmp_path: Path) -> None:
    place = tmp_path / "taken"
    place.mkdir()
    (place / "thesis.tex").write_text("three years of work")
    lab = Lab(name=name, directory=place)
    with pytest.raises(FleetError, match="no lab of ours"):
        lab.up()
    lab.down()
    assert (place / "thesis.tex").exists()


def test_local_hosts_bootstrap_with_the_real_agent_and_down_ends_it(name: str) -> None:
    with Lab(name=name, num_hosts=2) as lab:
        bundle = make_bundle()
        assert {outcome.state for outcome in lab.bootstrap(bundle=bundle)} == {"changed"}
        assert {outcome.state for outcome in lab.bootstrap(bundle=bundle)} == {"unchanged"}
        pids = [host.agent_pid for host in lab.status().hosts]
        assert all(is_running(pid) for pid in pids)
        assert cluster_directory(lab.cluster).exists()
    assert not any(is_running(pid) for pid in pids)
    assert not cluster_directory(lab.cluster).exists()


@pytest.mark.ssh
@needs_sshd
def test_bootstrap_upgrade_rollback_and_uninstall_over_real_sshds(
    ssh_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. install the real agent  2. again: unchanged  3. a broken release is rolled back  4. uninstall is empty."""
    real = make_bundle()
    first = ssh_lab.bootstrap(bundle=real)
    assert [outcome.state for outcome in first] == ["changed"] * 3, first
    assert [outcome.state for outcome in ssh_lab.bootstrap(bundle=real)] == ["unchanged"] * 3
    monkeypatch.setattr("odctl.bootstrap.steps.HANDSHAKE_TIMEOUT_S", 3.0)
    broken = ssh_lab.bootstrap(bundle=tiny_bundle(tmp_path, "broken"))
    assert [outcome.error.code if outcome.error else "" for outcome in broken] == ["E302"] * 3
    assert all(outcome.is_undone for outcome in broken)
    monkeypatch.undo()
    monkeypatch.setenv("ODCTL_HOME", str(tmp_path))
    assert [outcome.state for outcome in ssh_lab.bootstrap(bundle=real)] == ["unchanged"] * 3
    pids = [host.agent_pid for host in ssh_lab.status().hosts]
    assert all(is_running(pid) for pid in pids)
    inventory = load_inventory(ssh_lab.inventory_path)
    removed = asyncio.run(
        uninstall_hosts(inventory.hosts, transport_of=lambda host: transport_for(inventory, host))
    )
    assert [outcome.state for outcome in removed] == ["changed"] * 3, removed
    assert not any(is_running(pid) for pid in pids)
    for host in ssh_lab.hosts:
        assert not host.prefix.exists()


@pytest.mark.ssh
@needs_sshd
def test_a_host_whose_sshd_is_gone_is_unreachable_and_comes_back_with_up(ssh_lab: Lab, tmp_path: Path) -> None:
    gone = ssh_lab.status().hosts[1]
    assert gone.sshd_pid is not None
    ssh_lab._sshd(ssh_lab.hosts[1]).stop()
    outcomes = ssh_lab.bootstrap(bundle=tiny_bundle(tmp_path))
    assert [outcome.state for outcome in outcomes] == ["changed", "failed", "changed"]
    assert outcomes[1].error is not None
    assert outcomes[1].error.code == "E201"
    ssh_lab.up()
    again = ssh_lab.bootstrap(bundle=tiny_bundle(tmp_path / "again"))
    assert [outcome.state for outcome in again] == ["unchanged", "changed", "unchanged"], again


@pytest.mark.ssh
@needs_sshd
def test_each_sshd_has_its_own_home_and_host_key_and_down_ends_it(name: str) -> None:
    with Lab(name=name, num_hosts=2, kind="ssh") as lab:
        homes = [_home_over_ssh(lab, index) for index in range(2)]
        assert homes == [host.home for host in lab.hosts]
        lines = (lab.directory / "known_hosts").read_text().splitlines()
        assert len({line.split()[2] for line in lines}) == 2
        pids = [host.sshd_pid for host in lab.status().hosts]
        assert all(is_running(pid) for pid in pids)
    assert not any(is_running(pid) for pid in pids)
    assert not lab.directory.exists()


def _home_over_ssh(lab: Lab, index: int) -> str:
    host = lab.hosts[index]
    known_hosts = f"UserKnownHostsFile={lab.directory}/known_hosts"
    options = ["-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", known_hosts]
    key = str(lab.directory / "client_key")
    argv = ["ssh", *options, "-i", key, "-p", str(host.ssh_port), host.address, "echo $HOME"]
    answer = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return answer.stdout.strip()
