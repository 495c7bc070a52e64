"""What is written is what is read, in any order, after a crash, and up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot, HostView
from odctl.fleet.history import History
from odctl.fleet.snapshot import DeploymentView
from odctl.recording import Recording, RecordingWriter, open_recording
from odctl.recording.change import DeploymentChange, FleetChange, HostChange
from odctl.recording.format import KEY_EVERY, MARK, Header, header_bytes
from odctl.recording.rows import NewRows, histories_of, rows_between, with_rows
from tests.odctl.recording.moving_fleet import START_S, moments

SECONDS = 100
"""Longer than three keys are apart, and than everything that happens to the moving fleet."""


def write(path: Path, snapshots: list[FleetSnapshot], *, max_bytes: int = 10**9) -> RecordingWriter:
    writer = RecordingWriter(path, cluster="lab", started_at_s=START_S, every_s=1.0, max_bytes=max_bytes)
    for snapshot in snapshots:
        if not writer.write(snapshot):
            break
    writer.close()
    return writer


@pytest.fixture(scope="module")
def snapshots() -> list[FleetSnapshot]:
    return moments(SECONDS)


@pytest.fixture
def path(tmp_path: Path, snapshots: list[FleetSnapshot]) -> Path:
    write(tmp_path / "lab.rec", snapshots)
    return tmp_path / "lab.rec"


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Recording]]:
    """Opens recordings; they are closed after the test."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(open_recording(path))


Opened = Callable[[Path], Recording]


def read_all(recording: Recording) -> list[FleetSnapshot]:
    return [recording.snapshot_at(at_s) for at_s in recording.times]


def test_every_moment_comes_back_as_it_was(path: Path, snapshots: list[FleetSnapshot], opened: Opened) -> None:
    recording = opened(path)
    assert recording.header.cluster == "lab"
    assert recording.times == tuple(snapshot.taken_at_s for snapshot in snapshots)
    assert recording.spare_bytes == 0
    for read, written in zip(read_all(recording), snapshots, strict=True):
        assert read == written


def test_moments_come_back_in_any_order(path: Path, snapshots: list[FleetSnapshot], opened: Opened) -> None:
    recording = opened(path)
    order = [*range(SECONDS - 1, -1, -7), *range(0, SECONDS, 11), 30, 29, 31, 0, SECONDS - 1]
    for index in order:
        read = recording.snapshot_at(snapshots[index].taken_at_s + 0.4)
        assert read == snapshots[index], index
    assert recording.snapshot_at(0.0) == snapshots[0]


def test_histories_are_those_of_the_live_fleet_and_kept_once(
    path: Path, snapshots: list[FleetSnapshot], opened: Opened
) -> None:
    recording = opened(path)
    last = recording.snapshot_at(recording.times[-1])
    for host in last.hosts:
        original = snapshots[-1].host(host.name)
        assert original is not None
        assert host.history.rows() == original.history.rows()
    steady = last.host("h02")
    assert steady is not None
    assert len(steady.history) == 70 + SECONDS
    fewer = write(path.with_name("one.rec"), snapshots[:1]).num_bytes
    assert path.stat().st_size < fewer * SECONDS / 4, "rows of the past are not in every frame"


def test_what_did_not_change_is_the_same_object(path: Path, opened: Opened) -> None:
    recording = opened(path)
    first, second = (recording.snapshot_at(recording.times[index]) for index in (1, 2))
    for before, after in zip(first.hosts, second.hosts, strict=True):
        assert after.facts is before.facts
        assert after.handshake is before.handshake
        assert after.sample is not before.sample
    statuses = [found.status for found in (*first.deployments, *second.deployments)]
    assert statuses[0] is not None
    assert statuses[1] is not None
    assert statuses[1].plan_toml is statuses[0].plan_toml, "a counter that went on does not repeat the plan"


@pytest.mark.parametrize(
    ("view", "change", "known_otherwise"),
    [
        (HostView, HostChange, {"history", "sample_age_s"}),
        (DeploymentView, DeploymentChange, {"history"}),
        (FleetSnapshot, FleetChange, {"taken_at_s", "hosts", "deployments"}),
    ],
)
def test_every_field_of_a_view_is_kept(
    view: type[msgspec.Struct], change: type[msgspec.Struct], known_otherwise: set[str]
) -> None:
    assert set(view.__struct_fields__) - set(change.__struct_fields__) == known_otherwise


