"""A host's probes as lines: rates of its devices, and the links that begin there."""

from __future__ import annotations

from agent.facts.probe import DeviceProbe, ProbeRecord
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import age_text, rate_text


def probe_rows(record: ProbeRecord, *, now_s: float) -> tuple[Line, ...]:
    """Devices, then links by target; empty where nothing was measured."""
    lines: list[Line] = []
    if record.probe is not None:
        age = f"{age_text(max(0.0, now_s - record.probe.measured_at_s))} ago"
        quick = ", quick" if record.probe.is_quick else ""
        lines += [line(*_device_words(device), Span(f"  {age}{quick}", "dim")) for device in record.probe.devices]
    for link in sorted(record.links, key=lambda each: (each.target, each.target_device, each.carrier)):
        age = f"{age_text(max(0.0, now_s - link.measured_at_s))} ago"
        lines.append(
            line(
                f" {link.source_device:<8} → {link.target}/{link.target_device:<8} {link.carrier:<5}"
                f"{link.latency_s * 1e6:>8.0f} us {rate_text(link.bytes_per_s):>10}",
                Span(f"  {age}", "dim"),
            )
        )
    return tuple(lines)


def _device_words(device: DeviceProbe) -> tuple[str, ...]:
    """Reading weights at one row and arithmetic on a chunk, by kind of weight; then attention."""
    words = [f" {device.device:<8} copy {rate_text(device.copy_bytes_per_s)}"]
    kinds = dict.fromkeys((gemm.dtype, gemm.quantisation) for gemm in device.gemms)
    for dtype, quantisation in kinds:
        found = [gemm for gemm in device.gemms if (gemm.dtype, gemm.quantisation) == (dtype, quantisation)]
        name = dtype if quantisation == "none" else quantisation
        rate = rate_text(found[0].weight_bytes_per_s)
        words.append(f"  {name} {rate} {found[-1].flops_per_s / 1e12:.2f} TF/s")
    words += [f"  attention {a.context} {rate_text(a.cache_bytes_per_s)}" for a in device.attention[-1:]]
    return tuple(words)
