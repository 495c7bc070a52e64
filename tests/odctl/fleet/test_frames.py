from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ErrorDetail
from agent.wire.framing import StreamClosed, decode, encode_frame
from odctl.fleet.frames import FrameSplitter


@given(
    messages=st.lists(st.text(max_size=50), max_size=6),
    cuts=st.lists(st.integers(min_value=1, max_value=17), min_size=1, max_size=8),
)
def test_frames_survive_any_chunking(messages: list[str], cuts: list[int]) -> None:
    data = b"".join(encode_frame(ErrorDetail(code="E1", message=text)) for text in messages)
    splitter = FrameSplitter()
    found, at, turn = [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        found += [decode(body, ErrorDetail).message for body in splitter.feed(data[at : at + step])]
        at, turn = at + step, turn + 1
    assert found == messages
    assert splitter.is_between_frames


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(StreamClosed, match="over the limit"):
        list(FrameSplitter().feed(b"\xff\xff\xff\xff"))
