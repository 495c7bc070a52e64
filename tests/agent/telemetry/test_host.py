from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil

from agent.facts.sample import DeviceProcess, DeviceSample, NotAvailable, Ok
from agent.telemetry.cpu import CpuReader, cpu_name, num_cores
from agent.telemetry.host import HostReader, OwnProcess

NA = NotAvailable("not sampled")


def reader(tmp_path: Path, *own: OwnProcess) -> HostReader:
    return HostReader("alpha", prefix=tmp_path, own_processes=lambda: own)


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def gpu(*processes: DeviceProcess) -> DeviceSample:
    return DeviceSample(
        id="cuda:0",
        kind="cuda",
        name="GPU",
        utilisation=NA,
        memory_used_bytes=NA,
        memory_total_bytes=NA,
        temperature_c=NA,
        power_w=NA,
        power_limit_w=NA,
        sm_clock_hz=NA,
        memory_clock_hz=NA,
        processes=processes,
    )


def test_a_sample_agrees_with_the_kernel(tmp_path: Path) -> None:
    sample = reader(tmp_path).read()
    memory = psutil.virtual_memory()
    assert sample.host == "alpha"
    assert abs(sample.taken_at_s - time.time()) < 5
    assert sample.memory_total_bytes == memory.total
    assert 0 < sample.memory_used_bytes < memory.total
    assert abs(sample.uptime_s - float(Path("/proc/uptime").read_text().split()[0])) < 5
    assert {nic.name for nic in sample.nics} == {
        path.name for path in Path("/sys/class/net").iterdir() if path.is_dir()
    }
    cpu = sample.devices[0]
    assert (cpu.id, cpu.kind, cpu.memory_total_bytes) == ("cpu", "cpu", Ok(float(memory.total)))
    assert cpu.utilisation == Ok(sample.cpu)


def test_the_disk_of_the_prefix_is_always_there(tmp_path: Path) -> None:
    sample = reader(tmp_path).read()
    space = os.statvfs(tmp_path)
    assert space.f_blocks * space.f_frsize in {disk.total_bytes for disk in sample.disks}
    assert all(0 <= disk.free_bytes <= disk.total_bytes for disk in sample.disks)
    assert len({disk.mount for disk in sample.disks}) == len(sample.disks)


def test_a_busy_core_is_seen() -> None:
    cpu = CpuReader()
    cpu.read_busy()
    burn(0.4)
    busy = cpu.read_busy()
    # One of n cores was busy for the whole time; others may have been as well.
    assert 0.7 / len(os.sched_getaffinity(0)) < busy <= 1


def test_bytes_over_loopback_are_counted_per_second(tmp_path: Path) -> None:
    host = reader(tmp_path)
    host.read()
    began = time.monotonic()
    num_bytes = 0
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        with connection:
            while time.monotonic() - began < 0.2:
                client.sendall(bytes(65536))
                received = 0
                while received < 65536:
                    received += len(connection.recv(65536))
                num_bytes += 65536
    sample = host.read()
    span_s = time.monotonic() - began
    loopback = next(nic for nic in sample.nics if nic.name == "lo")
    assert loopback.is_up
    assert loopback.sent_bytes_per_s > 0.5 * num_bytes / span_s
    assert loopback.received_bytes_per_s > 0.5 * num_bytes / span_s


def test_own_processes_are_measured_and_dead_ones_left_out(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=burn, args=(60.0,))
    child.start()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    try:
        assert child.pid is not None
        host = reader(
            tmp_path,
            OwnProcess(pid=os.getpid(), role="agent", name="agent"),
            OwnProcess(pid=child.pid, role="rank", name="chat-1-r0s0t0", deployment="chat", rank_id="r0s0t0"),
            OwnProcess(pid=gone.pid, role="gateway", name="gateway"),
        )
        deadline = time.monotonic() + 10
        host.read()
        while True:
            burn(0.1)
            sample = host.read()
            assert [process.role for process in sample.processes] == ["agent", "rank"]
            if sample.processes[1].cpu > 0.2:
                break
            assert time.monotonic() < deadline, sample.processes
        agent, rank = sample.processes
        assert agent.rss_bytes > 10_000_000
        assert agent.num_fds > 2
        assert agent.num_threads >= 1
        assert rank.name == "chat-1-r0s0t0"
    finally:
        child.kill()
        child.join()


def test_our_ranks_are_named_among_a_gpus_processes(tmp_path: Path) -> None:
    ours = DeviceProcess(pid=os.getpid(), user="u", command="c", memory_bytes=Ok(1.0))
    foreign = msgspec.structs.replace(ours, pid=1)
    host = reader(tmp_path, OwnProcess(pid=os.getpid(), role="rank", name="x", deployment="chat", rank_id="r0s0t0"))
    _, device = host.read((gpu(ours, foreign),)).devices
    assert [(process.deployment, process.rank_id) for process in device.processes] == [("chat", "r0s0t0"), ("", "")]


def test_the_cpu_has_a_name_and_cores() -> None:
    assert cpu_name()
    assert 1 <= num_cores() <= len(os.sched_getaffinity(0))
