from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FleetError
from odctl.commands.plan import hosts_and_devices
from odctl.inventory import parse_inventory

INVENTORY = """
[cluster]
name = "lab"

[hosts.gpu01]
labels = { rack = "a" }
[hosts.gpu02]
labels = { rack = "b" }
[hosts.gpu03]
labels = { rack = "b" }
"""


def test_a_pin_or_an_exclusion_is_a_host_selector_or_a_device() -> None:
    inventory = parse_inventory(INVENTORY, path=Path("inventory.toml"))
    assert hosts_and_devices(inventory, "") == ((), ())
    assert hosts_and_devices(inventory, "gpu01/cuda:1, rack=b") == (("gpu02", "gpu03"), ("gpu01/cuda:1",))
    with pytest.raises(FleetError, match="no host `gpu09`") as refused:
        hosts_and_devices(inventory, "gpu09/cuda:1")
    assert "gpu0" in refused.value.detail.hint
