"""Reading JSON, JSON lines and YAML into typed values, with bounds on what a file may ask for.

A schema is a frozen dataclass beside the code that writes the file (or uses it, for files of other programs), with
bounds such as `Annotated[int, Meta(ge=1)]` on its fields; keys that it does not name are passed over. Whatever a file
holds, reading it ends in a value of that type or in a UserError that names file, key, what was found and what is
wanted. Refused before they cost anything: files above a size, nesting above a depth, YAML aliases that expand, keys
given twice, numbers that are not finite or wider than 64 bits, NUL bytes, text that is not UTF-8. A byte order mark at
the beginning is passed over. Knows no file of ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import yaml
from msgspec import Meta

from fewbayes.errors import UserError

T = TypeVar("T")

MOST_BYTES = 2**27
"""Of a JSON file; the largest that we write, the metrics of a long run, has a few million."""
MOST_YAML = 2**17
"""Of a YAML file, which takes a second or two to parse; a config has a few thousand bytes."""
MOST_TEXT = 2**20
"""Of a text file, such as a caption."""
DEEPEST = 64
"""Lists and tables inside each other."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


def read_json(path: str | Path, kind: type[T], *, cure: str = "", limit: int = MOST_BYTES) -> T:
    """The value in a JSON file. cure: the way out, said after whatever is wrong; limit: bytes."""
    return typed(plain_json(path, cure=cure, limit=limit), kind, str(path), cure=cure)


def read_yaml(path: str | Path, kind: type[T], *, cure: str = "") -> T:
    """The value in a YAML file; an empty file holds null."""
    return typed(plain_yaml(path, cure=cure), kind, str(path), cure=cure)


def read_json_lines(path: str | Path, kind: type[T], *, cure: str = "", torn: bool = False) -> list[T]:
    """The rows of a file with one JSON value a line; empty lines are none.

    torn: the last line is a row only if it is ended: a writer that was killed may have left a part of one.
    """
    return [typed(row, kind, where, cure=cure) for where, row in plain_json_lines(path, cure=cure, torn=torn)]


def read_text(path: str | Path, limit: int = MOST_TEXT, cure: str = "", *, torn: bool = False) -> str:
    """The text of a UTF-8 file of at most `limit` bytes. torn: up to its last whole line."""
    path = Path(path)
    try:
        if not path.is_file():
            refuse(f"{path} is {'no file' if path.exists() else 'missing'}", cure)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        refuse(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})", cure)
    if len(data) > limit:
        refuse(f"{path} has more than {limit:,} bytes, which is too large for what it should hold", cure)
    if torn:
        data = data[: data.rfind(b"\n") + 1]
    if b"\0" in data:
        refuse(f"{path} is damaged or no text: it holds NUL bytes", cure)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"{path} is damaged or no text: byte {error.start} is not UTF-8", cure)


def plain_json(path: str | Path, *, cure: str = "", limit: int = MOST_BYTES) -> Any:
    """The value in a JSON file as lists and dictionaries: bounded, but of no known type."""
    return parse_json(read_text(path, limit, cure), str(path), cure=cure)


def plain_yaml(path: str | Path, *, cure: str = "") -> Any:
    """The value in a YAML file as lists and dictionaries: bounded, but of no known type."""
    return parse_yaml(read_text(path, MOST_YAML, cure), str(path), cure=cure)


def plain_json_lines(path: str | Path, *, cure: str = "", torn: bool = False) -> list[tuple[str, Any]]:
    """The values of a file with one JSON value a line, each with the place where it stands, for messages."""
    text = read_text(path, MOST_BYTES, cure, torn=torn)
    lines = ((f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1))
    return [(where, parse_json(line, where, cure=cure)) for where, line in lines if line and not line.isspace()]


def each_row(path: Path, kind: type[T]) -> Iterator[T | None]:
    """Line by line what a file with one JSON value a line holds, None for a line that is torn or of another type.

    For readers that show what there is: a file that is missing has no lines.
    """
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            if line and not line.isspace():
                yield typed(parse_json(line, path.name), kind, path.name)
        except UserError:
            yield None


def parse_json(text: str, where: str, *, cure: str = "") -> Any:
    """The value that a JSON text holds. where: what the text is, for messages."""
    try:
        value = _JSON.decode(text)
    except RecursionError:
        refuse(f"{where} is nested too deep (limit {DEEPEST})", cure)
    except (ValueError, OverflowError) as error:
        refuse(f"{where} is not JSON ({error})", cure)
    # Only where the text can hold any of it is the value walked through.
    if text.count("[") + text.count("{") > DEEPEST or "\\u0000" in text or "\\ud" in text or "\\uD" in text:
        _check_plain(value, where, cure)
    return value


