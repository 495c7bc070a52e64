"""Figures as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from odctl.bench.load import Load
from odctl.bench.measure import Distribution, Figures, Objectives
from odctl.bench.versus import Ratio


def load_line(load: Load) -> str:
    if load.arrivals == "trace":
        return f"a trace of {len(load.trace)} requests in {load.trace[-1].arrival_s:.1f} s; seed {load.seed}"
    arrivals = {
        "closed": f"{load.concurrency} at a time",
        "fixed": f"{load.rate_per_s:g} a second, evenly",
        "poisson": f"{load.rate_per_s:g} a second, Poisson",
    }[load.arrivals]
    shared = f" of which {load.shared_prefix} shared" if load.shared_prefix else ""
    return f"{arrivals}; prompts of {load.prompt} tokens{shared}, answers of {load.output}; seed {load.seed}"


def figures_text(label: str, figures: Figures, objectives: Objectives) -> str:
    lines = [
        label,
        f"  {_requests(figures)} in {figures.elapsed_s:.1f} s; on average {figures.mean_prompt_tokens:.1f} tokens "
        f"in, {figures.mean_output_tokens:.1f} out",
        f"  {'':22}{'p50':>10}{'p95':>10}{'p99':>10}{'mean':>10}{'largest':>10}",
        _row("time to first token", figures.ttft_s),
        _row("time per token", figures.tpot_s),
        _row("gap between pieces", figures.gap_s),
        _row("whole request", figures.request_s),
        f"  throughput  {figures.requests_per_s:.2f} requests/s, {figures.input_tokens_per_s:.1f} input tokens/s, "
        f"{figures.output_tokens_per_s:.1f} output tokens/s",
    ]
    if objectives.ttft_s is not None or objectives.tpot_s is not None:
        lines.append(
            f"  goodput     {figures.goodput_per_s:.2f} requests/s, {figures.good_share:.0%} of all "
            f"({_objectives(objectives)})"
        )
    if figures.num_short:
        lines.append(f"  {figures.num_short} answers are shorter than asked: the server ends where the model does")
    for kind, count in sorted(figures.errors.items()):
        lines.append(f"  {count} failed: {kind}: {figures.examples[kind]}")
    return "\n".join(lines)


def ratios_text(first: str, second: str, found: Sequence[Ratio]) -> str:
    lines = [f"{first} / {second}", f"  {'':26}{'median':>8}{'least':>8}{'largest':>9}"]
    for ratio in found:
        better = "more is better" if ratio.is_more_better else "less is better"
        lines.append(
            f"  {ratio.what:26}{ratio.median:8.2f}{ratio.least:8.2f}{ratio.largest:9.2f}  {better}, "
            f"{ratio.num_rounds} rounds"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """`45.1 ms`, `2.31 s`."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _requests(figures: Figures) -> str:
    parts = [f"{figures.num_answered} requests answered"]
    if figures.num_failed:
        parts.append(f"{figures.num_failed} failed")
    if figures.num_unfinished:
        parts.append(f"{figures.num_unfinished} broken off")
    return ", ".join(parts)


def _row(name: str, found: Distribution | None) -> str:
    if found is None:
        return f"  {name:22}{'-':>10}"
    cells = (found.p50, found.p95, found.p99, found.mean, found.largest)
    return f"  {name:22}" + "".join(f"{duration(cell):>10}" for cell in cells)


def _objectives(objectives: Objectives) -> str:
    parts = []
    if objectives.ttft_s is not None:
        parts.append(f"first token within {duration(objectives.ttft_s)}")
    if objectives.tpot_s is not None:
        parts.append(f"{duration(objectives.tpot_s)} per token")
    return ", ".join(parts)
