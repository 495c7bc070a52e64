"""What a conversation shows and what the model is told of it."""

from __future__ import annotations

from odctl.tui.model.chat_summary import chat_summary
from odctl.tui.model.conversation import Conversation, Piece, conversation_lines
from odctl.tui.model.text import line_text
from tests.odctl.tui import frozen_fleet as frozen


def text_of(conversation: Conversation, *, width: int = 76) -> str:
    return "\n".join(line_text(spans) for spans in conversation_lines(conversation, width=width))


def answered(text: str = "yes", *, thinking: str = "") -> Conversation:
    talk = Conversation().ask("one?", now_s=10.0)
    if thinking:
        talk = talk.take(Piece(thinking=thinking), now_s=10.2)
    talk = talk.take(Piece(text=text), now_s=10.5)
    return talk.take(Piece(is_done=True, num_tokens=21, prompt_tokens=9, done_reason="stop"), now_s=12.6)


def test_figures_are_of_the_answer_as_it_came() -> None:
    talk = Conversation().ask("one?", now_s=10.0).take(Piece(text="a"), now_s=10.5)
    talk = talk.take(Piece(text="b"), now_s=12.5).take(Piece(is_done=True, num_tokens=21), now_s=12.6)
    assert "first token 500 ms   21 tokens at 10.0 tok/s" in text_of(talk), "20 tokens in the two seconds after it"


def test_thoughts_are_apart_and_give_way_to_the_answer() -> None:
    thinking = Conversation().ask("one?", now_s=0.0).take(Piece(thinking="let me see"), now_s=0.1)
    assert "~ let me see" in text_of(thinking)
    talk = answered(thinking="let me see")
    assert "~ let me see" not in text_of(talk)
    assert "~ thought 3 words (t shows them)" in text_of(talk)
    shown = Conversation(turns=talk.turns, shows_thinking=True)
    assert "~ let me see" in text_of(shown)
    assert talk.history == (("user", "one?"), ("assistant", "yes")), "thoughts are not told again"
    assert "first token 200 ms" in text_of(talk), "a thought is a token, too"


def test_what_was_stopped_stays_and_is_remembered_as_far_as_it_came() -> None:
    talk = answered().ask("two?", now_s=20.0).take(Piece(text="half an"), now_s=20.5).stop()
    assert not talk.is_waiting
    assert talk.history[-2:] == (("user", "two?"), ("assistant", "half an"))
    assert talk.last_answer == "half an"
    assert "1 piece   stopped" in text_of(talk), "the gateway did not count what it was not asked to end"
    unbegun = answered().ask("two?", now_s=20.0).stop()
    assert unbegun.history == answered().history
    assert text_of(unbegun).rstrip().endswith("stopped")


def test_a_failed_answer_keeps_what_came_and_is_not_remembered() -> None:
    talk = answered().ask("two?", now_s=20.0).take(Piece(text="half"), now_s=20.5).fail("rank lost", "ask again")
    assert talk.history == answered().history
    text = text_of(talk)
    for said in ("half", "✗ rank lost", "→ ask again", "1 piece   cut off"):
        assert said in text


def test_clearing_keeps_the_system_prompt() -> None:
    talk = Conversation(turns=answered().turns, system="Answer in one word.")
    assert "system Answer in one word." in text_of(talk)
    assert talk.cleared() == Conversation(system="Answer in one word.")


def test_long_words_and_wide_letters_are_wrapped() -> None:
    talk = answered("漢字" * 60 + " " + "x" * 200)
    assert all(len(each) <= 40 for each in text_of(talk, width=40).splitlines())


def test_the_summary_says_when_the_deployment_is_gone_or_not_well() -> None:
    def summary(name: str, **changes: object) -> str:
        snapshot = frozen.snapshot(**changes)
        return "\n".join(line_text(spans) for spans in chat_summary(snapshot, name, width=80))

    assert "● serving" in summary("chat")
    assert "is not deployed any more" in summary("other")
    assert "nothing is deployed to talk to" in summary("", deployments=())
    ill = frozen.deployment(status=frozen.status(state="degraded", reason="cpu01 is lost", way_out="start it"))
    text = summary("chat", deployments=(ill,))
    assert "▲ cpu01 is lost" in text
    assert "→ start it" in text
