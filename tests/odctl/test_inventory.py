"""An inventory file becomes resolved hosts, or names everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.documents import DocumentError
from agent.errors import FleetError
from odctl.inventory import Host, Inventory, cluster_directory, load_inventory, parse_inventory, select

EXAMPLE = Path(__file__).parents[2] / "inventory.example.toml"

RACKS = """
[cluster]
name = "lab"
[defaults]
user = "ubuntu"
identity = "~/.ssh/lab"
jump = ["bastion"]
memory_fraction = 0.7
[hosts.bastion]
ssh = "203.0.113.7"
[hosts.gpu01]
cluster_address = "10.0.0.1"
labels = { rack = "a", gpu = "4090" }
[hosts.gpu02]
cluster_address = "10.0.0.2"
labels = { rack = "a", gpu = "3090" }
user = "ml"
jump = []
[hosts.gpu02.limits]
memory_fraction = 0.5
[hosts.cpu01]
transport = "local"
home = "~/lab/cpu01"
labels = { rack = "b" }
[groups.a]
match = "rack=a"
[groups.fast]
match = "rack=a, gpu=4090"
[groups.pair]
hosts = ["cpu01", "gpu01"]
"""


def inventory(text: str = RACKS) -> Inventory:
    return parse_inventory(text, path=Path("inventory.toml"))


def problems_of(text: str) -> list[tuple[str, int, str]]:
    with pytest.raises(DocumentError) as caught:
        inventory(text)
    return [(problem.code, problem.span.line, problem.message) for problem in caught.value.problems]


def test_the_example_shows_every_field_and_is_right() -> None:
    from odctl import inventory as module

    loaded = load_inventory(EXAMPLE)
    text = EXAMPLE.read_text()
    sections = (module._Cluster, module._Defaults, module._Host, module._Limits, module._Group)
    for section in sections:
        missing = [field for field in section.__struct_fields__ if f"\n{field} = " not in text]
        assert not missing or missing == ["limits"], section
    assert [host.name for host in select(loaded, "group:a")] == ["gpu01", "gpu02"]
    assert loaded.host("gpu01").limits.devices == ("cuda:0", "cuda:1")


def test_a_network_is_trusted_only_where_that_is_said() -> None:
    text = '[cluster]\nname = "lab"\n{}\n[hosts.a]\nssh = "a"\n'
    assert not parse_inventory(text.format(""), path=EXAMPLE).trusted_network
    assert parse_inventory(text.format("trusted_network = true"), path=EXAMPLE).trusted_network


def test_defaults_reach_the_hosts_that_say_nothing() -> None:
    loaded = inventory()
    gpu01, gpu02 = loaded.host("gpu01"), loaded.host("gpu02")
    assert (gpu01.user, gpu02.user) == ("ubuntu", "ml")
    assert gpu01.identity == Path.home() / ".ssh" / "lab"
    assert (gpu01.ssh, gpu01.jump, gpu02.jump) == ("gpu01", ("bastion",), ())
    assert (gpu01.limits.memory_fraction, gpu02.limits.memory_fraction) == (0.7, 0.5)
    assert loaded.host("bastion").jump is None, "a bastion does not go through itself"
    assert loaded.host("bastion").cluster_address == "203.0.113.7"


def test_operator_side_paths_lose_their_tilde_and_host_side_paths_keep_it() -> None:
    host = inventory().host("cpu01")
    assert host.home == Path.home() / "lab" / "cpu01"
    assert host.prefix == "~/.local/share/odctl"
    assert host.cluster_address == "127.0.0.1"


def test_operator_state_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert cluster_directory("lab") == tmp_path / "odctl" / "clusters" / "lab"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert inventory().directory == Path.home() / ".local/share/odctl/clusters/lab"


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("all", "bastion cpu01 gpu01 gpu02"),
        ("gpu02,cpu01", "cpu01 gpu02"),
        ("gpu*", "gpu01 gpu02"),
        ("group:a", "gpu01 gpu02"),
        ("group:fast", "gpu01"),
        ("group:pair , gpu02", "cpu01 gpu01 gpu02"),
        ("rack=b", "cpu01"),
        ("rack = b, gpu=4090", "cpu01 gpu01"),
    ],
)
def test_a_selector_picks_hosts(selector: str, names: str) -> None:
    chosen: tuple[Host, ...] = select(inventory(), selector)
    assert " ".join(host.name for host in chosen) == names


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("gpu1", "did you mean `gpu01`?"),
        ("group:pare", "did you mean `pair`?"),
        ("gpu=4080", "did you mean `gpu=4090`?"),
        ("pair", "the group is `group:pair`"),
        ("zzz", "hosts: bastion, cpu01, gpu01, gpu02"),
        (" , ", "`all`, a name, `group:a` or `label=value`"),
    ],
)
def test_a_selector_that_matches_nothing_says_what_was_probably_meant(selector: str, hint: str) -> None:
    with pytest.raises(FleetError) as caught:
        select(inventory(), selector)
    assert (caught.value.code, caught.value.hint) == ("E108", hint)


def test_everything_wrong_is_told_at_once() -> None:
    text = """version = 1