def test_a_cut_off_file_is_good_up_to_its_last_whole_moment(
    path: Path, snapshots: list[FleetSnapshot], opened: Opened
) -> None:
    whole = path.read_bytes()
    for cut in (1, 7, 200, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        recording = opened(path)
        read = read_all(recording)
        assert 0 < len(read) < SECONDS
        assert read == snapshots[: len(read)]
        assert recording.spare_bytes >= 0
        recording.close()
    path.write_bytes(whole + b"\xff" * 500)
    recording = opened(path)
    assert (len(recording.times), recording.spare_bytes) == (SECONDS, 500)


def test_a_recording_may_be_read_while_it_is_written(
    tmp_path: Path, snapshots: list[FleetSnapshot], opened: Opened
) -> None:
    writer = RecordingWriter(
        tmp_path / "lab.rec", cluster="lab", started_at_s=START_S, every_s=1.0, max_bytes=10**9
    )
    for snapshot in snapshots[:3]:
        writer.write(snapshot)
    assert read_all(opened(writer.path)) == snapshots[:3]
    writer.close()
    assert not writer.write(snapshots[3]), "a closed recording takes no more"


def test_a_broken_moment_is_named_and_the_next_key_is_good(
    path: Path, snapshots: list[FleetSnapshot], opened: Opened
) -> None:
    recording = opened(path)
    frame = recording._frames[3]
    recording.close()
    data = bytearray(path.read_bytes())
    data[frame.offset + frame.rows_bytes + 5] ^= 0xFF
    path.write_bytes(data)
    recording = opened(path)
    assert recording.snapshot_at(recording.times[2]) == snapshots[2]
    with pytest.raises(FleetError, match="cannot be read") as caught:
        recording.snapshot_at(recording.times[3])
    assert caught.value.code == "E122"
    assert f"byte {frame.offset}" in caught.value.message
    assert recording.snapshot_at(recording.times[KEY_EVERY]) == snapshots[KEY_EVERY]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 something else altogether", "it begins with b'PK"),
        (MARK, "ends inside its header"),
        (MARK + b"\x00\x00\x00\x04\x00\x00", "ends inside its header"),
        (MARK + b"\x00\x00\x00\x02\xc1\xc1", "header is broken"),
        (
            header_bytes(Header(format=1, cluster="lab", started_at_s=1.0, every_s=1.0)),
            "no whole frame: nothing was recorded",
        ),
        (
            header_bytes(Header(format=9, cluster="lab", started_at_s=1.0, every_s=1.0, odctl="7.0")),
            "has format 9, written by odctl 7.0; this one reads 1",
        ),
    ],
)
def test_foreign_files_are_told_from_recordings(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(content)
    with pytest.raises(FleetError) as caught:
        open_recording(path)
    assert caught.value.code == "E121"
    assert str(path) in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="No such file") as caught:
        open_recording(tmp_path / "none.rec")
    assert (caught.value.code, caught.value.hint) == ("E101", "`odctl record FILE` writes one")
    with pytest.raises(FleetError, match="cannot read") as caught:
        open_recording(tmp_path)
    assert caught.value.code == "E101"


def test_a_file_that_is_there_is_kept_unless_forced(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FleetError, match="is there already") as caught:
        RecordingWriter(path, cluster="lab", started_at_s=0.0, every_s=1.0, max_bytes=1000)
    assert caught.value.code == "E119"
    assert path.read_bytes() == before
    RecordingWriter(path, cluster="lab", started_at_s=0.0, every_s=1.0, max_bytes=1000, is_forced=True).close()
    assert len(path.read_bytes()) < len(before)
    with pytest.raises(FleetError, match="cannot write") as caught:
        RecordingWriter(path / "below", cluster="lab", started_at_s=0.0, every_s=1.0, max_bytes=1000)
    assert caught.value.code == "E101"


def test_a_recording_never_outgrows_its_limit(
    tmp_path: Path, snapshots: list[FleetSnapshot], opened: Opened
) -> None:
    whole = write(tmp_path / "whole.rec", snapshots).num_bytes
    writer = write(tmp_path / "small.rec", snapshots, max_bytes=whole // 2)
    size = (tmp_path / "small.rec").stat().st_size
    assert size == writer.num_bytes <= whole // 2
    read = read_all(opened(tmp_path / "small.rec"))
    assert 0 < len(read) < SECONDS
    assert read == snapshots[: len(read)]


def test_a_full_disk_ends_the_recording_with_its_last_whole_moment(snapshots: list[FleetSnapshot]) -> None:
    with pytest.raises(FleetError, match="No space left") as caught:
        RecordingWriter(
            Path("/dev/full"), cluster="lab", started_at_s=0.0, every_s=1.0, max_bytes=10**9, is_forced=True
        )
    assert caught.value.code == "E101"


def test_moments_are_wanted_as_often_as_was_asked(
    tmp_path: Path, snapshots: list[FleetSnapshot], opened: Opened
) -> None:
    writer = RecordingWriter(tmp_path / "a.rec", cluster="lab", started_at_s=0.0, every_s=5.0, max_bytes=10**9)
    for snapshot in snapshots[:21]:
        if writer.wants(snapshot.taken_at_s):
            writer.write(snapshot)
    writer.close()
    assert opened(writer.path).times == tuple(snapshot.taken_at_s for snapshot in snapshots[:21:5])


def test_rows_put_together_at_once_are_those_of_one_after_the_other(snapshots: list[FleetSnapshot]) -> None:
    parts: list[NewRows] = []
    grown = histories_of([])
    before = None
    for snapshot in snapshots:
        parts.append(rows_between(before, snapshot))
        grown = with_rows(grown, parts[-1])
        before = snapshot
    assert histories_of(parts) == grown
    assert grown.hosts["h02"] == snapshots[-1].hosts[1].history


def test_a_history_knows_what_it_gained() -> None:
    rows = [host.history for host in (snapshot.hosts[2] for snapshot in moments(70))]
    assert rows[69].since(rows[0]) == rows[69].rows()[-69:]
    assert rows[0].since(rows[69]) is None, "it did not grow out of a longer one"
    assert rows[5].since(History()) == rows[5].rows()
    assert rows[5].since(rows[5]) == ()
    assert History.of(rows[69].rows()) == rows[69]
