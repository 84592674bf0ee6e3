"""Tools over HTTP: a model of random weights calls them validly; it is asked as those trained here or elsewhere are."""

import json
import random
import shutil
from dataclasses import replace

import jsonschema
import numpy as np
import openai
import pytest
from tests.serving.conftest import client, listening

from openafm.engine.native_engine import missing
from openafm.serving.calls import CallReader
from openafm.serving.opening import open_model
from openafm.serving.tools import LIBRARY, SHORT, Function, Manner, Toolbox, ToolCall
from openafm.synthesis import tasks, tool_library
from openafm.tokenizer.calls import CallForm

native = pytest.mark.skipif(missing() is not None, reason=str(missing()))
MODEL = "toy-recovery"
USER = {"role": "user", "content": "some words"}
SCHEMAS = {
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
    },
    "say": {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 8}, "loud": {"type": "boolean"}},
        "required": ["text"],
    },
    "now": {},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
ASKED = {"model": MODEL, "messages": [USER], "tools": TOOLS, "max_tokens": 900, "temperature": 1.0}
TEMPLATE = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}
    {%- for call in message.tool_calls or [] %}
        {%- if not loop.first %}{{ '\n' }}{% endif %}
        {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
    {%- endfor %}<|end|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
HERMES = CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")


@pytest.fixture(scope="module")
def create(opened):
    with listening(opened) as url:
        yield client(url).chat.completions.create


def check(calls):
    for call in calls:
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMAS[call.function.name])
        assert arguments.keys() <= SCHEMAS[call.function.name].get("properties", {}).keys()
    assert len({call.id for call in calls}) == len(calls)


@native
@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_valid(create, seed):
    (choice,) = create(**ASKED, tool_choice="required", parallel_tool_calls=False, seed=seed).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert len(choice.message.tool_calls) == 1
    check(choice.message.tool_calls)


@native
def test_several_calls_side_by_side_and_streamed(create):
    found = [create(**ASKED, tool_choice="required", seed=seed).choices[0].message for seed in range(4)]
    assert any(len(message.tool_calls) > 1 for message in found)
    for seed, message in enumerate(found):
        check(message.tool_calls)
        streamed: dict[int, list[str]] = {}
        ends = []
        for chunk in create(**ASKED, tool_choice="required", seed=seed, stream=True):
            (choice,) = chunk.choices
            ends += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or []:
                assert (call.id is not None) == (call.index not in streamed)
                streamed.setdefault(call.index, [call.function.name, ""])[1] += call.function.arguments
        assert ends == ["tool_calls"]
        assert list(streamed.values()) == [[call.function.name, call.function.arguments] for call in message.tool_calls]


@native
def test_a_named_tool_is_called(create):
    named = {"type": "function", "function": {"name": "say"}}
    (choice,) = create(**ASKED, tool_choice=named, seed=1).choices
    (call,) = choice.message.tool_calls
    assert call.function.name == "say" and choice.finish_reason == "tool_calls"
    check([call])


@native
def test_a_call_that_is_cut_says_so(create):
    (choice,) = create(**ASKED | {"max_tokens": 12}, tool_choice="required", seed=1).choices
    assert choice.finish_reason == "length"


@native
def test_text_is_text_where_tools_may_be_called(create):
    said = create(**ASKED | {"max_tokens": 40}, seed=1).choices[0]  # random weights: it says something
    assert said.message.content and not said.message.tool_calls and said.finish_reason in ("stop", "length")
    chunks = create(**ASKED | {"max_tokens": 40}, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said.message.content
    silent = {name: value for name, value in ASKED.items() if name != "tools"} | {"max_tokens": 40, "seed": 1}
    assert create(**silent, tools=TOOLS, tool_choice="none").choices == create(**silent).choices


@native
def test_results_go_back_with_their_calls(create, opened):
    asked = create(**ASKED, tool_choice="required", seed=2)
    message = asked.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in message.tool_calls]
    history = [USER, message.model_dump(), *results, USER]
    unanswered = [line | ({"content": ""} if line["role"] == "tool" else {}) for line in history]
    further, less = (create(**ASKED | {"messages": said, "max_tokens": 5}).usage for said in (history, unanswered))
    assert further.prompt_tokens == less.prompt_tokens + len(results)
    assert less.prompt_tokens > asked.usage.prompt_tokens + 5
    with pytest.raises(openai.BadRequestError, match="no call before it"):
        create(**ASKED | {"messages": [USER, *results]})


@native
def test_what_is_no_schema_is_refused(create):
    tool = {"type": "function", "function": {"name": "a", "parameters": {"properties": {"b": {"type": "king"}}}}}
    with pytest.raises(openai.BadRequestError, match="cannot guide") as caught:
        create(**ASKED | {"tools": [tool]})
    assert caught.value.param == "tools"


def test_torch_names_what_it_does_not_guide(gated):
    _, url = gated
    with pytest.raises(openai.BadRequestError, match="tools: this engine does not carry it out"):
        client(url).chat.completions.create(**ASKED | {"model": "toy-sft"})


def test_the_forms_are_those_of_the_training_data():
    tools = tool_library.library()
    made = tool_library.make("parallel", np.eye(len(tools)), random.Random(1))
    for call in made.calls:
        assert LIBRARY.write(call.tool.name, call.arguments) == call.written
    assert SHORT.write("add", {"a": 1, "b": 2}) == tasks.call("add", a=1, b=2)
    assert all(Function(**tool.schema).shown == tool.schema for tool in tools.values())


