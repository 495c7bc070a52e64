"""`odctl replay FILE`: the terminal UI over a recording. It stands beside the app that it opens."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odctl.result import ExitCode, Result, run_command
from odctl.tui.options import UI_OPTIONS, UiOptions

if TYPE_CHECKING:
    from odctl.recording import Recording
    from odctl.tui.app import OdctlApp
    from odctl.tui.model.keymap import Keymap


@click.command("replay")
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--at", "at", metavar="TIME", default="", help="Begin at 14:02:31 (UTC), +5m or 50%.")
@click.option("--play", "plays", is_flag=True, help="Begin moving; space pauses.")
@click.option("--info", "only_info", is_flag=True, help="Say what FILE holds, and open no UI.")
@click.option("--json", "as_json", is_flag=True, help="What FILE holds, as JSON.")
@click.pass_context
def command(  # noqa: PLR0917 - click calls it by name
    ctx: click.Context, /, path: Path, at: str, plays: bool, only_info: bool, as_json: bool
) -> None:
    """Open the terminal UI over what `odctl record` kept.

    Space plays, comma and full stop step, g goes to a time. Nothing can be changed.
    """
    if only_info or as_json:
        run_command(lambda: info(path), as_json=as_json)
    else:
        options = ctx.meta.get(UI_OPTIONS, UiOptions())
        run_command(lambda: replay(path, at=at, plays=plays, options=options), as_json=False)


def info(path: Path) -> Result:
    """What a recording holds. Raises FleetError E101, E122 or E124."""
    from agent.planner.words import bytes_words
    from odctl.recording import open_recording
    from odctl.tui.model.units import plural, seconds_text

    with open_recording(path) as recording:
        first, last = recording.snapshot_at(recording.times[0]), recording.snapshot_at(recording.times[-1])
    data: dict[str, Any] = {
        "path": str(path),
        "cluster": recording.header.cluster,
        "odctl": recording.header.odctl,
        "every_s": recording.header.every_s,
        "num_moments": len(recording.times),
        "first_at_s": recording.times[0],
        "last_at_s": recording.times[-1],
        "size_bytes": recording.num_bytes,
        "spare_bytes": recording.spare_bytes,
        "hosts": [host.name for host in last.hosts],
        "deployments": [view.name for view in last.deployments],
        "num_faults": len(last.faults),
    }
    span_s = recording.times[-1] - recording.times[0]
    span = seconds_text(span_s) if span_s >= 1 else "0 s"
    lines = [
        f"{path}: {recording.header.cluster}, {plural(len(last.hosts), 'host')}, "
        f"{plural(len(last.deployments), 'deployment')}, {plural(len(last.faults), 'fault')}",
        f"  {plural(len(recording.times), 'moment')} over {span}, "
        f"from {_moment(first.taken_at_s)} to {_moment(last.taken_at_s)}, {bytes_words(recording.num_bytes)}",
    ]
    if recording.spare_bytes:
        lines.append(f"  {recording.spare_bytes:,} bytes at the end are no whole moment: its writer was cut off")
    return Result(kind="recording-info", data=data, prose="\n".join(lines))


def replay(path: Path, *, at: str, plays: bool, options: UiOptions) -> Result:
    """Open the UI until it is left. Raises FleetError E101 or E122, E109 for a time or a theme that is none."""
    from agent.errors import FleetError
    from odctl.recording import open_recording
    from odctl.tui.responsive import answer_keys_first, collect_rarely

    collect_rarely()
    from odctl.tui.app_looks import check_theme, user_keymap
    from odctl.tui.model.playback import TIME_FORMS, TimeError

    check_theme(options.theme)
    recording = open_recording(path)
    app = replay_app(recording, options=options, keymap=user_keymap())
    if at:
        try:
            app.time.go_to(at)
        except TimeError as error:
            recording.close()
            raise FleetError("E109", f"--at: {error}", hint=f"write {TIME_FORMS}") from error
    if plays:
        app.time.toggle()
    if recording.spare_bytes:
        sys.stderr.write(f"warning: {recording.spare_bytes:,} bytes at the end of {path} are no whole moment\n")
    answer_keys_first()
    app.run()
    code = ExitCode.OK if not app.return_code else ExitCode.ERROR
    return Result(kind="replay", data={}, prose="", exit_code=code)


def replay_app(recording: Recording, *, options: UiOptions | None = None, keymap: Keymap | None = None) -> OdctlApp:
    """The app over a recording, not yet running. Leaving it closes the recording."""
    from odctl.tui.app import OdctlApp
    from odctl.tui.replay_feed import ReplayClock, ReplayFeed

    clock = ReplayClock()
    # There is nothing to unlock, whatever was asked for.
    options = (options or UiOptions())._replace(is_unlocked=False)
    feed = ReplayFeed(recording)
    app = OdctlApp(feed, clock=clock, recording=recording, options=options, keymap=keymap)
    clock.time = app.time
    return app


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
