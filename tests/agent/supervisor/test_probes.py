"""Real measuring processes, with small sizes; what they do is tried in tests/agent/engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.facts.measured import hardware_hash
from agent.journal import Journal
from agent.supervisor import probes
from agent.supervisor.paths import HostPaths
from agent.supervisor.probes import Probes
from agent.wire.agent import AgentConfig
from agent.wire.probe import ProbeDevices, ProbeModel, ProbeSizes
from tests.agent.engine.test_model_probe import spec_of
from tests.agent.planner.clusters import cpu, host

FACTS = host("alpha", cpu(8))
TINY = ProbeSizes(
    copy_bytes=1 << 20,
    matrix_size=256,
    weights_bytes=1 << 20,
    large_rows=96,
    contexts=(64,),
    disk_bytes=4 << 20,
    span_s=0.002,
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite", host="alpha")
    yield journal
    journal.close()


def probes_of(tmp_path: Path, journal: Journal, *, serving: tuple[str, ...] = ()) -> Probes:
    config = AgentConfig(
        cluster="lab", host="alpha", prefix=str(tmp_path), cluster_address="127.0.0.1", cluster_port=1, threads=1
    )
    return Probes(config, HostPaths(tmp_path), journal, serving=lambda: serving)


async def test_figures_are_kept_for_the_hardware_that_they_are_of(tmp_path: Path, journal: Journal) -> None:
    tried = probes_of(tmp_path, journal)
    assert tried.record(FACTS).probe is None
    probe = await tried.measure_devices(ProbeDevices(sizes=TINY), FACTS)
    assert [each.device for each in probe.devices] == ["cpu"]
    assert probe.hardware == hardware_hash(FACTS)
    assert probe.disk_read_bytes_per_s is not None
    again = probes_of(tmp_path, journal)
    assert again.record(FACTS).probe == probe, "a restarted agent knows them"
    other = msgspec.structs.replace(FACTS, torch="another")
    assert again.record(other).probe is None
    assert again.record(FACTS).probe == probe


async def test_a_probe_beyond_its_limit_ends_itself_and_is_told_in_words(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "DEVICE_LIMIT_S", 1)
    tried = probes_of(tmp_path, journal)
    endless = msgspec.structs.replace(TINY, span_s=30.0)
    with pytest.raises(FleetError, match="the probe of cpu did not end within 1 s") as refused:
        await tried.measure_devices(ProbeDevices(sizes=endless), FACTS)
    assert (refused.value.code, refused.value.host) == ("E819", "alpha")
    assert tried.record(FACTS).probe is None


async def test_a_device_that_serves_is_refused_by_the_name_of_its_deployment(
    tmp_path: Path, journal: Journal
) -> None:
    tried = probes_of(tmp_path, journal, serving=("chat", "chat"))
    assert tried.record(FACTS).serving == ("chat",)
    with pytest.raises(FleetError, match="it serves deployment chat") as refused:
        await tried.measure_devices(ProbeDevices(sizes=TINY), FACTS)
    assert (refused.value.code, refused.value.host) == ("E501", "alpha")
    assert "--even-serving" in refused.value.hint
    probe = await tried.measure_devices(ProbeDevices(sizes=TINY, even_serving=True), FACTS)
    assert probe.devices


async def test_rehearsals_are_kept_beside_what_was_measured_before(tmp_path: Path, journal: Journal) -> None:
    tried = probes_of(tmp_path, journal)
    order = ProbeModel(model=spec_of("LlamaForCausalLM"), dtype="float32", prefill_chunk=48, sizes=TINY)
    with pytest.raises(FleetError, match="not measured yet"):
        await tried.measure_model(order, FACTS)
    before = await tried.measure_devices(ProbeDevices(sizes=TINY), FACTS)
    first = await tried.measure_model(order, FACTS)
    assert msgspec.structs.replace(first.devices[0], models=()) == before.devices[0]
    assert [model.parts for model in first.devices[0].models] == [1, 2]
    again = await tried.measure_model(order, FACTS)
    other = msgspec.structs.replace(order, dtype="bfloat16")
    both = await tried.measure_model(other, FACTS)
    assert [(model.dtype, model.parts) for model in both.devices[0].models] == [
        (dtype, parts) for dtype in ("float32", "bfloat16") for parts in (1, 2)
    ]
    assert both.devices[0].models[:2] == again.devices[0].models
    assert probes_of(tmp_path, journal).record(FACTS).probe == both
    with pytest.raises(FleetError, match="serves deployment chat"):
        await probes_of(tmp_path, journal, serving=("chat",)).measure_model(order, FACTS)
