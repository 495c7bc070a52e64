from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version

import msgspec
import psutil
import pytest

import agent
from agent.facts.sample import Lost, Ok, Reading, Stale
from agent.telemetry.facts import collect_facts, make_handshake, read_boot_id
from agent.telemetry.gpu_reply import GpuReply
from agent.wire.agent import PROTOCOL_VERSION, AgentConfig
from tests.agent.telemetry.test_host import gpu

CONFIG = AgentConfig(
    cluster="lab",
    host="alpha",
    prefix="/tmp",
    cluster_address="10.0.0.1",
    cluster_port=7400,
    labels={"rack": "a"},
    memory_fraction=0.25,
    release="abc",
)
NO_GPU = GpuReply(unavailable="no driver")


def gpus(*memory: Reading, whole: tuple[str, ...] | None = None) -> GpuReply:
    devices = tuple(
        msgspec.structs.replace(gpu(), id=f"cuda:{index}", memory_total_bytes=reading)
        for index, reading in enumerate(memory)
    )
    return GpuReply(devices=devices, driver="550.1", whole=whole or tuple(device.id for device in devices))


def test_the_host_says_what_it_is() -> None:
    facts = collect_facts(CONFIG, NO_GPU)
    total = psutil.virtual_memory().total
    (cpu,) = facts.devices
    assert (cpu.id, cpu.kind, cpu.memory_bytes, cpu.usable_bytes) == ("cpu", "cpu", total, total // 4)
    assert cpu.read_bytes_per_s is None
    assert cpu.flops_per_s is None
    assert (facts.name, facts.cluster_address, facts.cluster_port) == ("alpha", "10.0.0.1", 7400)
    assert (facts.labels, facts.release, facts.agent_version) == ({"rack": "a"}, "abc", agent.__version__)
    assert (facts.kernel, facts.arch, facts.python) == (
        platform.release(),
        platform.machine(),
        platform.python_version(),
    )
    assert facts.torch == version("torch")
    assert facts.gpu_unavailable == "no driver"
    assert facts.boot_id == read_boot_id() != ""
    assert facts.disk_free_bytes > 0


def test_threads_of_the_config_are_the_cores_of_the_cpu() -> None:
    (cpu,) = collect_facts(msgspec.structs.replace(CONFIG, threads=1), NO_GPU).devices
    assert cpu.cores == 1


def test_gpus_are_listed_with_what_we_may_use() -> None:
    facts = collect_facts(CONFIG, gpus(Ok(24e9), Stale(80e9, 3.0)))
    assert [(device.id, device.memory_bytes, device.usable_bytes) for device in facts.devices[1:]] == [
        ("cuda:0", 24_000_000_000, 6_000_000_000),
        ("cuda:1", 80_000_000_000, 20_000_000_000),
    ]
    assert (facts.driver, facts.gpu_unavailable) == ("550.1", "")


def test_a_lost_gpu_is_no_device_to_plan_with() -> None:
    facts = collect_facts(CONFIG, gpus(Lost("GPU is lost"), Ok(24e9)))
    assert [device.id for device in facts.devices] == ["cpu", "cuda:1"]


def test_a_gpu_split_by_mig_is_left_out_and_said_so() -> None:
    facts = collect_facts(CONFIG, gpus(Ok(24e9), Ok(24e9), whole=("cuda:1",)))
    assert [device.id for device in facts.devices] == ["cpu", "cuda:1"]
    assert facts.gpu_unavailable == "cuda:0: MIG is on"


@pytest.mark.parametrize(("allowed", "listed"), [(("cuda:1",), ["cuda:1"]), ((), ["cpu", "cuda:0", "cuda:1"])])
def test_only_the_devices_of_the_inventory_are_listed(allowed: tuple[str, ...], listed: list[str]) -> None:
    config = msgspec.structs.replace(CONFIG, devices=allowed)
    assert [device.id for device in collect_facts(config, gpus(Ok(1e9), Ok(1e9))).devices] == listed


def test_the_handshake_names_release_and_protocol() -> None:
    handshake = make_handshake(CONFIG, started_at_s=5.0)
    assert (handshake.host, handshake.cluster, handshake.release) == ("alpha", "lab", "abc")
    assert (handshake.protocol, handshake.started_at_s) == (PROTOCOL_VERSION, 5.0)


def test_torch_is_never_imported_by_the_daemon() -> None:
    code = "import sys, agent.__main__, agent.api.metrics; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
