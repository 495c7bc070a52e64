"""Stories as plain text, for the clipboard and for `odctl faults --timeline`: the same words and figures."""

from __future__ import annotations

from datetime import UTC, datetime

from odctl.timeline.story import Condition, Story

GLYPHS: dict[Condition, str] = {
    "healthy": "─",
    "warning": "▲",
    "fault": "✗",
    "diagnosing": "▒",
    "acting": "▓",
    "healing": "↻",
    "healed": "█",
    "unknown": "○",
}
WORDS: dict[Condition, str] = {
    "healthy": "healthy",
    "warning": "warning",
    "fault": "fault",
    "diagnosing": "diagnosing",
    "acting": "acting",
    "healing": "healing",
    "healed": "healed",
    "unknown": "unknown",
}
NOT_REPORTED = "not reported by these agents"


def legend() -> str:
    """`─ healthy  ▲ warning …`."""
    return "  ".join(f"{glyph} {WORDS[condition]}" for condition, glyph in GLYPHS.items())


def offset_text(story: Story, at_s: float, *, is_exact: bool) -> str:
    """`+0.93`: seconds since the story's begin; `~+0.9` where another clock had to be read."""
    seconds = at_s - (story.began_s if story.began_s is not None else at_s)
    # Adding 0 makes a rounded minus zero a plain one.
    return f"{round(seconds, 2) + 0.0:+.2f}" if is_exact else f"~{round(seconds, 1) + 0.0:+.1f}"


def when_text(at_s: float | None) -> str:
    """`2026-03-01 14:02:31Z`: in UTC, as journals are compared."""
    if at_s is None:
        return "unknown"
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def state_text(story: Story) -> str:
    """`healed after 2.13 s`, `open`, `unknown since 2026-03-01 14:02:31Z`."""
    if not story.is_open:
        took = "; its clock was set back meanwhile" if story.took_s is None else f" after {story.took_s:.2f} s"
        return f"{'healed' if story.is_fault else 'over'}{took}"
    if story.unknown_since_s is not None:
        return f"unknown since {when_text(story.unknown_since_s)}: {story.observed_by} does not answer"
    return f"open, {WORDS[story.condition]}"


def requests_text(story: Story) -> str:
    """What became of requests, as far as anybody reported it."""
    failed = "no gateway reported" if story.requests_failed is None else f"{story.requests_failed}"
    replayed = NOT_REPORTED if story.requests_replayed is None else f"{story.requests_replayed}"
    return f"streams that ended with an error: {failed}; requests replayed: {replayed}"


def story_text(story: Story) -> list[str]:
    """The whole story, a line each."""
    about = " ".join(part for part in (story.deployment, story.rank_id) if part)
    where = f" of {about}" if about else ""
    lines = [
        f"{GLYPHS[story.condition]} {story.kind}{where} on {story.host or '?'}: {state_text(story)}",
        f"  {story.message}",
        f"  began {when_text(story.began_s)}"
        + (f", told by {story.observed_by}" if story.observed_by else ", seen from here")
        + (f", decided by {story.decided_by}" if story.decided_by else "")
        + (f", generation {story.generation}" if story.generation else ""),
    ]
    for step in story.steps:
        offset = offset_text(story, step.at_s, is_exact=step.is_exact)
        lines.append(f"  {offset:>9} s  {step.phase:<10} {step.what}")
    lines.append(f"  {requests_text(story)}")
    lines += [f"  evidence {name}: {value}" for name, value in sorted(story.evidence.items())]
    if story.way_out and story.is_open:
        lines.append(f"  way out: {story.way_out}")
    return lines
