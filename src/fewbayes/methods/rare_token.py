"""Textual inversion of the rare token, beside any method: its embedding in each text encoder is trained too.

A hook puts a trained row in place of the rare token's; the embedding matrix itself, and with it every other word, is
not touched. The word has to be one token: the pieces of a longer one stand in other words too. Wraps a method and
speaks its verbs. Knows text encoders by `get_input_embeddings`, and nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.errors import UserError
from fewbayes.methods.adapters import copy_state, save_tensors
from fewbayes.methods.registry import Method, MethodSettings, registered
from fewbayes.models.family import embedding_names, tokenizer_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family

FILE = "learned_embeds.safetensors"


class RareToken(Method):
    def __init__(self, method: Method, config: MethodSettings) -> None:
        self.whole = registered()[config.method].kind == "full"
        if self.whole and config.train_text_encoder:
            raise UserError(
                "train_rare_token has nothing to add to method full with train_text_encoder, which trains every "
                "embedding; leave out one of them"
            )
        assert config.rare_token, "the rare token is resolved before the method is made"
        super().__init__(config)
        self.method, self.word = method, config.rare_token
        self._rows: dict[str, nn.Parameter] = {}
        self._ids: dict[str, int] = {}
        self._hooks: list[Any] = []

    def attach(self, family: Family) -> None:
        from torch import nn

        self._ids = {name: _token_id(family, name, self.word) for name in family.text_encoders}  # may refuse: first
        self.method.attach(family)
        for name, embedding in _embeddings(family).items():
            token = self._ids[name]
            self._rows[name] = nn.Parameter(embedding.weight.detach()[[token]].float().clone())
            self._hooks.append(embedding.register_forward_hook(_substitute(token, self._rows[name])))

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        return self.method.trainable(family) | {f"rare_token.{name}": rows for name, rows in self._rows.items()}

    def random(self, family: Family) -> tuple[nn.Module, str]:
        return self.method.random(family)

    @property
    def chosen(self) -> str:
        return self.method.chosen

    def training(self, family: Family, on: bool) -> None:
        self.method.training(family, on)

    def export(self, family: Family, folder: Path) -> None:
        """Whole text encoders are written with the rows in them; adapters get a file of embeddings beside them."""
        if self.whole:
            with self._baked(family):
                self.method.export(family, folder)
            return
        self.method.export(family, folder)
        name = self._name_in_file(family)
        save_tensors(folder / FILE, self._file_state(family, name), {"token": name, "stands_for": self.word})

    def load(self, family: Family, folder: Path) -> None:
        self.method.load(family, folder)
        if self.whole:
            for name, embedding in _embeddings(family).items():
                self._rows[name].data.copy_(embedding.weight[[self._ids[name]]])
            return
        from safetensors.torch import load_file

        copy_state(self._file_state(family, self._name_in_file(family)), load_file(folder / FILE), folder / FILE)

    def detach(self, family: Family) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._rows, self._ids = [], {}, {}
        self.method.detach(family)

    @contextmanager
    def _baked(self, family: Family) -> Iterator[None]:
        """The trained rows stand in the embedding matrices inside, the old ones outside, bit for bit."""
        weights = {name: embedding.weight for name, embedding in _embeddings(family).items()}
        before = {name: weight.detach()[[self._ids[name]]].clone() for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data[[self._ids[name]]] = self._rows[name].detach().to(weight)
            yield
        finally:
            for name, weight in weights.items():
                weight.data[[self._ids[name]]] = before[name]

    def _file_state(self, family: Family, name: str) -> dict[str, nn.Parameter]:
        return {key: self._rows[encoder] for encoder, key in embedding_names(family, name).items()}

    def _name_in_file(self, family: Family) -> str:
        """The word, or one made of it where tokenizers know it already: loaders refuse to overwrite a known word."""
        known = any(self.word in tokenizer.get_vocab() for tokenizer in family.tokenizers.values())
        return f"<{self.word.strip('<>')}-learned>" if known else self.word


def _embeddings(family: Family) -> dict[str, nn.Embedding]:
    return {name: cast("Any", encoder).get_input_embeddings() for name, encoder in family.text_encoders.items()}


def _token_id(family: Family, encoder: str, word: str) -> int:
    tokenizer = family.tokenizers[tokenizer_of(encoder)]
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise UserError(f"rare_token {word!r} is unknown to the tokenizer of the model; choose another word")
    if len(ids) > 1:
        raise UserError(
            f"rare_token {word!r} is {len(ids)} tokens to the tokenizer of the model, and train_rare_token learns one: "
            "the others stand in other words too; choose another word, or leave out train_rare_token"
        )
    return ids[0]


def _substitute(token: int, row: nn.Parameter) -> Any:
    import torch

    def hook(embedding: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.where((args[0] == token).unsqueeze(-1), row.to(output), output)

    return hook