def shown(opened, messages, short=False, tools=("add",)):
    functions = [Function(name=name, description="d", parameters=SCHEMAS[name]) for name in tools]
    tokenizer = opened.engine.tokenizer
    return tokenizer.decode(Manner(tokenizer, short).prompt(messages, functions))


def test_a_model_is_asked_as_it_was_trained(opened):
    schema = json.dumps([{"name": "add", "description": "d", "parameters": SCHEMAS["add"]}])
    assert shown(opened, [USER]) == f"Tools: {schema}some words"
    system = {"role": "system", "content": "Be brief."}
    assert shown(opened, [system, USER]) == f"Tools: {schema}\nBe brief.some words"
    assert shown(opened, [USER], short=True) == "Tools: add(a, b)\nsome words"
    results = [{"role": "tool", "content": "3"}, {"role": "tool", "content": "4"}]
    assert shown(opened, [USER, *results], tools=()) == "some words3\n4"
    called = ToolCall(id="x", function={"name": "add", "arguments": '{"a":1,"b":2}'})
    manner = Manner(opened.engine.tokenizer, short=False)
    assert manner.turn("", [called] * 2) == "\n".join(['{"name": "add", "arguments": {"a": 1, "b": 2}}'] * 2)


def test_which_form_a_run_has_taught(run, tmp_path):
    assert not open_model(run / "sft").short_calls
    run_json = json.loads((run / "run.json").read_text())
    for library, short in ((0, True), (300, False)):
        root = tmp_path / str(library)
        (root / "tool_data").mkdir(parents=True)
        shutil.copytree(run / "sft", root / "sft")
        steps = [*run_json["steps"], {"name": "tool_data", "stage": "tool_data"}]
        (root / "run.json").write_text(json.dumps({"steps": steps}))
        (root / "tool_data" / "manifest.json").write_text(json.dumps({"config": {"library": library}}))
        assert open_model(root / "sft").short_calls is short


@native
def test_the_short_form_is_guided_too(opened):
    with listening(replace(opened, short_calls=True)) as url:
        (choice,) = client(url).chat.completions.create(**ASKED, tool_choice="required", seed=3).choices
        check(choice.message.tool_calls)


@pytest.mark.parametrize("form", [LIBRARY, SHORT, HERMES])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_calls_are_read_from_any_pieces(form, step):
    calls = [("add", {"a": 1, "b": 2}), ("say", {"text": 'a "}" {'}), ("now", {})]
    text = "I will.\n" + form.between.join(form.write(name, arguments) for name, arguments in calls)
    reader = CallReader.of(form, list(SCHEMAS))
    deltas = [delta for at in range(0, len(text), step) for delta in reader.push(text[at : at + step])] + reader.rest()
    assert "".join(delta.text for delta in deltas if delta.kind == "text") == "I will."
    assert [(call.name, json.loads(call.arguments)) for call in reader.calls] == calls
    assert all(call.whole for call in reader.calls)
    assert [delta.text for delta in deltas if delta.kind == "call"] == list(SCHEMAS)


def test_what_only_looks_like_a_call_is_text():
    reader = CallReader.of(LIBRARY, ["add"])
    text = 'See {"name": "Ann"} and {"name": "adder", "arguments": 5} \n'
    assert "".join(delta.text for delta in [*reader.push(text), *reader.rest()]) == text and not reader.calls


@native
@pytest.mark.parametrize("form", [LIBRARY, SHORT, HERMES, replace(LIBRARY, between=None)])
def test_the_grammar_takes_text_then_calls_and_no_other(opened, form):
    from llguidance import LLMatcher

    from openafm.engine.guidance import vocabulary

    tokenizer = opened.engine.tokenizer
    words = vocabulary(tokenizer, 300)
    functions = [Function(name=name, parameters=schema) for name, schema in SCHEMAS.items()]
    add, say = form.write("add", {"a": 1, "b": 2}), form.write("say", {"text": "a"})

    def fits(text, **options):
        matcher = LLMatcher(words, Toolbox(functions, **options).grammar(form))
        tokens = tokenizer.encode(text)
        taken = matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens)
        return taken and matcher.is_accepting()

    for text in ("", "Hello {}.\n\n", add, f"I will.\n{say}", f"<think>\n</think>\n\n{say}"):
        assert fits(text)
    assert fits(f"{add}\n{say}") is (form.between is not None)
    assert not fits(f"{add}\n{say}", several=False) and not fits(f"{add} Done.") and not fits(add[:-1])
    assert not fits(form.write("add", {"a": 1, "b": 3})) and not fits(form.write("add", {"a": 1, "b": 2, "c": 3}))
    assert fits(add, choice="required") and not fits("Hello", choice="required")
    assert fits(form.write("king", {})) is (not form.opener)


@native
def test_a_model_with_a_template_for_tools_is_asked_by_that(run, tmp_path):
    shutil.copytree(run / "sft", tmp_path / "hermes")
    path = tmp_path / "hermes" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    opened = open_model(tmp_path / "hermes")
    function = Function(**TOOLS[0]["function"])
    manner = Manner(opened.engine.tokenizer, short=False)
    assert manner.form == HERMES
    told = opened.engine.tokenizer.decode(manner.prompt([USER, {"role": "tool", "content": "3"}], [function]))
    assert told == json.dumps({"type": "function", "function": function.shown}) + "some words3"
    with listening(opened) as url:
        (choice,) = client(url).chat.completions.create(**ASKED | {"model": "hermes"}, tool_choice="required").choices
    check(choice.message.tool_calls)
