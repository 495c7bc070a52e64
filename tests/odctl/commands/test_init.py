"""`odctl init` writes an inventory that loads, and touches nothing that is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from odctl.cli import main
from odctl.inventory import load_inventory, split_address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def odctl(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


def test_host_forms_become_hosts_that_load(folder: Path) -> None:
    arguments = ["gpu01", "ml@10.0.0.2:2222", "cpu=10.0.0.9", "six=me@[fe80::1]:22"]
    result = odctl(
        *arguments, "--user", "u", "--port", "2200", "--identity", "~/.ssh/k", "--jump", "b1", "--jump", "b2"
    )
    assert result.exit_code == 0, result.output
    loaded = load_inventory(folder / "inventory.toml")
    assert [(host.name, host.user, host.ssh, host.port) for host in loaded.hosts] == [
        ("10.0.0.2", "ml", "10.0.0.2", 2222),
        ("cpu", "u", "10.0.0.9", 2200),
        ("gpu01", "u", "gpu01", 2200),
        ("six", "me", "fe80::1", 22),
    ]
    assert {host.jump for host in loaded.hosts} == {("b1", "b2")}
    assert loaded.host("cpu").identity == Path.home() / ".ssh/k"
    assert "next: odctl bootstrap" in result.stdout


def test_an_existing_file_is_only_overwritten_by_force(folder: Path) -> None:
    assert odctl("gpu01").exit_code == 0
    before = (folder / "inventory.toml").read_text()
    refused = odctl("gpu02")
    assert (refused.exit_code, refused.stderr.startswith("error[E109]: inventory.toml exists")) == (3, True)
    assert (folder / "inventory.toml").read_text() == before
    assert odctl("gpu02", "--force").exit_code == 0
    assert [host.name for host in load_inventory("inventory.toml").hosts] == ["gpu02"]
    assert odctl("gpu03", "-o", "other.toml").exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["inventory.toml", "other.toml"]


def test_ssh_config_gives_its_named_hosts_and_their_addresses(folder: Path) -> None:
    (folder / "config").write_text(
        f"""Include {folder}/more_*
Host *.lab !x
  User nobody
host gpu01 "gpu02"   # both
  HostName 10.0.0.1%h
Host=web
Match host gpu01
  Port 23
"""
    )
    (folder / "more_a").write_text("Host gpu03\n  HostName 10.0.0.3\n")
    result = odctl("--from-ssh-config", "gpu*", "--ssh-config", "config", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["kind"], answer["data"]["cluster"]) == ("inventory", "lab")
    loaded = load_inventory("inventory.toml")
    assert [(host.name, host.cluster_address) for host in loaded.hosts] == [
        ("gpu01", "10.0.0.1gpu01"),
        ("gpu02", "10.0.0.1gpu02"),
        ("gpu03", "10.0.0.3"),
    ]
    assert loaded.ssh_config == (folder / "config",)
    everything = odctl("-o", "all.toml", "--ssh-config", "config", "--from-ssh-config")
    assert everything.exit_code == 0, everything.output
    assert [host.name for host in load_inventory("all.toml").hosts] == ["gpu01", "gpu02", "gpu03", "web"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no hosts to write"),
        (["a", "a"], "these hosts come twice: a"),
        (["a@b@c"], "`a@b@c` is not [user@]address[:port]"),
        (["bad name"], 'the string "bad name" is not a name'),
        (["a", "--cluster", "No Good"], 'the string "No Good" is not a name'),
        (["a=10.0.0.1", "b=10.0.0.1"], "`b` and `a` have the same cluster address"),
        (["--from-ssh-config", "gpu*", "--ssh-config", "missing"], "there is no missing"),
    ],
)
def test_bad_usage_writes_nothing(folder: Path, arguments: list[str], said: str) -> None:
    result = odctl(*arguments)
    assert result.exit_code == 3
    assert said in result.stderr
    assert list(folder.iterdir()) == []


def test_a_pattern_without_hosts_says_what_there_is(folder: Path) -> None:
    (folder / "config").write_text("Host gpu01 gpu02\n")
    result = odctl("--from-ssh-config", "cpu*", "--ssh-config", "config")
    assert "it names: gpu01, gpu02" in result.stderr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gpu01", (None, "gpu01", None)),
        ("me@gpu01:22", ("me", "gpu01", 22)),
        ("ssh://me@gpu01:22", ("me", "gpu01", 22)),
        ("fe80::1", (None, "fe80::1", None)),
        ("[fe80::1]:2222", (None, "fe80::1", 2222)),
    ],
)
def test_addresses_are_taken_apart(text: str, parts: tuple[str | None, str, int | None]) -> None:
    assert split_address(text) == parts


def test_listing_the_verbs_imports_nothing_heavy() -> None:
    script = """
import sys
from click.testing import CliRunner
import odctl.__main__
from odctl.cli import main
result = CliRunner().invoke(main, ["--help"])
assert result.exit_code == 0 and "bootstrap" in result.output, result.output
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "textual", "asyncssh", "paramiko"}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
