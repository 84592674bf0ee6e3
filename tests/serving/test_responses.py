"""`/v1/responses` as OpenAI's own client reads it, whole and in events, against a tiny real model."""

import json

import httpx
import openai
import pytest
from tests.serving.conftest import client, listening

from openafm.engine.native_engine import missing
from openafm.serving.opening import open_model

native = pytest.mark.skipif(missing() is not None, reason=str(missing()))
MODEL = "toy-recovery"
LONG = {"model": MODEL, "input": "words", "max_output_tokens": 30, "temperature": 1.5}
ADD = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
}
NOW = {"type": "function", "name": "now"}
SCHEMA = ADD["parameters"] | {"additionalProperties": False}
FORM = {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}


@pytest.fixture(scope="module")
def api(run):
    with listening(open_model(run / "recovery")) as url:
        yield client(url)


def greedy(api, **asked):
    return api.responses.create(**{"model": MODEL, "max_output_tokens": 12, "temperature": 0, **asked})


def test_a_response_is_the_chats_answer(api):
    told = greedy(api, input="words", instructions="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "words"}]
    chat = api.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, temperature=0)
    assert told.output_text == chat.choices[0].message.content and told.id.startswith("resp_")
    assert (told.usage.input_tokens, told.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert told.usage.total_tokens == chat.usage.total_tokens
    cut = chat.choices[0].finish_reason == "length"
    assert told.status == ("incomplete" if cut else "completed")
    assert (told.incomplete_details.reason if cut else told.incomplete_details) == (
        "max_output_tokens" if cut else None
    )
    (message,) = told.output
    assert (message.type, message.role, message.status) == ("message", "assistant", told.status)
    assert (told.model, told.instructions, told.max_output_tokens, told.store) == (MODEL, "Be brief.", 12, False)


def test_input_may_be_a_conversation_and_output_goes_back(api):
    first = greedy(api, input=[{"role": "user", "content": [{"type": "input_text", "text": "words"}]}])
    assert first.output_text == greedy(api, input="words").output_text
    history = [{"role": "user", "content": "words"}, *first.output, {"role": "user", "content": "some"}]
    further = greedy(api, input=history)
    chat = api.chat.completions.create(
        model=MODEL, max_tokens=12, temperature=0,
        messages=[{"role": "user", "content": "words"}, {"role": "assistant", "content": first.output_text},
                  {"role": "user", "content": "some"}],
    )  # fmt: skip
    assert further.output_text == chat.choices[0].message.content
    assert further.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_has_openais_events(api):
    events = list(api.responses.create(**LONG | {"temperature": 0}, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1].response
    assert kinds[4:-4] == ["response.output_text.delta"] * len(deltas) and len(deltas) > 4
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] == f"response.{last.status}" and events[0].response.status == "in_progress"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(deltas) == last.output_text == events[-4].text and last.usage.output_tokens >= len(deltas) // 2
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}


@native
@pytest.mark.parametrize("more", [{"text": {"format": FORM}}, {"tools": [ADD, NOW], "tool_choice": "required"}])
def test_the_clients_own_reader_follows_a_stream(api, more):
    with api.responses.stream(model=MODEL, input="words", **more) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().status == "completed"
    assert ("response.output_text.delta" in kinds) != ("response.function_call_arguments.delta" in kinds)


def test_events_are_named_on_the_wire(run):
    with listening(open_model(run / "recovery")) as url:
        text = httpx.post(f"{url}/v1/responses", json={**LONG, "stream": True}).text
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


@native
def test_tools_are_called_and_their_results_go_back(api):
    asked = {"model": MODEL, "input": "words", "tools": [ADD, NOW], "tool_choice": "required", "temperature": 1}
    told = api.responses.create(**asked)
    assert told.status == "completed" and {item.type for item in told.output} == {"function_call"}
    for call in told.output:
        assert (call.name, json.loads(call.arguments)) in [("add", {"a": 1}), ("add", {"a": 2}), ("now", {})]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "3"} for call in told.output]
    said = [{"role": "user", "content": "words"}, *told.output]
    silent = [result | {"output": ""} for result in results]
    items = ([*said, *results], [*said, *silent], said[:1])
    counts = [greedy(api, input=given, tools=[ADD]).usage.input_tokens for given in items]
    assert counts[0] == counts[1] + len(results) and counts[1] > counts[2] + len(told.output)
    named = api.responses.create(**asked | {"tool_choice": {"type": "function", "name": "add"}})
    assert [item.name for item in named.output] == ["add"] and named.tools[0].name == "add"


@native
def test_calls_are_streamed(api):
    events = list(
        api.responses.create(model=MODEL, input="words", tools=[ADD, NOW], tool_choice="required", stream=True)
    )
    calls = events[-1].response.output
    for index, call in enumerate(calls):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        assert [own[0].type, own[-1].type] == ["response.output_item.added", "response.output_item.done"]
        assert own[0].item.name == call.name and own[0].item.arguments == ""
        deltas = [event.delta for event in own if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments == own[-2].arguments
        assert own[-2].type == "response.function_call_arguments.done" and own[-2].name == call.name


@native
def test_text_keeps_to_a_schema(api):
    made = api.responses.create(model=MODEL, input="words", text={"format": FORM})
    assert json.loads(made.output_text)["a"] in (1, 2) and made.text.format.type == "json_schema"
    with pytest.raises(openai.BadRequestError, match="cannot guide") as caught:
        api.responses.create(model=MODEL, input="words", text={"format": FORM | {"schema": {"type": "king"}}})
    assert caught.value.param == "text.format"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "stores no responses: send the conversation"),
        ({"conversation": "conv_1"}, "conversation", "stores no responses"),
        ({"store": True}, "store", "leave it out or send false"),
        ({"background": True}, "background", "unsupported value"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported parameter"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "maximum context length"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"input": "a " * 5000}, "input", "shorten the prompt"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"role": "king", "content": "a"}]}, "input.0.role", "'system'"),
        ({"input": [{"role": "user"}]}, "input.0", "an item of type message has content"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "3"}]}, None, "no call before it"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content", "text only"),
        ({"temperature": 1e-9}, None, "use 0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.name", "missing required"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "b"}}, None, "none of the tools"),
    ],
)
def test_a_bad_request_is_told_by_name(api, change, param, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        api.post("/responses", body={**LONG, **change}, cast_to=object)
    assert caught.value.param == param


def test_an_engine_that_breaks_is_an_event(gated):
    engine, url = gated
    engine.permits.release(10_000)
    engine.fail_at = 1
    events = list(client(url).responses.create(**LONG | {"model": "toy-sft", "temperature": 0}, stream=True))
    assert events[-1].type == "error" and "in the middle" in events[-1].message
