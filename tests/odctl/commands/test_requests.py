"""`odctl requests` in words. What it asks and `odctl cancel` does is tried on a lab."""

from __future__ import annotations

from agent.wire.gateway import RequestReport
from odctl.commands.requests import requests_text
from tests.odctl.tui import live_fleet as live


def test_every_request_has_a_line_and_states_are_counted() -> None:
    text = requests_text(RequestReport(deployment="chat", requests=live.requests()))
    head, first, second, third, counts = text.splitlines()
    assert len({len(line) for line in (head, first, second, third)}) == 1, "columns stand under each other"
    assert first.split()[:3] == ["●", f"req_{'1' * 24}", "running"]
    assert "31/100" in first
    assert "120/120" in first, "positions of the answer are no part of the prompt"
    assert "64/120" in second
    assert third.split()[0] == "○"
    assert counts == "chat: 2 running, 1 queued"


def test_none_is_said() -> None:
    assert requests_text(RequestReport(deployment="chat", requests=())) == "chat: no request is in flight"
