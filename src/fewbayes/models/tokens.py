"""CLIP's tokenizers: prompts to numbers, how long a prompt or a word is, and files that older programs read.

Knows no text encoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SLOW_TOKENIZER = ("vocab.json", "merges.txt", "added_tokens.json")


def token_ids(tokenizer: Any, prompts: Sequence[str], longest: int | None = None) -> Tensor:
    """(batch, longest), padded and cut; None: the tokenizer's length."""
    longest = longest or tokenizer.model_max_length
    padded = tokenizer(list(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    return padded.input_ids


def chat_ids(tokenizer: Any, prompts: Sequence[str], longest: int, *, thinking: bool) -> tuple[Tensor, Tensor]:
    """What a user says to a language model that is about to answer: ids and what is no padding, (batch, longest)."""
    said = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for prompt in prompts
    ]
    padded = tokenizer(said, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    return padded.input_ids, padded.attention_mask


def prompt_length(tokenizer: Any, prompt: str) -> int:
    """Tokens of the whole prompt, its start and its end included."""
    return len(tokenizer(prompt, verbose=False).input_ids)


def word_length(tokenizer: Any, word: str) -> int:
    """How many tokens the word is split into; 0 if a part of it is unknown to the tokenizer."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return 0 if tokenizer.unk_token_id in ids else len(ids)


def write_slow_tokenizer(tokenizer: Any, folder: str | Path, *, like: str | Path | None = None) -> None:
    """Write the files that transformers 4 reads into a saved tokenizer's folder; transformers 5 leaves them out.

    tokenizer: a CLIPTokenizer; its byte pairs become vocab.json and merges.txt, words added to them (a rare token)
    added_tokens.json. like: a folder whose files, if it has the first two, are copied instead.
    """
    folder, like = Path(folder), Path(like) if like else None
    if like and all((like / name).is_file() for name in SLOW_TOKENIZER[:2]):
        for name in SLOW_TOKENIZER:
            if (like / name).is_file():
                shutil.copyfile(like / name, folder / name)
        return
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = backend["model"]["vocab"], backend["model"]["merges"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    added = {token["content"]: token["id"] for token in backend["added_tokens"] if token["content"] not in vocabulary}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")
