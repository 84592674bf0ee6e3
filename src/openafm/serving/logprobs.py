"""Log-probabilities as OpenAI writes them, for chats and for text completions.

They are the model's own, before penalties, masks, temperature and cuts, as vLLM's are by default (`--logprobs-mode
raw_logprobs`). One entry a token that was made, the one that ended the answer too, as
`openafm.sampling.Completion` has it.
"""

from collections.abc import Iterable
from typing import Any

from openafm.model.generation import Choice
from openafm.serving.answer import Characters
from openafm.tokenizer import Tokenizer


class Teller:
    """Tells those of one answer, from its first token to its last."""

    def __init__(self, tokenizer: Tokenizer, chat: bool):
        self._tokenizer, self._chat = tokenizer, chat
        self._characters, self._offset = Characters(tokenizer), 0

    def tell(self, choices: Iterable[Choice]) -> dict[str, Any]:
        """The `logprobs` object of the next tokens."""
        return self._content(choices) if self._chat else self._columns(choices)

    def _content(self, choices: Iterable[Choice]) -> dict[str, Any]:
        content = [
            self._entry(choice.token, choice.logprob)
            | {"top_logprobs": [self._entry(token, logprob) for token, logprob in choice.likeliest]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        piece = self._tokenizer.piece(token)
        return {"token": piece.decode(errors="replace"), "bytes": list(piece), "logprob": logprob}

    def _columns(self, choices: Iterable[Choice]) -> dict[str, Any]:
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for choice in choices:
            told["tokens"].append(self._name(choice.token))
            told["token_logprobs"].append(choice.logprob)
            likeliest = {self._name(token): logprob for token, logprob in choice.likeliest}
            told["top_logprobs"].append(likeliest | {self._name(choice.token): choice.logprob})
            told["text_offset"].append(self._offset)
            self._offset += len(self._characters.push(choice.token))
        return told

    def _name(self, token: int) -> str:
        r"""A token's text; of part of a character `bytes:\xe2\x80`, as OpenAI has it, so that no two are alike."""
        piece = self._tokenizer.piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
