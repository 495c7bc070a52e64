"""A benchmark as its screen shows it: progress, figures, and what was predicted. Pure."""

from __future__ import annotations

import msgspec

from agent.errors import ErrorDetail
from agent.planner.words import rate_interval_words, seconds_interval_words
from agent.wire.agent import DeploymentStatus
from odctl.bench.measure import Distribution, Figures
from odctl.bench.report import load_line
from odctl.bench.run import Settings
from odctl.tui.model.bars import bar
from odctl.tui.model.readings import NONE
from odctl.tui.model.text import BLANK, Line, Span, fit, line, wrap
from odctl.tui.model.units import plural, seconds_text, tokens_per_s_text


class BenchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement at one moment; `figures` are those up to now, None while it warms up."""

    settings: Settings
    told: str
    elapsed_s: float
    figures: Figures | None = None
    is_over: bool = False
    is_stopped: bool = False
    error: ErrorDetail | None = None


def bench_page(progress: BenchProgress, status: DeploymentStatus, *, width: int) -> tuple[Line, ...]:
    """What is asked, how far it is, and the figures so far beside what the plan predicts."""
    load = progress.settings.load
    asked = f"{plural(load.num_requests or 0, 'request')}, {load_line(load)}"
    lines = [line(" ", Span(text, "bold")) for text in wrap(asked, width - 2)]
    lines += [_state(progress), _bar(progress, width)]
    if progress.error is not None:
        lines += [line(Span(f" ✗ {text}", "fault")) for text in wrap(progress.error.message, width - 4)]
        lines += [line(Span(f"   → {text}", "dim")) for text in wrap(progress.error.hint, width - 6) if text]
    figures = progress.figures
    if figures is None:
        if not progress.error:
            lines.append(line(Span(" no figure yet: requests that warm up are not counted", "dim")))
        return tuple(lines)
    lines += [BLANK, *_table(figures), *_throughput(figures, width)]
    lines += _predicted(status, width)
    for kind, count in sorted(figures.errors.items()):
        text = f"{count} failed: {kind}: {figures.examples[kind]}"
        lines += [line(Span(f" ✗ {part}", "fault")) for part in wrap(text, width - 4)]
    if figures.num_short:
        text = f"{figures.num_short} answers are shorter than asked: the model ended them"
        lines += [line(Span(f" ▲ {part}", "warn")) for part in wrap(text, width - 4)]
    return tuple(lines)


def _state(progress: BenchProgress) -> Line:
    spent = f"  {seconds_text(progress.elapsed_s)}"
    if progress.error is not None:
        return line(Span(" ✗ failed", "fault"), spent)
    if progress.is_stopped:
        return line(Span(" ▲ stopped", "warn"), spent, Span("  these are the figures up to then", "dim"))
    if progress.is_over:
        return line(Span(" ● measured", "ok"), spent)
    return line(Span(" ↻ measuring", "heal"), spent, Span(f"  {progress.told}", "dim"))


def _bar(progress: BenchProgress, width: int) -> Line:
    wanted = (progress.settings.load.num_requests or 0) * progress.settings.rounds
    figures = progress.figures
    answered = figures.num_answered if figures is not None else 0
    failed = figures.num_failed if figures is not None else 0
    share = (answered + failed) / wanted if wanted else 0.0
    text = f" {answered}/{wanted} answered, {failed} failed"
    if figures is not None and figures.num_unfinished:
        text += f", {figures.num_unfinished} broken off"
    return line(" ", Span(bar(share, max(10, width - len(text) - 4)), "bar"), text)


def _table(figures: Figures) -> list[Line]:
    head = f" {fit('', 19)}" + "".join(f"{name:>10}" for name in ("p50", "p95", "p99", "mean", "largest"))
    rows = (
        ("first token", figures.ttft_s),
        ("per token", figures.tpot_s),
        ("gap between pieces", figures.gap_s),
        ("whole request", figures.request_s),
    )
    return [line(Span(head, "title")), *(_row(name, found) for name, found in rows)]


def _row(name: str, found: Distribution | None) -> Line:
    label = Span(f" {fit(name, 19)}", "bold")
    if found is None:
        return line(label, Span(f"{NONE:>10}  no answer yet", "dim"))
    cells = (found.p50, found.p95, found.p99, found.mean, found.largest)
    return line(label, "".join(f"{seconds_text(cell):>10}" for cell in cells))


def _throughput(figures: Figures, width: int) -> list[Line]:
    text = (
        f"{figures.requests_per_s:.2f} requests/s   {tokens_per_s_text(figures.input_tokens_per_s)} prompt tok/s   "
        f"{tokens_per_s_text(figures.output_tokens_per_s)} answer tok/s   on average "
        f"{figures.mean_prompt_tokens:.0f} tokens in, {figures.mean_output_tokens:.0f} out"
    )
    return [line(f" {part}") for part in wrap(text, width - 2)]


def _predicted(status: DeploymentStatus, width: int) -> list[Line]:
    predicted = status.predicted
    text = (
        f"predicted: first token {seconds_interval_words(predicted.ttft)} at {predicted.prompt_tokens} prompt "
        f"tokens, per token {seconds_interval_words(predicted.time_per_token)}, both alone; "
        f"{rate_interval_words(predicted.throughput)} at the full batch. Measured from here: the first token has "
        "the way to the host in it."
    )
    return [BLANK, *(line(Span(f" {part}", "dim")) for part in wrap(text, width - 2))]
