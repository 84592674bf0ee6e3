import io
import json
import shutil

import pytest

from openafm.engine import TorchEngine
from openafm.serving.chat import HELP, Conversation, chat
from openafm.serving.opening import latest_model


def talk(folder, *lines, **options):
    out = io.StringIO()
    chat(folder, lines=[line + "\n" for line in lines], out=out, max_tokens=6, **options)
    return out.getvalue()


def test_the_furthest_finished_step_is_taken(run, tmp_path):
    assert latest_model(run) == run / "teacher"  # neither SFT nor recovery has a manifest
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "sft", tmp_path / "run" / "sft_again")
    for step in ("sft", "sft_again", "recovery"):  # of one stage the later step, of all the furthest stage
        (tmp_path / "run" / step / "manifest.json").write_text(json.dumps({"stage": step.removesuffix("_again")}))
        assert latest_model(tmp_path / "run") == tmp_path / "run" / step
    assert latest_model(run / "sft") == run / "sft"
    with pytest.raises(ValueError, match="no finished model yet"):
        latest_model(tmp_path)


def test_a_base_model_continues_text_and_says_so(run):
    said = talk(run, "some words", "", "/quit", "never read")
    assert "has not learned to chat" in said and said.count("\n") == 4


def test_a_package_answers_with_an_adapter_and_commands_work(run):
    said = talk(run / "recovery", "/help", "/adapter", "/adapter recovery", "/adapter x", "/what", adapter="recovery")
    assert "(using recovery)" in said and said.count(HELP) == 2
    assert "answering with no adapter" in said and "answering with recovery" in said and "no adapter x" in said
    assert "unknown command /what" in said
    assert "(using recovery)" in talk(run / "recovery")
    with pytest.raises(ValueError, match="there are recovery, summary"):
        talk(run / "recovery", adapter="other")


def test_the_conversation_is_remembered_until_reset(run):
    conversation = Conversation(TorchEngine.load(run / "sft"), max_tokens=5)
    conversation.command("/system Be brief.")
    answer = "".join(conversation.answer("some words"))
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "some words"},
        {"role": "assistant", "content": answer},
    ]
    conversation.command("/reset")
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    conversation.command("/system")
    assert conversation.messages == [] and conversation.command("/quit") is None


def test_the_pieces_are_the_decoded_answer(run):
    engine = TorchEngine.load(run / "sft")
    conversation = Conversation(engine, max_tokens=40, temperature=1.5)
    pieces = list(conversation.answer("a few of them"))
    tokens = list(
        engine.generate(
            engine.tokenizer.render_chat([{"role": "user", "content": "a few of them"}]),
            max_tokens=40, temperature=1.5, seed=1,
        )
    )  # fmt: skip
    assert len(pieces) > 3 and "".join(pieces) == engine.tokenizer.decode(tokens)


def test_control_c_stops_the_answer_and_not_the_program(run, monkeypatch):
    original = TorchEngine.choices
    calls = []

    def interrupted(self, *args, **options):
        calls.append(1)
        for number, choice in enumerate(original(self, *args, **options)):
            if len(calls) == 1 and number == 2:
                raise KeyboardInterrupt
            yield choice

    monkeypatch.setattr(TorchEngine, "choices", interrupted)
    monkeypatch.setenv("OPENAFM_ENGINE", "torch")
    said = talk(run / "sft", "some words", "again")
    assert "[stopped]" in said and len(calls) == 2
