"""Settings as fields of a dataclass: type and default, limits beside the default, and the docstring below as the help.

    rank: int = setting(4, above=0)
    \"""Rank of the low-rank matrices.\"""

Knows how a value is converted and checked, with one kind of message for whoever asks. Does not know where values come
from, nor any setting; standard library only.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fewbayes.errors import UserError


@dataclass(frozen=True, kw_only=True)
class About:
    """What a field says of itself beside its type, default and docstring."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    must: tuple[Callable[[Any], bool], str] | None = None
    """Any other limit: whether a value keeps it, and the limit in words."""
    choices: tuple[str, ...] = ()
    """The values there are, where a Literal cannot list them."""
    patterns: tuple[str, ...] = ()
    """The words there are; beside them pattern:<regular expression> is allowed."""
    needs: str | None = None
    """The switch without which nothing uses the setting."""
    group: str | None = None
    """Heading of the help; in a class it holds for the fields below too, until the next."""
    more: str = ""
    """Added to the docstring in the help: what is only known at run time."""
    value: str | None = None
    """The word for a value in the help."""
    positional: bool = False
    """Given without a flag."""
    several: bool = False
    """One flag takes all words up to the next flag."""
    joined: str = ""
    """A list in YAML is one text with this between its items."""
    free_on_resume: bool = False
    """Changes no trained weight: a run goes on whatever its value."""
    unsaid_if_default: bool = False
    """Came after the first runs: at its default they go on."""
    own_none: bool = False
    """None has a meaning of its own, so that a model cannot recommend another value."""


def setting(default: Any = MISSING, **about: Any) -> Any:
    """A field with its `About`."""
    return dataclasses.field(default=default, metadata={"about": About(**about)})


@dataclass(frozen=True)
class Setting:
    """One field, with all that is known of it. kind: its type, of an item where it is many, and without None."""

    name: str
    kind: type
    many: bool
    may_be_none: bool
    choices: tuple[str, ...]
    default: Any
    doc: str
    about: About

    @property
    def needed(self) -> bool:
        return self.default is MISSING

    def convert(self, value: Any) -> Any:
        """A value from YAML or a flag in the type of the field; UserError where it has none."""
        if self.many:
            return tuple(map(self._one, value))
        if self.may_be_none and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
            return None
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if self.kind is bool:
            return self._boolean(value)
        if self.kind is int:
            return self._integer(value)
        if self.kind is float:
            return self._real(value, "a number")
        if value is False and "no" in self.choices:
            return "no"  # YAML reads a bare no as false
        if self.about.joined and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return self.about.joined.join(value)
        if not isinstance(value, (str, self.kind)):
            raise UserError(f"{self.name} is {value!r}; it must be text (in YAML, put it in quotes)")
        return self.kind(value)

    def _boolean(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        name = self.name
        raise UserError(f"{name} is {value!r}; it must be true or false (on the command line --{name} or --no-{name})")

    def _integer(self, value: Any) -> int:
        number = self._real(value, "a whole number")
        if not math.isfinite(number) or number != int(number):
            raise UserError(f"{self.name} is {value}; it must be a whole number")
        return int(str(value)) if re.fullmatch(r"[+-]?\d+", str(value)) else int(number)

    def _real(self, value: Any, wanted: str) -> float:
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            return float(value)  # text too: YAML reads 5e-6, without a point, as text
        except (ValueError, OverflowError):
            raise UserError(f"{self.name} is {value!r}; it must be {wanted}") from None

    def check(self, value: Any) -> None:
        """UserError with value and limit where the value is not allowed."""
        for item in value if self.many else () if value is None else (value,):
            self._check(item)

    def _check(self, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{self.name} is {value}; it must be a finite number")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise UserError(f"{self.name} holds a sign that no file of text can: {value!r}")
        if self.needed and isinstance(value, str) and not value.strip():
            raise UserError(f"{self.name} is empty")
        if self.choices and value not in self.choices:
            raise UserError(f"{self.name} is {value!r}; it must be one of {', '.join(self.choices)}")
        if self.about.patterns:
            self._check_pattern(value)
        holds, limit = self._limit()
        if not holds(value):
            shown = repr(value) if isinstance(value, str) else value
            raise UserError(f"{self.name} is {shown}; it must be {limit}")

    def _limit(self) -> tuple[Callable[[Any], bool], str]:
        about = self.about
        if about.must:
            return about.must
        low = about.above if about.at_least is None else about.at_least
        if low is None:
            return (lambda _: True), ""
        high = math.inf if about.below is None else about.below
        words = f"greater than {low}" if about.at_least is None else f"{low} or more"
        if about.below is not None:
            words = f"{'at least' if about.above is None else 'above'} {low} and below {high}"
        return (lambda value: (low < value if about.at_least is None else low <= value) and value < high), words

    def _check_pattern(self, value: Any) -> None:
        kind, colon, pattern = value.partition(":")
        if kind == "pattern" and colon:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"{self.name} is {value!r}, which is not a regular expression ({error})") from error
        elif value not in self.about.patterns:
            raise UserError(
                f"{self.name} is {value!r}; it must be one of {', '.join(self.about.patterns)}, or "
                f"pattern:<regular expression>{did_you_mean(value, self.about.patterns)}"
            )


@cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The fields of a dataclass by name, in the order of the class."""
    hints, docs = get_type_hints(cls), field_docs(cls)
    return {
        field.name: _setting(field, hints[field.name], docs.get(field.name, ""))
        for field in dataclasses.fields(cls)
        if field.init
    }


def _setting(field: dataclasses.Field[Any], hint: Any, doc: str) -> Setting:
    about = field.metadata.get("about", About())
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = next(member for member in members if member is not NoneType)
    many = get_origin(kind) is tuple
    kind = get_args(kind)[0] if many else kind
    choices = get_args(kind) if get_origin(kind) is Literal else about.choices
    kind = str if choices else kind
    return Setting(field.name, kind, many, NoneType in members, choices, field.default, doc, about)


def check_fields(instance: Any) -> None:
    """UserError for the first field whose value is not allowed."""
    for name, each in settings_of(type(instance)).items():
        each.check(getattr(instance, name))


def compose(classes: Sequence[type]) -> Any:
    """One class with the fields of all; TypeError where two mean different things by one name."""
    seen: dict[str, tuple[Setting, str]] = {}
    for cls in classes:
        for name, each in settings_of(cls).items():
            known, where = seen.setdefault(name, (each, cls.__name__))
            if known != each:
                raise TypeError(
                    f"{cls.__name__}.{name} is not what {where}.{name} is; take another name, or let both classes "
                    "inherit the field from one"
                )
    bases = [cls for cls in dict.fromkeys(classes) if not any(issubclass(o, cls) and o is not cls for o in classes)]
    return type("Composed", tuple(bases), {"__module__": __name__})


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field, of the class and of those that it inherits from."""
    docs: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        source = getattr(sys.modules.get(each.__module__), "__file__", None)
        if source and dataclasses.is_dataclass(each):
            docs |= _docs_in(source).get(each.__name__, {})
    return docs


@cache
def _docs_in(file: str) -> dict[str, dict[str, str]]:
    """By class and field."""
    docs: dict[str, dict[str, str]] = {}
    for each in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(each, ast.ClassDef):
            pairs = zip(each.body, each.body[1:], strict=False)
            docs[each.name] = dict(found for field, below in pairs if (found := _documented(field, below)))
    return docs


def _documented(field: ast.stmt, below: ast.stmt) -> tuple[str, str] | None:
    match field, below:
        case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
            return name, " ".join(text.split())
    return None


def did_you_mean(name: str, among: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(among), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
