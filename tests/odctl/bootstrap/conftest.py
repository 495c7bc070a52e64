"""A short directory (unix sockets), one or more local hosts in it, and no process left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from odctl.bootstrap.bundle import Bundle
from odctl.bootstrap.run import HostOutcome, HostProgress, bootstrap_hosts, script
from odctl.bootstrap.uninstall import uninstall_hosts
from odctl.inventory import Inventory, load_inventory
from odctl.pki import open_authority
from odctl.ssh.connect import transport_for


class Site:
    """Local hosts `h1` … below one directory, and what an operator does with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.steps: dict[str, list[str]] = {}

    def prefix(self, name: str = "h1") -> Path:
        return self.directory / name / "p"

    def inventory(self, names: tuple[str, ...] = ("h1",), *, extra: dict[str, str] | None = None) -> Inventory:
        lines = ["[cluster]", 'name = "site"', "[defaults]", f'python = "{sys.executable}"']
        for index, name in enumerate(names):
            lines += [
                f"[hosts.{name}]",
                'transport = "local"',
                f'home = "{self.directory / name}"',
                f'cluster_address = "127.0.41.{index + 1}"',
                (extra or {}).get(name, f'prefix = "{self.prefix(name)}"'),
            ]
        path = self.directory / "inventory.toml"
        path.write_text("\n".join(lines) + "\n")
        return load_inventory(path)

    async def bootstrap(self, bundle: Bundle, inventory: Inventory | None = None) -> tuple[HostOutcome, ...]:
        inventory = inventory or self.inventory()
        self.steps.clear()
        return await bootstrap_hosts(
            inventory,
            inventory.hosts,
            bundle=bundle,
            authority=open_authority(inventory.cluster, directory=self.directory / "authorities"),
            transport_of=lambda name: transport_for(inventory, name),
            on_progress=self._note,
        )

    async def uninstall(self, inventory: Inventory | None = None) -> tuple[HostOutcome, ...]:
        inventory = inventory or self.inventory()
        return await uninstall_hosts(inventory.hosts, transport_of=lambda name: transport_for(inventory, name))

    def _note(self, progress: HostProgress) -> None:
        self.steps.setdefault(progress.host, []).append(progress.step)


@pytest.fixture
def site() -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="odctl-"))
    try:
        yield Site(directory)
    finally:
        stop_all(directory)
        shutil.rmtree(directory)


def stop_all(directory: Path) -> None:
    """End agents and keepers of every prefix below `directory`."""
    for prefix in [path.parent for path in directory.glob("*/*/manifest.json")]:
        subprocess.run(["sh", "-s", "--", "stop-all", prefix], input=script("daemon.sh"), check=True, timeout=60)


@pytest.fixture
def bundles(tmp_path: Path) -> Callable[[str], Bundle]:
    from tests.odctl.bootstrap.tiny_agent import tiny_bundle

    made: dict[str, Bundle] = {}

    def bundle_of(variant: str) -> Bundle:
        if variant not in made:
            made[variant] = tiny_bundle(tmp_path, variant)
        return made[variant]

    return bundle_of