[cluster]
name = "Lab!"
[defaults]
host_keys = "off"
[hosts.a]
cluster_adress = "10.0.0.1"
[hosts.b]
cluster_address = "10.0.0.9"
[hosts.c]
cluster_address = "10.0.0.9"
[hosts."bad name"]
host_key = "SHA256:short"
[hosts.d]
transport = "local"
jump = ["b"]
[groups.x]
hosts = ["aa", "b"]
[groups.y]
[groups.z]
match = "rack"
"""
    found = problems_of(text)
    assert [(code, line) for code, line, _ in found] == [
        ("E106", 3),
        ("E106", 5),
        ("E104", 7),
        ("E107", 11),
        ("E106", 12),
        ("E106", 13),
        ("E107", 16),
        ("E107", 18),
        ("E107", 19),
        ("E106", 21),
    ]
    assert found[3][2] == "`c` and `b` have the same cluster address 10.0.0.9:7433"


def test_a_cluster_without_a_name_is_told_with_the_rest() -> None:
    text = "[hosts.a]\nprot = 1\n"
    assert [(code, line) for code, line, _ in problems_of(text)] == [("E103", 1), ("E104", 2)]


def test_jump_circles_are_found_once() -> None:
    text = """[cluster]
name = "lab"
[hosts.a]
jump = ["b"]
[hosts.b]
jump = ["elsewhere", "c"]
[hosts.c]
jump = ["a"]
"""
    assert problems_of(text) == [("E107", 4, "`a` is reached through itself: a -> b -> c -> a")]


def test_jumps_must_be_hosts_or_addresses_and_reached_by_ssh() -> None:
    text = """[cluster]
name = "lab"
[hosts.a]
jump = ["me@b@c"]
[hosts.b]
jump = ["here", "me@10.0.0.1:22", "[fe80::1]:22"]
[hosts.here]
transport = "local"
"""
    assert [(code, line) for code, line, _ in problems_of(text)] == [("E106", 4), ("E107", 6)]


def test_two_local_hosts_need_two_ports() -> None:
    text = '[cluster]\nname = "lab"\n[hosts.a]\ntransport = "local"\n[hosts.b]\ntransport = "local"\n'
    ((code, line, message),) = problems_of(text)
    assert (code, line, message) == ("E107", 5, "`b` and `a` have the same cluster address 127.0.0.1:7433")
    apart = inventory(text + "cluster_port = 7434\n")
    assert [host.cluster_port for host in apart.hosts] == [7433, 7434]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="there is no") as caught:
        load_inventory(tmp_path / "inventory.toml")
    assert caught.value.code == "E101"
    assert "odctl init" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_empty_or_binary_file_is_a_bad_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "inventory.toml"
    path.write_bytes(content)
    with pytest.raises(FleetError) as caught:
        load_inventory(path)
    assert caught.value.code == "E101"
