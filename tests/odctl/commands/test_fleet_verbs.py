"""hosts, devices, metrics, status --watch, record and replay: options, errors, and what they import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.errors import FleetError
from odctl.cli import main
from odctl.commands.options import bytes_of, seconds_of
from odctl.recording import RecordingWriter
from tests.odctl.recording.moving_fleet import START_S, moments

INVENTORY = '[cluster]\nname = "lab"\n\n[hosts.one]\ntransport = "local"\n'


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    path = tmp_path / "inventory.toml"
    path.write_text(INVENTORY)
    return str(path)


def odctl(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("1s", 1.0), ("500ms", 0.5), ("10m", 600.0), ("2h", 7200.0), ("1.5 min", 90.0)],
)
def test_spans_of_time_are_read(text: str, seconds: float) -> None:
    assert seconds_of("--for", text) == seconds


@pytest.mark.parametrize(("text", "size"), [("1GB", 10**9), ("200mb", 2 * 10**8), ("4096", 4096), ("1.5k", 1500)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert bytes_of("--max-size", text) == size


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "0m", "3 parsecs", "1h30m"])
def test_what_is_no_span_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(FleetError) as caught:
        seconds_of("--for", text)
    assert (caught.value.code, caught.value.hint) == ("E109", "write 30s, 10m or 2h")
    assert repr(text) in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("record", "FILE", "--for", "soon"), "--for 'soon'"),
        (("record", "FILE", "--every", "0"), "--every '0'"),
        (("record", "FILE", "--max-size", "big"), "--max-size 'big'"),
        (("record", "FILE", "--hosts", "two"), "two"),
        (("hosts", "--watch", "--every", "often"), "--every 'often'"),
        (("devices", "two"), "two"),
        (("status", "--watch", "--every", "often"), "--every 'often'"),
        (("replay", "none.rec"), "none.rec"),
        (("replay", "none.rec", "--info"), "none.rec"),
    ],
)
def test_bad_usage_ends_with_3_and_says_what(
    arguments: tuple[str, ...], said: str, inventory: str, tmp_path: Path
) -> None:
    target = tmp_path / "new.rec"
    done = odctl("-i", inventory, *[str(target) if part == "FILE" else part for part in arguments])
    assert done.exit_code == 3, done.output
    assert said in done.stderr
    assert not target.exists(), "nothing is half done"


def test_what_a_recording_holds_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lab.rec"
    writer = RecordingWriter(path, cluster="lab", started_at_s=START_S, every_s=1.0, max_bytes=10**9)
    for snapshot in moments(35):
        writer.write(snapshot)
    writer.close()
    with path.open("ab") as file:
        file.write(b"\x00\x00")
    done = odctl("replay", str(path), "--info", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["kind"]) == ("1.0", "recording-info")
    data = answer["data"]
    assert (data["cluster"], data["num_moments"], data["spare_bytes"]) == ("lab", 35, 2)
    assert (data["hosts"], data["deployments"], data["num_faults"]) == (["h00", "h01", "h02", "h03"], ["chat"], 1)
    assert data["last_at_s"] - data["first_at_s"] == 34.0
    prose = odctl("replay", str(path), "--info").stdout
    assert "35 moments over 34 s" in prose
    assert "2 bytes at the end are no whole moment" in prose


def test_a_foreign_file_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 100)
    done = odctl("replay", str(path))
    assert done.exit_code == 3
    assert "error[E122]" in done.stderr
    assert "`odctl record FILE` writes one" in done.stderr


def test_help_of_these_verbs_imports_nothing_heavy() -> None:
    script = """
import sys
from click.testing import CliRunner
from odctl.cli import main
heavy = {"textual", "asyncssh", "httpx", "numpy", "rich", "torch"}
for verb in ("--help", "hosts", "devices", "metrics", "status", "record", "replay"):
    result = CliRunner().invoke(main, [verb] if verb == "--help" else [verb, "--help"])
    assert result.exit_code == 0, result.output
    print(verb, sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert all(line.endswith("[]") for line in lines), lines


def test_scripted_verbs_show_without_textual() -> None:
    """What they print is made by the screens' pure rooms alone."""
    script = """
import sys
import odctl.commands.fleet_tables, odctl.viewing, odctl.tui.model.records, odctl.tui.model.metric_rows
print("textual" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
