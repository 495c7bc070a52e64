"""Hosts that will do, and those that will not, with the reason. No I/O."""

from __future__ import annotations

import msgspec
import pytest

from agent.errors import FleetError
from odctl.bootstrap.fitness import MAX_PREFIX_BYTES, check_host, choose_python, host_warnings
from tests.odctl.bootstrap.host_states import (
    BARE,
    BUNDLE,
    FRESH,
    PREFIX,
    READY,
    WANTED,
    changed,
    settled,
)


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
