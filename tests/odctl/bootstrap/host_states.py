"""Hosts as a probe would find them: fresh, and settled after a bootstrap."""

from __future__ import annotations

import msgspec

from agent.wire.agent import AgentConfig, Handshake
from odctl.bootstrap.bundle import Bundle, Requirement
from odctl.bootstrap.fitness import Wanted
from odctl.bootstrap.probe import Manifest, ProbeFacts, PythonFacts
from odctl.bootstrap.steps import unit_name, unit_text

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
SETTLED_WANTED = msgspec.structs.replace(WANTED, renew_leaf="")


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
