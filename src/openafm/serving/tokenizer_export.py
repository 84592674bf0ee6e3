"""A tokenizer folder as transformers reads it: `tokenizer.json` and `tokenizer_config.json`.

A SentencePiece model trained here becomes the same BPE of Hugging Face's `tokenizers`: its merges follow from its
pieces and their scores. Used by `openafm export MODEL --to hf`.
"""

import json
import shutil
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, processors

from openafm.tokenizer.tokenizer import SPACE_MARK


def write_tokenizer(source: Path, out: Path) -> None:
    """Write the tokenizer of the folder `source` into `out`; a text begins with bos as everywhere here."""
    ours = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    if ours["kind"] == "sentencepiece":
        shutil.copyfile(source / "tokenizer.model", out / "tokenizer.model")
        model = sentencepiece.SentencePieceProcessor(model_proto=(source / "tokenizer.model").read_bytes())
        byte_fallback_bpe(model, ours["bos"]).save(str(out / "tokenizer.json"))
    else:
        shutil.copyfile(source / "tokenizer.json", out / "tokenizer.json")
    theirs = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": ours["bos"],
        "eos_token": ours["eos"],
        "pad_token": ours["pad"],
        "clean_up_tokenization_spaces": False,
        "chat_template": ours["chat_template"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(theirs, indent=1, ensure_ascii=False) + "\n")


def byte_fallback_bpe(model: sentencepiece.SentencePieceProcessor, bos: str) -> tokenizers.Tokenizer:
    """The same tokens for any text, by merges in the order of the pieces' scores.

    Pieces are written with plain spaces, so that a literal U+2581 is no token and is spelled in bytes, as it is here.
    """
    pieces = [model.id_to_piece(i).replace(SPACE_MARK, " ") for i in range(model.vocab_size())]
    apart = (model.is_control, model.is_unknown, model.is_unused, model.is_byte)
    plain = {piece: i for i, piece in enumerate(pieces) if not any(kind(i) for kind in apart)}
    merges = [
        (-model.get_score(i), plain[piece[:cut]], piece[:cut], piece[cut:])
        for piece, i in plain.items()
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
    bpe = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[(left, right) for _, _, left, right in sorted(merges)],
        byte_fallback=True,
        unk_token=pieces[model.unk_id()],
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    control = [AddedToken(piece, normalized=False) for i, piece in enumerate(pieces) if model.is_control(i)]
    tokenizer.add_special_tokens(control)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, pieces.index(bos))]
    )
    return tokenizer
