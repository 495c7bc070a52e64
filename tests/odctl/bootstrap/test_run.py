"""Bootstrap and uninstall of local hosts, with real processes: what changes, what does not, what is undone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from odctl.bootstrap.bundle import Bundle, Requirement, make_bundle
from odctl.bootstrap.report import exit_code_for, outcome_result
from odctl.bootstrap.run import HostOutcome
from odctl.result import ExitCode, render
from tests.odctl.bootstrap.conftest import Site
from tests.odctl.processes import is_running

Bundles = Callable[[str], Bundle]


def tree(prefix: Path) -> dict[str, str]:
    """Every path with what it holds; sockets, pids, logs and journals change by themselves and are left out."""
    return {
        str(path.relative_to(prefix)): str(path.readlink())
        if path.is_symlink()
        else path.read_text(errors="replace")
        for path in prefix.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.parent.name not in ("run", "log", "__pycache__", "var")
    }


def agent_pid(prefix: Path) -> int:
    return int((prefix / "run" / "agent.pid").read_text())


def wait_until(condition: Callable[[], bool], *, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def only(outcomes: tuple[HostOutcome, ...]) -> HostOutcome:
    (outcome,) = outcomes
    return outcome


async def test_the_second_bootstrap_changes_nothing(site: Site, bundles: Bundles) -> None:
    bundle = bundles("one")
    first = only(await site.bootstrap(bundle))
    assert first.state == "changed", first.error
    assert first.is_degraded
    prefix = site.prefix()
    assert str((prefix / "current").readlink()) == f"releases/{bundle.release}"
    assert (prefix / "run").stat().st_mode & 0o777 == 0o700
    assert (prefix / "etc" / "tls" / "host.key").stat().st_mode & 0o777 == 0o600
    before, pid = tree(prefix), agent_pid(prefix)
    second = only(await site.bootstrap(bundle))
    assert second.state == "unchanged"
    assert second.changes == ()
    assert tree(prefix) == before
    assert agent_pid(prefix) == pid


async def test_the_real_agent_answers_and_uninstall_leaves_nothing(site: Site) -> None:
    inventory = site.inventory(extra={"h1": f'prefix = "{site.prefix()}"\ncluster_port = 18433'})
    bundle = make_bundle()
    assert only(await site.bootstrap(bundle, inventory)).state == "changed"
    assert only(await site.bootstrap(bundle, inventory)).state == "unchanged"
    pid = agent_pid(site.prefix())
    assert only(await site.uninstall(inventory)).state == "changed"
    assert not is_running(pid)
    assert not site.prefix().exists()
    assert only(await site.uninstall(inventory)).state == "unchanged"


async def test_a_changed_configuration_alone_restarts_the_agent(site: Site, bundles: Bundles) -> None:
    bundle = bundles("one")
    await site.bootstrap(bundle)
    pid = agent_pid(site.prefix())
    inventory = site.inventory(extra={"h1": f'prefix = "{site.prefix()}"\nlabels = {{ rack = "b" }}'})
    outcome = only(await site.bootstrap(bundle, inventory))
    assert outcome.changes == ("write the configuration", "restart the agent", "hear from the agent")
    assert json.loads((site.prefix() / "etc" / "agent.json").read_text())["labels"] == {"rack": "b"}
    assert agent_pid(site.prefix()) != pid


async def test_a_lost_certificate_alone_is_renewed(site: Site, bundles: Bundles) -> None:
    bundle = bundles("one")
    await site.bootstrap(bundle)
    (site.prefix() / "etc" / "tls" / "host.pem").unlink()
    outcome = only(await site.bootstrap(bundle))
    assert outcome.changes == (
        "renew the certificate: there is none",
        "restart the agent",
        "hear from the agent",
    )


async def test_an_interrupted_operator_is_taken_up_where_it_stood(site: Site, bundles: Bundles) -> None:
    """The config was written and the agent not restarted: the file's time betrays it."""
    bundle = bundles("one")
    await site.bootstrap(bundle)
    pid = agent_pid(site.prefix())
    (site.prefix() / "etc" / "agent.json").touch()
    outcome = only(await site.bootstrap(bundle))
    assert outcome.changes == ("restart the agent", "hear from the agent")
    assert agent_pid(site.prefix()) != pid


