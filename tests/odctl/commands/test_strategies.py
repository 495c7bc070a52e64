"""What `odctl strategies` says beside its table."""

from __future__ import annotations

from odctl.commands.strategies import _state_lines
from odctl.inventory import Learning
from odctl.learning import LearningReport
from tests.odctl.tui import measured_fleet as measured


def test_regret_drift_and_changed_plans_are_told() -> None:
    regret, alarm, change = _state_lines(measured.report())
    assert regret == "regret so far: a token took 14.7% longer than with the best strategy measured"
    assert alarm.startswith("drift alarm ")
    assert "tensor 2 of chat took 1.72 times what was predicted" in alarm
    assert change.startswith("plan 020202020202 changed ")


def test_before_anything_was_measured_only_what_is_off_is_told() -> None:
    assert _state_lines(LearningReport()) == []
    (said,) = _state_lines(LearningReport(settings=Learning(enabled=False)))
    assert "switched off in the inventory" in said
