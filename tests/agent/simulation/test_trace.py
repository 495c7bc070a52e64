from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.documents import DocumentError
from agent.simulation.trace import MAX_PROBLEMS, TraceRequest, parse_trace, trace_text

GOOD = '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 3}'


def test_json_lines_and_csv_say_the_same() -> None:
    lines = (
        '{"arrival_s": 2.5, "prompt_tokens": 9, "output_tokens": 3, "prefix_group": "a", "prefix_tokens": 4}\n\n'
        '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1, "client": "x, y"}\n'
    )
    table = (
        "\ufeffarrival_s,prompt_tokens,output_tokens,prefix_group,prefix_tokens,client\r\n"
        '2.5, 9, 3, a, 4,\r\n0,5,1,,,"x, y"\r\n'
    )
    found = parse_trace(lines, file="a.jsonl")
    assert found == parse_trace(table, file="a.csv")
    assert [each.arrival_s for each in found] == [0.0, 2.5]
    assert found[0].client == "x, y"


@given(
    st.lists(
        st.builds(
            TraceRequest,
            arrival_s=st.floats(0, 1e6),
            prompt_tokens=st.integers(1, 1000),
            output_tokens=st.integers(1, 1000),
            client=st.text(max_size=5),
            ttft_s=st.none() | st.floats(1e-3, 1e3),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read_back(requests: list[TraceRequest]) -> None:
    requests.sort(key=lambda each: each.arrival_s)
    assert parse_trace(trace_text(requests), file="t") == tuple(requests)


@pytest.mark.parametrize(
    ("text", "code", "place", "complaint"),
    [
        (
            f"{GOOD}\n" + GOOD.replace("5", '"many"'),
            "E105",
            (2, 35),
            '`prompt_tokens` is "many", which is no number',
        ),
        (GOOD.replace("3", "0"), "E106", (1, 55), "`output_tokens` is 0: from 1 to 1000000"),
        (GOOD.replace(" 0,", " NaN,"), "E106", (1, 15), "`arrival_s` is NaN"),
        (GOOD.replace(" 0,", " true,"), "E105", (1, 15), "`arrival_s` is true"),
        (GOOD.replace("}", ', "prefix": 2}'), "E104", (1, 68), "unknown field `prefix`"),
        (GOOD.replace("}", ', "prefix_group": "a"}'), "E107", (1, 74), "go together"),
        ('{"arrival_s": 0, "prompt_tokens": 5}', "E103", (1, 1), "`output_tokens` is missing"),
        (f"{GOOD}\n[1]", "E105", (2, 1), "one JSON object"),
        (f"{GOOD}\n{{x", "E102", (2, 2), "no JSON"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,3\n1,2,x", "E105", (3, 5), '`output_tokens` is "x"'),
        ("arrival_s,prompt_tokens,output_tokens\n1,2", "E102", (2, 1), "2 values under the 3 names"),
        ("arrival_s,prompt,output_tokens\n", "E104", (1, 11), "unknown field `prompt`"),
        ("", "E106", (1, 1), "0 requests"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_value(
    text: str, code: str, place: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(DocumentError) as refusal:
        parse_trace(text, file="t.jsonl")
    problem = next(each for each in refusal.value.problems if complaint in each.message)
    assert problem.code == code
    assert (problem.span.line, problem.span.column) == place
    assert f"--> t.jsonl:{place[0]}:{place[1]}" in str(refusal.value)


def test_a_file_that_is_wrong_throughout_is_told_in_part() -> None:
    with pytest.raises(DocumentError) as refusal:
        parse_trace('{"arrival_s": "x"}\n' * 1000, file="t")
    assert len(refusal.value.problems) == MAX_PROBLEMS
