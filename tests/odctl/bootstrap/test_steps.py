"""Probe facts in, steps out: what is planned for a host in each state. No I/O."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.wire.agent import AgentConfig, Handshake
from odctl.bootstrap.bundle import Bundle, Requirement
from odctl.bootstrap.probe import Manifest, ProbeFacts, PythonFacts
from odctl.bootstrap.steps import (
    MAX_PREFIX_BYTES,
    Run,
    Upload,
    Wanted,
    check_host,
    choose_python,
    host_warnings,
    linger_step,
    plan_bootstrap,
    unit_name,
    unit_text,
)
from odctl.bootstrap.uninstall import plan_uninstall

DAEMON = b"# daemon.sh"
PREFIX = "/home/u/.local/share/odctl"
CONFIG = AgentConfig(cluster="c", host="h", prefix="", cluster_address="10.0.0.1", cluster_port=7433)
BUNDLE = Bundle(
    release="new",
    archive=b"tar",
    unpacked_bytes=1 << 20,
    requirements=(
        Requirement(name="msgspec", conditions=((">=", "0.19"),)),
        Requirement(name="torch", conditions=(("==", "2.13.0"),)),
    ),
)
WANTED = Wanted(config=CONFIG, bundle=BUNDLE, ca=b"ca", renew_leaf="there is none")
READY = PythonFacts(
    path="/usr/bin/python3",
    version="3.11.2",
    has_venv=True,
    packages={"torch": "2.13.0+cu130", "msgspec": "0.20"},
)
BARE = PythonFacts(path="/usr/bin/python3", version="3.12.1", has_venv=True, packages={})
FRESH = ProbeFacts(
    now_s=0.0,
    os="Debian",
    arch="x86_64",
    kernel="6",
    libc="glibc 2.36",
    uid=1000,
    user="u",
    boot_id="b",
    prefix=PREFIX,
    memlock_kib=-1,
    has_gpu=False,
    missing_tools="",
    exists=False,
    disk_free_bytes=100 << 30,
    filesystem="ext2/ext3",
    is_writable=True,
    is_noexec=False,
    has_user_bus=False,
    runtime_directory="/run/user/1000",
    has_linger=False,
    pythons=(READY,),
    current="",
    interpreter="",
    releases="",
    entries="",
    lock_age_s=-1,
    manifest=b"",
    config=b"",
    ca=b"",
    leaf=b"",
    unit=b"",
    has_key=False,
    configured_at_s=-1,
    has_socket=False,
    is_agent_running=False,
    is_keeper_running=False,
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


def changed(facts: ProbeFacts, **changes: object) -> ProbeFacts:
    return msgspec.structs.replace(facts, **changes)


def settled(*, release: str = "new", unit: bool = False) -> ProbeFacts:
    """A host on which a bootstrap of `release` has ended well."""
    config = msgspec.structs.replace(CONFIG, prefix=PREFIX, release=release, is_degraded=not unit)
    names = ("current", "current.new", "releases", "etc", "var", "run", "install.lock", "manifest.json")
    manifest = Manifest(paths=names, unit=unit_name(PREFIX) if unit else "")
    return changed(
        FRESH,
        exists=True,
        current=release,
        interpreter=READY.path,
        releases=release,
        entries="current releases etc var run manifest.json",
        manifest=msgspec.json.encode(manifest),
        config=msgspec.json.encode(config),
        ca=b"ca",
        leaf=b"leaf",
        unit=unit_text(config) if unit else b"",
        has_key=True,
        configured_at_s=100.0,
        has_socket=True,
        is_agent_running=True,
        is_keeper_running=not unit,
        has_user_bus=unit,
        has_linger=unit,
        handshake=Handshake(
            host="h",
            cluster="c",
            release=release,
            protocol=1,
            pid=1,
            boot_id="b",
            started_at_s=101.0,
            is_degraded=not unit,
        ),
    )


def names(facts: ProbeFacts, wanted: Wanted = WANTED) -> list[str]:
    return [step.name for step in plan_bootstrap(facts, wanted, daemon_script=DAEMON).steps]


SETTLED_WANTED = msgspec.structs.replace(WANTED, renew_leaf="")


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


def test_a_finished_environment_is_used_as_it_is() -> None:
    venv = msgspec.structs.replace(READY, path=f"{PREFIX}/{BUNDLE.venv}/bin/python")
    assert choose_python(changed(FRESH, pythons=(venv, BARE)), WANTED).venv_from == ""


def test_a_wrong_torch_is_named_with_what_is_there() -> None:
    stale = msgspec.structs.replace(READY, has_venv=False, packages={"torch": "2.4.1", "msgspec": "0.20"})
    with pytest.raises(FleetError, match=r"torch==2.13.0 \(has 2.4.1\)") as caught:
        choose_python(changed(FRESH, pythons=(stale,)), WANTED)
    assert "python =" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": "/" + "x" * MAX_PREFIX_BYTES}, f"is {MAX_PREFIX_BYTES + 1} bytes long"),
        ({"prefix": "/home/my home/odctl"}, "not a plain absolute path"),
        ({"prefix": "/home/../etc/odctl"}, "not a plain absolute path"),
        ({"is_writable": False}, "may not write"),
        ({"filesystem": "nfs"}, "network file system"),
        ({"disk_free_bytes": 10 << 20}, "10 MiB are free"),
        ({"pythons": (BARE,), "disk_free_bytes": 1 << 30}, "1024 MiB are free"),
        ({"pythons": (BARE,), "is_noexec": True}, "mounted noexec"),
        ({"missing_tools": "tar"}, "lacks tar"),
        ({"clock_skew_s": -400.0}, "-400 s off"),
        ({"pythons": ()}, "there is none"),
        ({"pythons": (msgspec.structs.replace(READY, version="3.9.2"),)}, "is 3.9.2"),
        ({"entries": "notes.txt var"}, "not ours: var"),
    ],
)
def test_a_host_that_will_not_do_is_refused_with_its_reason(change: dict[str, object], message: str) -> None:
    with pytest.raises(FleetError) as caught:
        check_host(changed(FRESH, **change), WANTED)
    assert caught.value.code == "E303"
    assert message in caught.value.message
    assert caught.value.hint


def test_everything_in_the_way_is_told_at_once() -> None:
    with pytest.raises(FleetError) as caught:
        check_host(changed(FRESH, missing_tools="tar", clock_skew_s=999.0, is_writable=False), WANTED)
    for part in ("may not write", "lacks tar", "+999 s off"):
        assert part in caught.value.message


def test_the_longest_prefix_still_leaves_room_for_sockets() -> None:
    check_host(changed(FRESH, prefix="/" + "x" * (MAX_PREFIX_BYTES - 1)), WANTED)
    longest = "/" + "x" * (MAX_PREFIX_BYTES - 1) + "/run/0123456789.sock"
    assert len(longest) <= 100


def test_a_fit_host_passes_and_is_warned_about() -> None:
    check_host(FRESH, WANTED)
    check_host(settled(), WANTED)
    warned = host_warnings(changed(FRESH, has_gpu=True, memlock_kib=8192, clock_skew_s=30.0))
    assert len(warned) == 3
    assert host_warnings(changed(FRESH, has_user_bus=True)) == []


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
