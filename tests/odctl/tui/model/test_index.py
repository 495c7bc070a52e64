from __future__ import annotations

import msgspec
import pytest

from odctl.fleet import FleetSnapshot
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.index import CellText, FilterError, Sort, label_keys, parse_filter, row_order
from tests.odctl.tui import frozen_fleet as frozen

COLUMNS = [column.id for column in HostRows.columns]


def shown(filter_text: str, *, sort: Sort | None = None, snapshot: FleetSnapshot | None = None) -> list[str]:
    rows = HostRows(snapshot or frozen.snapshot())
    return [rows.keys[row] for row in row_order(rows, terms=parse_filter(filter_text, COLUMNS), sort=sort)]


def test_patterns_labels_and_figures_must_all_hold() -> None:
    assert shown("cpu0[1-3]") == ["cpu01", "cpu02", "cpu03"]
    assert shown("!cpu0") == ["gpu01"]
    assert shown("-l rack=a") == ["gpu01"]
    assert shown("cpu>30") == ["gpu01"]
    assert shown("cpu<30 !stale") == ["cpu01", "cpu03"]
    assert shown("unreachable") == ["cpu04"]


@pytest.mark.parametrize(
    ("text", "said"), [("temperature>5", "no column"), ("-l rack", "key=value"), ("(", "`\\(`")]
)
def test_a_filter_that_means_nothing_says_why(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        parse_filter(text, COLUMNS)


def test_rows_without_a_value_sort_last_in_both_directions() -> None:
    up = shown("", sort=Sort(column="cpu"))
    down = shown("", sort=Sort(column="cpu", is_descending=True))
    assert up[-2:] == down[-2:] == ["cpu04", "cpu05"]
    assert down[0] == "gpu01"


def test_the_worst_hosts_sort_first_by_state() -> None:
    assert shown("", sort=Sort(column="state")) == ["cpu03", "cpu04", "cpu02", "cpu05", "cpu01", "gpu01"]


def test_ten_thousand_hosts_are_sorted_and_filtered() -> None:
    base = frozen.host("base")
    hosts = tuple(
        msgspec.structs.replace(base, name=f"h{number:05d}", sample_age_s=float(number)) for number in range(10_000)
    )
    snapshot = frozen.snapshot(hosts=hosts)
    names = shown("h0[0-4] cpu>=0", sort=Sort(column="cpu", is_descending=True), snapshot=snapshot)
    assert len(names) == 5000


def shown_with_labels(filter_text: str) -> list[str]:
    rows = HostRows(frozen.snapshot())
    terms = parse_filter(filter_text, COLUMNS, label_keys(rows))
    return [rows.keys[row] for row in row_order(rows, terms=terms)]


def test_a_label_needs_no_sign_before_it_and_every_term_can_be_turned_round() -> None:
    assert shown_with_labels("rack=a") == ["gpu01"]
    assert shown_with_labels("rack!=a") == ["cpu01", "cpu02", "cpu03", "cpu04", "cpu05"]
    assert shown_with_labels("!rack=a") == shown_with_labels("rack!=a")
    assert shown_with_labels("!cpu>30 !unreachable !connecting") == ["cpu01", "cpu02", "cpu03"]
    assert shown_with_labels("util<90") == ["gpu01"], "a host's utilisation is that of its GPUs"


def test_a_columns_text_is_searched_and_a_column_wins_over_a_label() -> None:
    assert shown_with_labels("state=stale") == ["cpu02"]
    assert shown_with_labels("state!=LOST") == ["cpu01", "cpu02", "cpu04", "cpu05", "gpu01"]
    assert shown_with_labels("host=01") == ["cpu01", "gpu01"]
    rows = HostRows(frozen.snapshot())
    [term] = parse_filter("host=x", COLUMNS, {"host"})
    assert isinstance(term, CellText)
    assert row_order(rows, terms=[term]) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zone=9", "no column or label `zone`: columns are host, .*; labels are rack"),
        ("rack>3", "`rack` is a label: write rack=3"),
        ("cpu>much", "`much` is no number: write cpu>50"),
        ("cpu>", "`cpu>` needs a value"),
        ("!", "`!` needs a word"),
    ],
)
def test_what_means_nothing_says_what_would_mean_something(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        parse_filter(text, COLUMNS, {"rack"})