async def test_the_keeper_starts_a_killed_agent_again(site: Site, bundles: Bundles) -> None:
    await site.bootstrap(bundles("one"))
    pid = agent_pid(site.prefix())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _other_agent(site.prefix(), pid))


def start_rank(prefix: Path) -> subprocess.Popen[bytes]:
    """A process with a rank's command line, which waits to be ended."""
    (prefix / "current" / "agent" / "engine.py").write_text("import signal\n\nsignal.pause()\n")
    return subprocess.Popen(
        [sys.executable, "-m", "agent.engine", prefix / "run" / "r0.config.json"],
        env={"PYTHONPATH": str(prefix / "current")},
        cwd=prefix,
        start_new_session=True,
    )


async def test_ranks_outlive_an_upgrade_and_a_rollback(
    site: Site, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odctl.bootstrap.steps.HANDSHAKE_TIMEOUT_S", 2.0)
    await site.bootstrap(bundles("one"))
    rank = start_rank(site.prefix())
    assert only(await site.bootstrap(bundles("two"))).state == "changed"
    assert only(await site.bootstrap(bundles("broken"))).state == "failed"
    assert rank.poll() is None
    await site.uninstall()
    assert rank.wait(timeout=10) == -signal.SIGTERM


async def test_an_interrupted_upgrade_is_put_back(site: Site, bundles: Bundles) -> None:
    await site.bootstrap(bundles("one"))
    before = tree(site.prefix())
    async with asyncio.TaskGroup() as group:
        upgrade = group.create_task(site.bootstrap(bundles("broken")))
        await asyncio.to_thread(wait_until, lambda: "hear from the agent" in site.steps.get("h1", ()))
        upgrade.cancel()
    assert upgrade.cancelled()
    assert tree(site.prefix()) == before
    assert is_running(agent_pid(site.prefix()))
    assert not (site.prefix() / "install.lock").exists()


@pytest.mark.slow
async def test_missing_packages_are_installed_into_an_environment(
    site: Site, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real venv and a real pip; the one wheel of its index lends it this interpreter's packages.

    1. no such wheel: everything is undone  2. with it: installed  3. again: unchanged.
    """
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    requirement = Requirement(name="odctl-lent-packages", conditions=((">=", "1.0"),))
    bundles("one")
    bundle = make_bundle(tmp_path / "one" / "agent", requirements=(requirement,))
    failed = only(await site.bootstrap(bundle))
    assert failed.failed_step == "install requirements"
    assert failed.error is not None
    assert "odctl-lent-packages" in failed.error.message
    assert "python =" in failed.error.hint
    assert not site.prefix().exists()
    write_lending_wheel(wheels)
    assert only(await site.bootstrap(bundle)).state == "changed"
    interpreter = (site.prefix() / "current" / "interpreter").read_text().strip()
    assert interpreter == f"{site.prefix()}/{bundle.venv}/bin/python"
    assert only(await site.bootstrap(bundle)).state == "unchanged"
    assert only(await site.uninstall()).state == "changed"
    assert not site.prefix().exists()


def write_lending_wheel(wheels: Path) -> None:
    """A wheel that holds one .pth file, which names the directory of this interpreter's packages."""
    packages = Path(msgspec.__file__).parent.parent
    info = "odctl_lent_packages-1.0.dist-info"
    with zipfile.ZipFile(wheels / "odctl_lent_packages-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("odctl_lent_packages.pth", f"{packages}\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: odctl-lent-packages\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _other_agent(prefix: Path, pid: int) -> bool:
    try:
        other = agent_pid(prefix)
    except (FileNotFoundError, ValueError):
        return False
    return other != pid and is_running(other)


async def test_a_stopped_agent_is_started_by_the_next_bootstrap(site: Site, bundles: Bundles) -> None:
    bundle = bundles("one")
    await site.bootstrap(bundle)
    os.kill(int((site.prefix() / "run" / "keeper.pid").read_text()), signal.SIGTERM)
    wait_until(lambda: not (site.prefix() / "run" / "keeper.pid").exists())
    outcome = only(await site.bootstrap(bundle))
    assert outcome.changes == ("start the agent", "hear from the agent")


async def test_an_upgrade_keeps_two_releases(site: Site, bundles: Bundles) -> None:
    for variant in ("one", "two", "three"):
        assert only(await site.bootstrap(bundles(variant))).state == "changed"
    kept = {path.name for path in (site.prefix() / "releases").iterdir()}
    assert kept == {bundles("two").release, bundles("three").release}
    assert str((site.prefix() / "current").readlink()) == f"releases/{bundles('three').release}"


async def test_an_upgrade_to_a_broken_release_is_rolled_back(
    site: Site, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odctl.bootstrap.steps.HANDSHAKE_TIMEOUT_S", 2.0)
    await site.bootstrap(bundles("one"))
    before = tree(site.prefix())
    outcome = only(await site.bootstrap(bundles("broken")))
    assert outcome.error is not None
    assert outcome.error.code == "E302"
    assert outcome.failed_step == "hear from the agent"
    assert f"rolled back to release {bundles('one').release}" in outcome.error.message
    assert "broken on purpose" in outcome.error.hint
    assert outcome.is_undone
    assert tree(site.prefix()) == before
    assert is_running(agent_pid(site.prefix()))
    assert only(await site.bootstrap(bundles("one"))).state == "unchanged"


async def test_a_broken_first_install_leaves_nothing(
    site: Site, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odctl.bootstrap.steps.HANDSHAKE_TIMEOUT_S", 2.0)
    outcome = only(await site.bootstrap(bundles("broken")))
    assert outcome.error is not None
    assert outcome.error.message.endswith("nothing was left behind")
    assert not site.prefix().exists()


async def test_a_failing_host_stops_no_other_and_is_named_with_the_way_out(site: Site, bundles: Bundles) -> None:
    long_prefix = f"{site.directory}/h2/{'x' * 80}"
    inventory = site.inventory(("h1", "h2", "h3"), extra={"h2": f'prefix = "{long_prefix}"'})
    outcomes = await site.bootstrap(bundles("one"), inventory)
    assert [outcome.state for outcome in outcomes] == ["changed", "failed", "changed"]
    result = outcome_result("bootstrap", outcomes, done_word="updated")
    assert result.exit_code is ExitCode.PARTIAL
    text = render(result, as_json=False)
    row = next(line for line in text.splitlines() if line.startswith("h2"))
    assert "failed" in row
    assert "E303 at: probe" in row
    assert f"is {len(long_prefix)} bytes long" in text
    assert "shorter `prefix`" in text
    assert json.loads(render(result, as_json=True))["data"][1]["error"]["code"] == "E303"


def test_only_unreachable_hosts_make_exit_4() -> None:
    from agent.errors import ErrorDetail

    def failed(code: str) -> HostOutcome:
        return HostOutcome(host="h", state="failed", error=ErrorDetail(code=code, message="m"))

    well = HostOutcome(host="h", state="changed")
    assert exit_code_for([well]) is ExitCode.OK
    assert exit_code_for([well, failed("E201")]) is ExitCode.UNREACHABLE
    assert exit_code_for([failed("E201"), failed("E301")]) is ExitCode.PARTIAL


async def test_two_operators_do_not_bootstrap_one_host_at_once(site: Site, bundles: Bundles) -> None:
    bundle = bundles("one")
    await site.bootstrap(bundle)
    lock = site.prefix() / "install.lock"
    lock.mkdir()
    (site.prefix() / "etc" / "agent.json").touch()
    outcome = only(await site.bootstrap(bundle))
    assert outcome.error is not None
    assert outcome.error.code == "E501"
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    assert only(await site.bootstrap(bundle)).state == "changed"
    assert not lock.exists()


async def test_a_prefix_of_another_cluster_is_not_taken_over(site: Site, bundles: Bundles) -> None:
    await site.bootstrap(bundles("one"))
    inventory = site.inventory()
    other = (site.directory / "inventory.toml").read_text().replace('"site"', '"elsewhere"')
    (site.directory / "other.toml").write_text(other)
    from odctl.inventory import load_inventory

    outcome = only(await site.bootstrap(bundles("two"), load_inventory(site.directory / "other.toml")))
    assert outcome.error is not None
    assert "belongs to host h1 of cluster site" in outcome.error.message
    assert only(await site.bootstrap(bundles("one"), inventory)).state == "unchanged"


async def test_uninstall_ends_ranks_and_gateways_of_its_prefix_only(site: Site, bundles: Bundles) -> None:
    """Two processes that look like ranks, one below this prefix: the other must live."""
    inventory = site.inventory(("h1", "h2"))
    await site.bootstrap(bundles("one"), inventory)
    ranks = []
    for name in ("h1", "h2"):
        ranks.append(start_rank(site.prefix(name)))
    (first,) = await site.uninstall(site.inventory(("h1",)))
    assert first.state == "changed", first.error
    assert ranks[0].wait(timeout=10) == -signal.SIGTERM
    assert ranks[1].poll() is None
    assert is_running(agent_pid(site.prefix("h2")))
    await site.uninstall(site.inventory(("h2",)))
    assert ranks[1].wait(timeout=10) == -signal.SIGTERM
    assert not site.prefix("h2").exists()


async def test_uninstall_fails_where_something_is_left(site: Site, bundles: Bundles) -> None:
    await site.bootstrap(bundles("one"))
    (site.prefix() / "diary.txt").write_text("not odctl's")
    outcome = only(await site.uninstall())
    assert outcome.error is not None
    assert outcome.error.code == "E304"
    assert "diary.txt" in outcome.error.message
    assert [path.name for path in site.prefix().iterdir()] == ["diary.txt"]
    assert exit_code_for([outcome]) is ExitCode.PARTIAL


async def test_files_that_are_not_ours_are_neither_used_nor_removed(site: Site, bundles: Bundles) -> None:
    var = site.prefix() / "var"
    var.mkdir(parents=True)
    (var / "precious").write_text("keep")
    bootstrapped = only(await site.bootstrap(bundles("one")))
    assert bootstrapped.error is not None
    assert "not ours: var" in bootstrapped.error.message
    removed = only(await site.uninstall())
    assert removed.error is not None
    assert removed.error.code == "E304"
    assert (var / "precious").read_text() == "keep"


@pytest.fixture
def small_disk(site: Site) -> Iterator[Callable[[str], Path]]:
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = site.prefix()
        place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "odctl-test", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
async def test_a_full_disk_is_told_before_anything_is_done(
    site: Site, bundles: Bundles, small_disk: Callable[[str], Path]
) -> None:
    place = small_disk("size=4m")
    outcome = only(await site.bootstrap(bundles("one")))
    assert outcome.error is not None
    assert outcome.error.code == "E303"
    assert "4 MiB are free" in outcome.error.message
    assert list(place.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
async def test_a_disk_that_fills_up_midway_leaves_nothing_half_done(
    site: Site, bundles: Bundles, small_disk: Callable[[str], Path]
) -> None:
    place = small_disk("size=200m,nr_inodes=15")
    outcome = only(await site.bootstrap(bundles("one")))
    assert outcome.error is not None
    assert outcome.error.code == "E301"
    assert "No space left on device" in outcome.error.message
    assert outcome.is_undone
    assert list(place.iterdir()) == []
