"""Probe facts in, steps out: what is planned for a host in each state. No I/O."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odctl.bootstrap.fitness import Wanted, check_host, choose_python
from odctl.bootstrap.probe import Manifest, ProbeFacts
from odctl.bootstrap.steps import (
    Run,
    Upload,
    linger_step,
    plan_bootstrap,
    unit_name,
)
from odctl.bootstrap.uninstall import plan_uninstall
from tests.odctl.bootstrap.host_states import (
    BARE,
    BUNDLE,
    DAEMON,
    FRESH,
    PREFIX,
    SETTLED_WANTED,
    WANTED,
    changed,
    settled,
)

FRESH_STEPS = [
    "write the manifest",
    "make directories",
    "clear the place of the release",
    "make the place of the release",
    "unpack release new",
    "put the release in its place",
    "run it with /usr/bin/python3",
    "install the cluster's authority",
    "renew the certificate: there is none",
    "write the configuration",
    "point at the release",
    "switch to the release",
    "start the agent",
    "hear from the agent",
]


def names(facts: ProbeFacts, wanted: Wanted = WANTED) -> list[str]:
    return [step.name for step in plan_bootstrap(facts, wanted, daemon_script=DAEMON).steps]


def test_a_fresh_host_gets_everything_in_order() -> None:
    assert names(FRESH) == FRESH_STEPS


def test_a_settled_host_gets_nothing() -> None:
    assert names(settled(), SETTLED_WANTED) == []
    assert names(settled(unit=True), SETTLED_WANTED) == []


def test_every_step_says_when_it_is_unnecessary_and_gives_argv_lists() -> None:
    venv = changed(FRESH, pythons=(BARE,), has_user_bus=True)
    for facts in (FRESH, venv, settled(release="old"), settled(release="old", unit=True)):
        for step in plan_bootstrap(facts, WANTED, daemon_script=DAEMON).steps:
            assert step.unless
            assert step.timeout_s > 0
            actions = [step.action, *step.undo]
            for action in actions:
                if isinstance(action, Run):
                    assert all(isinstance(word, str) for word in action.argv)
                    assert action.argv[0] != "sh" or action.argv[1:3] == ("-s", "--")


def test_an_upgrade_can_be_undone_to_the_bytes_it_found() -> None:
    facts = settled(release="old")
    plan = plan_bootstrap(facts, SETTLED_WANTED, daemon_script=DAEMON)
    by_name = {step.name: step for step in plan.steps}
    assert by_name["write the configuration"].undo == (
        Upload(data=facts.config, target=f"{PREFIX}/etc/agent.json"),
    )
    link, rename = by_name["switch to the release"].undo
    assert isinstance(link, Run)
    assert "releases/old" in link.argv
    assert isinstance(rename, Run)
    assert rename.argv[:2] == ("mv", "-T")
    assert [step.name for step in plan.recover] == ["start the old agent", "hear from the agent"]


def test_nothing_is_started_again_where_nothing_ran() -> None:
    assert plan_bootstrap(FRESH, WANTED, daemon_script=DAEMON).recover == ()


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"ca": b"old"}, ["install the cluster's authority"]),
        ({"has_key": False}, ["renew the certificate: its key is gone"]),
        ({"interpreter": "/opt/py"}, ["run it with /usr/bin/python3"]),
        ({"configured_at_s": 102.0}, []),
        ({"is_keeper_running": False}, []),
        ({"handshake": None}, []),
    ],
)
def test_one_change_restarts_and_does_no_more(change: dict[str, object], steps: list[str]) -> None:
    expected = [*steps, "restart the agent", "hear from the agent"]
    assert names(changed(settled(), **change), SETTLED_WANTED) == expected


def test_an_old_certificate_is_renewed_and_the_agent_restarted() -> None:
    wanted = msgspec.structs.replace(WANTED, renew_leaf="a third of its life is over")
    assert names(settled(), wanted) == [
        "renew the certificate: a third of its life is over",
        "restart the agent",
        "hear from the agent",
    ]


def test_a_host_with_a_user_manager_gets_a_unit_and_is_not_degraded() -> None:
    plan = plan_bootstrap(changed(FRESH, has_user_bus=True), WANTED, daemon_script=DAEMON)
    steps = {step.name: step for step in plan.steps}
    assert not plan.config.is_degraded
    unit = steps["write the systemd unit"].action
    assert isinstance(unit, Upload)
    assert b"KillMode=process" in unit.data
    assert b"Restart=always" in unit.data
    start = steps["start the agent"].action
    assert isinstance(start, Run)
    assert start.argv == (
        "env",
        "XDG_RUNTIME_DIR=/run/user/1000",
        "systemctl",
        "--user",
        "restart",
        unit_name(PREFIX),
    )
    lingers = linger_step(changed(FRESH, has_user_bus=True))
    assert lingers is not None
    assert linger_step(FRESH) is None
    assert linger_step(changed(FRESH, has_user_bus=True, has_linger=True)) is None


def test_a_detached_agent_ends_before_a_unit_takes_over() -> None:
    facts = changed(settled(), has_user_bus=True)
    planned = names(facts, SETTLED_WANTED)
    assert planned.index("end the detached agent") == planned.index("restart the agent") - 1


def test_a_host_without_packages_gets_an_environment() -> None:
    facts = changed(FRESH, pythons=(BARE,))
    choice = choose_python(facts, WANTED)
    assert choice.path == f"{PREFIX}/{BUNDLE.venv}/bin/python"
    assert choice.venv_from == BARE.path
    plan = plan_bootstrap(facts, WANTED, daemon_script=DAEMON)
    steps = {step.name: step for step in plan.steps}
    install = steps["install requirements"].action
    assert isinstance(install, Run)
    assert install.argv[:4] == (choice.path, "-m", "pip", "install")
    assert install.argv[-1] == f"{PREFIX}/releases/new/requirements.txt"
    manifest = steps["write the manifest"].action
    assert isinstance(manifest, Upload)
    assert BUNDLE.venv in msgspec.json.decode(manifest.data, type=Manifest).paths


@given(
    old=st.lists(st.sampled_from(["new", "a", "b", "c", "d"]), unique=True, max_size=5),
    current=st.integers(min_value=0, max_value=4),
)
def test_pruning_keeps_the_new_release_and_the_one_before(old: list[str], current: int) -> None:
    running = old[current % len(old)] if old else ""
    facts = changed(settled(release=running or "gone"), releases=" ".join(old), current=running)
    removed = [
        path.rpartition("/")[2]
        for step in plan_bootstrap(facts, SETTLED_WANTED, daemon_script=DAEMON).steps
        if step.name.startswith("remove ") and isinstance(step.action, Run)
        for path in step.action.argv[3:]
    ]
    kept = {*old, "new"} - set(removed)
    assert "new" in kept
    assert not running or running in kept
    assert len(kept) <= 2


def test_uninstall_follows_the_manifest_and_removes_it_last() -> None:
    steps = plan_uninstall(settled(unit=True), daemon_script=DAEMON)
    assert [step.name for step in steps] == [
        "disable the unit",
        "stop agent, ranks and gateways",
        "remove files",
        "remove the manifest",
    ]
    assert plan_uninstall(FRESH, daemon_script=DAEMON) == ()


def test_a_lock_without_a_manifest_hinders_neither_bootstrap_nor_uninstall() -> None:
    """All that an operator leaves who was killed at the very first step."""
    facts = changed(FRESH, exists=True, entries="install.lock", lock_age_s=3600.0)
    check_host(facts, WANTED)
    assert names(facts) == FRESH_STEPS
    assert [step.name for step in plan_uninstall(facts, daemon_script=DAEMON)] == ["remove the lock"]


def test_a_manifest_cannot_reach_out_of_its_prefix() -> None:
    evil = msgspec.json.encode(Manifest(paths=("etc", "../../other", "/home", "..", "")))
    steps = plan_uninstall(changed(settled(), manifest=evil), daemon_script=DAEMON)
    remove = next(step.action for step in steps if step.name == "remove files")
    assert isinstance(remove, Run)
    assert remove.argv == ("rm", "-rf", "--", f"{PREFIX}/etc")