def parse_yaml(text: str, where: str, *, cure: str = "") -> Any:
    """The value that a YAML text holds. where: what the text is, for messages."""
    try:
        value = yaml.load(text, Loader=_Yaml)
    except RecursionError:
        refuse(f"{where} is nested too deep (limit {DEEPEST})", cure)
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # all that PyYAML raises
        refuse(f"{where} cannot be read as YAML: {error}", cure)
    _check_plain(value, where, cure)
    return value


def typed(value: Any, kind: type[T], where: str, *, cure: str = "") -> T:
    """A plain value as one of type `kind`; UserError names the key, what was found and what is wanted."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        refuse(_explained(str(error), value, where), cure)


def refuse(problem: str, cure: str = "") -> NoReturn:
    """Raises the UserError of a file, with the way out where there is one."""
    raise UserError(f"{problem}; {cure}" if cure else problem) from None


# --- what a file may hold ---------------------------------------------------------------------------------------------


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return table


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"{text[:20]}... is too large a whole number")
    return value


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_whole, parse_float=_number, parse_constant=_number)


class _Yaml(yaml.SafeLoader):
    """YAML without what expands: aliases stand for single values only, and each key of a table is given once."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested too deep (limit {DEEPEST})")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError("an alias (*) stands for a list or a table; write it out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(keys) > len(set(keys)) else []
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} is given twice")
        return super().construct_mapping(node, deep)


def _check_plain(value: Any, where: str, cure: str) -> None:
    """Refuses depth, NUL and half characters in text, and numbers that no field of ours can be."""
    level = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for found in level:
            if isinstance(found, dict):
                below += [*found.keys(), *found.values()]
            elif isinstance(found, (list, tuple, set)):
                below += found
            elif isinstance(found, str) and not _is_text(found):
                refuse(f"{where} holds text with NUL or half a character: {found[:40]!r}", cure)
            elif isinstance(found, float) and not math.isfinite(found):
                refuse(f"{where} holds {found}, which is not a finite number", cure)
            elif isinstance(found, int) and not -(2**63) <= found < 2**64:
                refuse(f"{where} holds too large a whole number", cure)
        if not below:
            return
        level = below
    refuse(f"{where} is nested too deep (limit {DEEPEST})", cure)


def _is_text(text: str) -> bool:
    return text.isprintable() or ("\0" not in text and not re.search("[\ud800-\udfff]", text))


# --- what is wrong, in words ------------------------------------------------------------------------------------------

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a table of named values",
}
_COMPARED = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}


def _explained(message: str, value: Any, where: str) -> str:
    """msgspec's message in our words, with what was found.

    >>> _explained("Expected `int` >= 1 - at `$.model.layers`", {"model": {"layers": -2}}, "config.json")
    'config.json: model.layers is -2; it must be a whole number of at least 1'
    """
    problem, _, place = message.partition(" - at `")
    place = place.rstrip("`").removeprefix("key` in `")
    key = place.removeprefix("$").removeprefix(".")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", problem):
        return f"{where}: {key}{'.' if key else ''}{missing[1]} is missing"
    named = f"{where}: {key} is" if key else f"{where} holds"
    found = _found(value, place)
    if problem.startswith("Invalid enum value"):
        return f"{named} {found}, which is no value that is known here"
    wanted = re.sub(r"^Expected ", "", problem).partition(", got ")[0]
    wanted = re.sub(r"`([^`]*)`", lambda kinds: " or ".join(_KINDS.get(k, k) for k in kinds[1].split(" | ")), wanted)
    wanted = re.sub(r"of length (>=|<=)", lambda sign: f"of length {_COMPARED[sign[1]][3:]}", wanted)
    wanted = re.sub(r" (>=|<=|>|<) (?=\S+$)", lambda sign: f" {_COMPARED[sign[1]]} ", wanted)
    return f"{named} {found}; it must be {wanted}"


def _found(value: Any, place: str) -> str:
    """What stands at a place such as `$.a[2].b`, in short."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", place):
        try:
            value = value[name] if name else value[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return "something else"
    if isinstance(value, (dict, list)):
        return f"{'a' if value else 'an empty'} {'table' if isinstance(value, dict) else 'list'}"
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
