"""This project's models in EleutherAI's lm-evaluation-harness: the model class `openafm`.

Importing this module registers it (extra `evaluation`), so any task of the harness runs on a model folder, a package or
one of its adapters; `openafm evaluate MODEL --lm-eval hellaswag` does. Requests are treated as by the harness's own
Hugging Face class, token by token: the same splits, the same truncation from the left, the same stops
(`benchmarks/harness_bridge.py` holds both on the same tasks).
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from openafm.evaluation.evaluate import open_model
from openafm.evaluation.suite.subject import logprobs
from openafm.model import Transformer
from openafm.model.generate import generate
from openafm.tokenizer import Tokenizer
from openafm.tokenizer.tokenizer import HuggingFaceTokenizer

FIRST_PIECE = 32
"""Tokens generated before stop sequences are looked for; each further piece is as long as all before it."""
Report = Callable[[str, float, float | None], None]


@register_model("openafm")
class OpenAFM(TemplateLM):
    """A model for the harness: `--model openafm --model_args pretrained=FOLDER,adapter=NAME`."""

    def __init__(
        self,
        pretrained: str | Path = "",
        *,
        model: Transformer | None = None,
        tokenizer: Tokenizer | None = None,
        adapter: str = "",
        batch_size: int | str | None = 32,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        device: str | None = None,
        report: Report = lambda label, done, total: None,
    ):
        """Open the model folder or package `pretrained`, or take `model` and `tokenizer` as they are.

        Texts begin with the tokens that the model's own tokenizer begins them with; `add_bos_token` says otherwise.
        Raises ValueError where there is no model, or for a device: models run where torch holds them, on the CPU.
        """
        super().__init__()
        if device not in (None, "cpu"):
            raise ValueError(f"device={device}: the openafm model runs on the CPU; for other devices export it to hf")
        if model is None or tokenizer is None:
            opened = open_model(Path(pretrained), adapter)
            model, tokenizer = opened.model, opened.tokenizer
        self.transformer, self.own_tokenizer = model, tokenizer
        self.batch = batch_size if isinstance(batch_size, int) else 32
        self.max_length = max_length or model.config.max_length
        self.max_gen_toks, self._report = max_gen_toks, report
        self._begin = begins_with(tokenizer) if add_bos_token is None else [tokenizer.bos_id] * add_bos_token
        self._chats: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.own_tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on."""
        return self.own_tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Of the harness's cache of requests."""
        return f"openafm-{self.own_tokenizer.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text. What `apply_chat_template` made comes back as the chat's own tokens, roles and all."""
        for text, tokens in self._chats.items():
            if string.startswith(text):
                return tokens + self.own_tokenizer.encode(string[len(text) :])
        begin = self._begin if add_special_tokens is None else [self.own_tokenizer.bos_id] * add_special_tokens
        return begin + self.own_tokenizer.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a rendered chat. Its tokens are kept, so that no message can pose as another's role."""
        tokens = self.own_tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)
        text = b"".join(map(self.own_tokenizer.piece, tokens)).decode("utf-8", "replace")
        self._chats = {text: tokens, **self._chats}
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What the harness notes of the template: it is the model folder's."""
        return "openafm" if chat_template else None

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, greedy) of each request; what is too long is cut on the left."""
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]) + len(pairs[i][1]), *pairs[i][0]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for start in range(0, len(order), 4 * self.batch):  # in the order of length: progress, and equal inputs meet
            part = order[start : start + 4 * self.batch]
            self._report("texts scored", start, len(order))
            for i, score in zip(part, logprobs(self.transformer, [pairs[i] for i in part]), strict=True):
                found[i] = score
        return found

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        whole = (context + continuation)[-(self.max_length + 1) :]
        kept = min(len(continuation), len(whole) - 1)
        return whole[:-kept], whole[-kept:]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each whole text in nats, in windows of the model's length that share one token."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolled = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, rolled):
                windows.append((None, *window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context up to its first stop sequence, the end of the text, or `max_gen_toks` tokens."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            contexts = [requests[number].args[0] for number in numbers]
            for number, text in zip(
                numbers, self._generated(contexts, dict(requests[numbers[0]].args[1])), strict=True
            ):
                answers[number] = text
        return answers

    def _generated(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        """The texts after contexts that share their settings. Raises ValueError for settings not carried out here."""
        asked = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        most, sampled = int(asked.pop("max_gen_toks")), bool(asked.pop("do_sample", False))
        temperature = float(asked.pop("temperature", 0.0) or 0.0) if sampled else 0.0
        top_k = int(asked.pop("top_k", 0) or 0)
        ending = b"".join(map(self.own_tokenizer.piece, [self.eot_token_id])).decode()
        until = handle_stop_sequences(asked.pop("until", None), eos=ending)
        if asked.pop("top_p", 1.0) not in (None, 1, 1.0) or any(asked.values()):
            raise ValueError(f"generation settings {sorted(settings)}: until, temperature, top_k and lengths are known")
        if most >= self.max_length:
            raise ValueError(f"max_gen_toks {most} leaves no room for a prompt in {self.max_length} tokens")
        prompts = [self.tok_encode(context)[-(self.max_length - most) :] for context in contexts]
        made = self._until(prompts, until, most, temperature, top_k)
        return [postprocess_generated_text(self.own_tokenizer.decode(tokens), until, None) for tokens in made]

    def _until(
        self, prompts: list[list[int]], until: Iterable[str], most: int, temperature: float, top_k: int
    ) -> list[list[int]]:
        """At most `most` tokens after each prompt, in pieces: an answer that holds a stop sequence is not continued.

        A prompt is read once more for each piece, and pieces double, so nothing is read more than log2(most) times.
        """
        stops = [stop for stop in until if stop]
        made: list[list[int]] = [[] for _ in prompts]
        going, done, seed = list(range(len(prompts))), 0, 0
        while going and done < most:
            piece = min(most - done, max(FIRST_PIECE, done))
            self._report("answers", len(prompts) - len(going), len(prompts))
            rows = generate(
                self.transformer, [prompts[i] + made[i] for i in going], max_tokens=piece,
                stop_ids={self.eot_token_id}, temperature=temperature, top_k=top_k, seed=seed, batch=self.batch,
            )  # fmt: skip
            for i, row in zip(going, rows, strict=True):
                made[i] += row.tokens
            ended = {i for i, row in zip(going, rows, strict=True) if row.finished}
            going = [i for i in going if i not in ended and not self._stopped(made[i], stops)]
            done, seed = done + piece, seed + 1
        return made

    def _stopped(self, tokens: list[int], stops: list[str]) -> bool:
        text = self.own_tokenizer.decode(tokens)
        return any(stop in text for stop in stops)


def begins_with(tokenizer: Tokenizer) -> list[int]:
    """Tokens that every text begins with: as `tokenizer.json` has it, or the beginning of text of tokenizers trained
    here, whose models have never read a text without it."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return list(tokenizers.Tokenizer.from_str(tokenizer.json()).encode("").ids)
    return [tokenizer.bos_id]
