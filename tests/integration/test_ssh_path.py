"""The main job over SSH as a lab admin does it: init, bootstrap, plan, apply, run, status, destroy, uninstall; then
every prefix is gone, and no process of ours is left.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from odctl.demo_model import DemoChoices, write_demo_model
from odctl.lab import Lab
from odctl.lab.lab import LabHost

pytestmark = pytest.mark.ssh


def odctl(*arguments: str, inventory: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "odctl", "-i", str(inventory), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=170,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"odctl {' '.join(arguments)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_whole_job_over_ssh_leaves_nothing_behind(tmp_path: Path) -> None:
    model = tmp_path / "speaker"
    write_demo_model(model, DemoChoices(layers=4, hidden=128, vocab=512, steps=3))
    with Lab(name="sshpath", num_hosts=3, kind="ssh") as lab:
        inventory = _init(lab, tmp_path)
        assert "updated" in odctl("bootstrap", inventory=inventory, cwd=tmp_path)
        assert "unchanged" in odctl("bootstrap", inventory=inventory, cwd=tmp_path)
        odctl(
            "plan", str(model), "--strategy", "hybrid", "--tensor", "1,2", "--context", "128",
            "--listen", f"127.0.0.1:{_free_port()}", inventory=inventory, cwd=tmp_path,
        )  # fmt: skip
        odctl("apply", "plan.toml", "--yes", inventory=inventory, cwd=tmp_path)

        answer = json.loads(
            odctl(
                "run",
                "speaker",
                "--raw",
                "--max-tokens",
                "12",
                "--temperature",
                "0",
                "--json",
                "A class",
                inventory=inventory,
                cwd=tmp_path,
            )
        )["data"]
        assert answer["eval_count"] == 12
        assert answer["text"].strip()

        (deployment,) = json.loads(odctl("status", "--json", inventory=inventory, cwd=tmp_path))["data"][
            "deployments"
        ]
        assert deployment["status"]["state"] == "serving"
        assert {rank["host"] for rank in deployment["status"]["ranks"]} == {"h1", "h2", "h3"}
        assert all(rank["status"]["state"] == "linked" for rank in deployment["status"]["ranks"])

        odctl("destroy", "speaker", "--yes", inventory=inventory, cwd=tmp_path)
        odctl("uninstall", "--yes", inventory=inventory, cwd=tmp_path)
        for host in lab.hosts:
            left = [str(path) for path in Path(host.home).rglob("*") if ".ssh" not in path.parts]
            assert [path for path in left if "odctl" in path] == []
        assert _processes_of(lab.hosts) == []


def _init(lab: Lab, directory: Path) -> Path:
    """An inventory by `odctl init`, with what only this lab needs (key, known hosts, interpreter) added by hand."""
    inventory = directory / "inventory.toml"
    made = lab.inventory_path.read_text()
    names = [
        f"{host.name}={_value(made, host.name, 'user')}@{host.address}:{_value(made, host.name, 'port')}"
        for host in lab.hosts
    ]
    odctl("init", *names, "--cluster", lab.cluster, "-o", str(inventory), inventory=inventory, cwd=directory)
    text = inventory.read_text()
    defaults = made[made.index("[defaults]") : made.index("[hosts.")]
    for host in lab.hosts:
        header = f"[hosts.{host.name}]\n"
        assert header in text, text
        text = text.replace(header, f'{header}prefix = "{host.prefix}"\n')
    head, _, hosts = text.partition("[hosts.")
    head = head.split("[defaults]")[0]
    inventory.write_text(f"{head}{defaults}\n[hosts.{hosts}")
    return inventory


def _value(inventory: str, host: str, key: str) -> str:
    import tomllib

    data = tomllib.loads(inventory)
    value = data["hosts"][host].get(key, data["defaults"].get(key))
    return str(value) if value is not None else os.environ.get("USER", "root")


def _processes_of(hosts: tuple[LabHost, ...]) -> list[str]:
    """Command lines of processes that name a host's prefix, whoever started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [command for host in hosts if str(host.prefix) in command]
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
