"""Guided answers of a model of random weights, which writes nothing sensible by itself, are valid all the same."""

import json
import re

import jsonschema
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.random_models import SHAPE, TEXT, packed, random_model

from openafm.engine import NativeEngine, TorchEngine
from openafm.engine.guidance import WHOLE, ending, json_schema, lark, regex
from openafm.engine.native_engine import missing
from openafm.model.checkpoint import save_model
from openafm.tokenizer import load

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
IDENTIFIED = {"type": "object", "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 99}},
              "required": ["id"], "additionalProperties": False}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["bird", "fish", "n\u00e4chtlich"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 500}, "maxItems": 3},
        "alive": {"type": "boolean"},
        "parent": {"anyOf": [{"type": "null"}, IDENTIFIED]},
    },
    "required": ["name", "kind", "sizes", "alive", "parent"],
    "additionalProperties": False,
}  # fmt: skip
SIMPLE = {"type": "object", "properties": {"a": {"enum": [1, 2, "three"]}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A model folder with a tokenizer as imported models have it."""
    folder = tmp_path_factory.mktemp("byte_level")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", "<end>"]
    )
    made.train_from_iterator(["some words to learn from, a few of them twice"] * 4, trainer)
    made.save(str(folder / "tokenizer.json"))
    config = {
        "kind": "tokenizers",
        "chat_template": "",
        "bos": "<s>",
        "eos": "</s>",
        "end_of_turn": "<end>",
        "pad": "<s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = SHAPE.model_copy(update={"vocab_size": made.get_vocab_size()})
    save_model(random_model(shape), folder)
    return folder


@pytest.fixture(params=["sentencepiece", "byte_level"])
def folder(request, package, byte_level):
    return package if request.param == "sentencepiece" else byte_level


def text_of(engine, tokens, stops=True):
    ended = tokens[-1] in (engine.tokenizer.eos_id, engine.tokenizer.end_of_turn_id)
    assert ended or not stops
    return engine.tokenizer.decode(tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_json_is_always_valid(folder, temperature):
    engine = NativeEngine.load(folder, threads=2)
    grammar = json_schema(SCHEMA)
    for seed in range(12):
        made = engine.generate([5, 6, 7], max_tokens=500, temperature=temperature, seed=seed, grammar=grammar)
        jsonschema.validate(json.loads(text_of(engine, list(made))), SCHEMA)


NUMBERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["number", "integer", ["number", "null"]])},
    optional={
        "minimum": st.floats(-1e17, 1e17), "maximum": st.floats(-1e17, 1e17), "exclusiveMinimum": st.integers(-9, 9),
        "multipleOf": st.just(0.5), "enum": st.just([1e-12, 5]),
    },
)  # fmt: skip


@given(schema=NUMBERS, value=st.one_of(st.none(), st.integers(-(10**18), 10**18), st.floats(-20, 20), st.just(1e-12)))
@settings(max_examples=300, deadline=None)
def test_numbers_that_end_fit_the_schema_that_was_given(schema, value):
    nested = {"type": "object", "properties": {"a": {"anyOf": [{"type": "array", "items": schema}]}}}
    made = json.loads(ending(nested))["properties"]["a"]["anyOf"][0]["items"]
    kept = {key: value for key, value in schema.items() if "imum" not in key}
    assert made.items() >= kept.items()  # only narrower
    assert made.get("minimum", 0) >= schema.get("minimum", -WHOLE)
    assert made.get("maximum", 0) <= schema.get("maximum", WHOLE)
    bounded = jsonschema.Draft202012Validator(made).is_valid
    if not schema.keys() & {"enum", "multipleOf"}:
        assert not bounded(10**18) or schema.get("minimum", 0) >= 1e15 or schema.get("exclusiveMinimum", 0) >= 1e15
    if bounded(value):
        assert jsonschema.Draft202012Validator(schema).is_valid(value)


def test_bounds_between_two_decimals_are_moved_inwards():
    made = json.loads(ending({"type": "number", "exclusiveMinimum": -36.81, "maximum": -25.810000000000002}))
    assert made == {"type": "number", "exclusiveMinimum": -36.81, "maximum": -25.8100000001, "multipleOf": 1e-10}
    made = json.loads(ending({"type": "number", "minimum": 0.12345678901, "exclusiveMaximum": 7.00000000001}))
    assert (made["minimum"], made["exclusiveMaximum"]) == (0.1234567891, 7.0000000001)


def test_a_model_that_likes_digits_comes_to_an_end(folder):
    engine = NativeEngine.load(folder, threads=2)
    for bounds in ({"minimum": 5.48, "maximum": 342.48}, {}):
        wanted = {"type": "array", "items": {"type": "number", **bounds}, "minItems": 3, "maxItems": 3}
        for seed in range(6):
            made = engine.generate([5, 6, 7], max_tokens=300, temperature=1.5, seed=seed, grammar=json_schema(wanted))
            jsonschema.validate(json.loads(text_of(engine, list(made))), wanted)


def test_a_schema_nested_without_end_is_refused():
    deep: dict = {"type": "string"}
    for _ in range(2000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match=r"too deeply"):
        json_schema(deep)


def test_expressions_and_grammars(folder):
    engine = NativeEngine.load(folder, threads=2)
    pattern = "(no|yes), [0-9]{2,4} \u00b0C"
    arithmetic = 'start: term ("+" term)~1..3\nterm: /[0-9]/ | "(" term "*" term ")"\n'
    for seed in range(6):
        options = {"max_tokens": 120, "seed": seed}
        assert re.fullmatch(pattern, text_of(engine, list(engine.generate([5], grammar=regex(pattern), **options))))
        text = text_of(engine, list(engine.generate([5], grammar=lark(arithmetic), **options)), stops=False)
        assert re.match(r"[0-9(]", text) and not set(text) - set("0123456789+*()")


def test_speculation_and_batches_are_guided_as_well(package, tokenizer, tmp_path):
    plain = NativeEngine.load(package, threads=2)
    small = packed(SHAPE.model_copy(update={"n_layers": 1}), tmp_path / "model.afm", tokenizer, (4,))
    grammar, options = json_schema(SCHEMA), {"max_tokens": 500}
    prompts = [TEXT[:9] * 3, [5, 6]]
    expected = [list(plain.generate(p, temperature=0.0, grammar=grammar, **options)) for p in prompts]
    for draft in ("lookup", NativeEngine.load(small, threads=1)):
        engine = NativeEngine.load(package, threads=2, draft=draft)
        assert [list(engine.generate(p, temperature=0.0, grammar=grammar, **options)) for p in prompts] == expected
        drawn = list(engine.generate(prompts[0], seed=3, grammar=grammar, **options))
        jsonschema.validate(json.loads(text_of(engine, drawn)), SCHEMA)
    batch = plain.batch(prompts, temperature=0.0, grammar=grammar, **options)
    assert [[*answer.tokens, answer.stop] for answer in batch] == expected


def test_what_cannot_guide_is_refused(package):
    for make, wrong in ((json_schema, {"type": "animal"}), (regex, "(("), (lark, "start: nothing")):
        with pytest.raises(ValueError, match="cannot guide"):
            make(wrong)
    with pytest.raises(ValueError, match="native engine"):
        next(TorchEngine.load(package).generate([5], max_tokens=3, grammar=json_schema(SIMPLE)))
    with pytest.raises(ValueError, match="guided"):
        next(NativeEngine.load(package, threads=1).generate([5], max_tokens=3, grammar="nonsense"))


@pytest.fixture(scope="module")
def pieces_of(tokenizer):
    found = load(tokenizer)
    return found, found.pieces()


@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_pieces_are_the_bytes_of_the_text(pieces_of, text):
    found, pieces = pieces_of
    assert b"".join(pieces[token] for token in found.encode(text)) == text.encode()
    assert [pieces[i] for i in (found.bos_id, found.eos_id, found.end_of_turn_id, found.pad_id)] == [None] * 4


def test_a_panic_of_the_library_is_an_error_of_the_grammar():
    """llguidance 1.9 cuts what it shows of a wrong schema in the middle of a character."""
    wrong = {"type": "\u00e9" * 50}
    for make in (json_schema, lambda schema: lark(f"start: %json {json.dumps(schema, ensure_ascii=False)}")):
        with pytest.raises(ValueError, match=r"grammar|schema"):
            make(wrong)
