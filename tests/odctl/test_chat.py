"""A conversation over OpenAI's API: against a real gateway with stand-in ranks, and as a shell would ask it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from odctl.chat import ChatPiece, chat_body, curl_command, stream_chat
from odctl.fleet import Fleet
from odctl.ssh.http import agent_client
from tests.agent.api.rig import Rig, open_rig, wait_until
from tests.odctl.fleet.served_agent import access
from tests.odctl.tui import frozen_fleet as frozen

SLOW_S = 0.03


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="gw-") as directory, open_rig(Path(directory)) as fresh:
        yield fresh


def served_by(rig: Rig) -> DeploymentStatus:
    return frozen.status(name="demo", gateway_host="one", gateway_socket=str(rig.socket))


async def pieces_of(rig: Rig, body: dict[str, Any]) -> list[ChatPiece]:
    fleet = Fleet([access("one", rig.directory)], cluster="lab", open_client=agent_client)
    try:
        return [piece async for piece in stream_chat(fleet, served_by(rig), body)]
    finally:
        await fleet.close()


def test_every_turn_goes_with_those_before_it_and_the_system_prompt_first() -> None:
    body = chat_body("demo", "three?", history=(("user", "one?"), ("assistant", "two")), system="be brief")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][-1]["content"] == "three?"
    assert chat_body("demo", "hi")["messages"] == [{"role": "user", "content": "hi"}]


async def test_an_answer_streams_and_ends_with_what_was_counted(rig: Rig) -> None:
    rig.serve()
    body = chat_body("demo", "Say something.") | {"max_tokens": 12}
    *pieces, last = await pieces_of(rig, body)
    assert "".join(piece.text for piece in pieces)
    assert all(not piece.done_reason for piece in pieces)
    assert (last.done_reason, last.answer_tokens, last.text) == ("length", 12, "")
    assert last.prompt_tokens > 0


async def test_a_refusal_comes_in_the_gateways_own_words(rig: Rig) -> None:
    rig.serve()
    with pytest.raises(FleetError, match="model 'other' not found, served here: demo") as refused:
        await pieces_of(rig, chat_body("other", "hi"))
    assert refused.value.code == "E808"


async def test_a_gateway_that_dies_in_mid_answer_is_an_error_with_a_way_out(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    assert rig.gateway is not None
    fleet = Fleet([access("one", rig.directory)], cluster="lab", open_client=agent_client)
    text = ""
    with pytest.raises(FleetError) as broken:  # noqa: PT012 - what comes before the end is part of it
        async for piece in stream_chat(fleet, served_by(rig), chat_body("demo", "hi")):
            text += piece.text
            if text:
                rig.gateway.kill()
    await fleet.close()
    assert text
    assert broken.value.code == "E808"
    assert "broke off" in broken.value.message
    assert "odctl status demo" in broken.value.hint


async def test_an_answer_that_nobody_reads_any_more_frees_its_slot(rig: Rig) -> None:
    rig.serve(step_s=SLOW_S)
    fleet = Fleet([access("one", rig.directory)], cluster="lab", open_client=agent_client)
    async with aclosing(stream_chat(fleet, served_by(rig), chat_body("demo", "hi"))) as pieces:
        await anext(pieces)
    await fleet.close()
    status = await asyncio.to_thread(
        wait_until, lambda: (found := rig.backend()).running == 0 and found, "the slot is free"
    )
    assert (status.cancelled, status.finished) == (1, 0)


def test_a_shell_gets_the_same_answer(rig: Rig) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    rig.serve()
    body = chat_body("demo", "It's 'quoted' $HOME \"twice\"") | {"max_tokens": 4, "temperature": 0}
    command = curl_command(body, rig.base_url.removeprefix("http://"), host="gpu01")
    assert command.startswith("# on gpu01, for it listens on loopback only\n")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: {")]
    events = [msgspec.json.decode(line) for line in lines]
    assert events[-1]["usage"]["completion_tokens"] == 4
    assert done.stdout.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize(
    ("listen", "address", "url"),
    [
        ("10.0.0.5:11434", "10.0.0.9", "http://10.0.0.5:11434/"),
        ("0.0.0.0:80", "10.0.0.9", "http://10.0.0.9:80/"),
        ("[::]:80", "", "http://gpu01:80/"),
    ],
)
def test_elsewhere_than_on_loopback_a_key_is_needed(listen: str, address: str, url: str) -> None:
    command = curl_command(chat_body("demo", "hi"), listen, host="gpu01", address=address)
    assert url in command
    assert '"Authorization: Bearer $ODCTL_API_KEY"' in command
    assert "loopback" not in command
