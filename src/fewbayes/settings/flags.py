"""Reading the fields of a dataclass from flags and YAML, and the help of a command.

Names take hyphens or underscores, `--key=value` works too, switches are bare: --bayes, --no-bayes. A field of many
values takes its flag again for each, or all words after one flag where it says `several`. All that is not known is
refused in one message. Knows no single setting.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fewbayes.errors import UserError
from fewbayes.fields import Setting, check_fields, did_you_mean, settings_of
from fewbayes.files.decode import plain_yaml

T = TypeVar("T")
LINE = "command line"


@dataclass(frozen=True)
class Names:
    """The names that settings go by: their own, those of other programs, and what to do instead of flags of others."""

    settings: Mapping[str, Setting]
    aliases: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)

    def own(self, key: Any) -> str:
        plain = str(key).replace("-", "_")
        return self.aliases.get(plain, plain)

    def switch(self, name: str) -> tuple[str, bool] | None:
        """The switch and its position where a flag is one: bayes or no_bayes."""
        for known, on in ((name, True), (name.removeprefix("no_"), False)):
            if known in self.settings and self.settings[known].kind is bool and (on or known != name):
                return known, on
        return None

    def known(self, keys: Iterable[str], source: str) -> None:
        """UserError for the keys that are no settings, all of them in one message."""
        lines = []
        for key in keys:
            if key in self.instead:
                lines.append(f"{key} is not a setting here: {self.instead[key]}")
            elif key not in self.settings:
                lines.append(f"{key} is not a setting{did_you_mean(key, [*self.settings, *self.aliases])}")
        if lines:
            raise UserError("\n".join(f"{source}: {line}" for line in lines))

    def named(self, given: Iterable[tuple[Any, Any]], source: str) -> dict[str, Any]:
        """Values by our names; UserError for a name that is given twice or not known."""
        named: dict[str, Any] = {}
        for key, value in given:
            name = self.own(key)
            if name in named:
                if name not in self.settings or not self.settings[name].many:
                    raise UserError(f"{source}: {name} is given twice")
                value = [*named[name], *value]
            named[name] = value
        self.known(named, source)
        return named

    def converted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.settings[name].convert(value) for name, value in given.items()}


# --- flags ------------------------------------------------------------------------------------------------------------


def parse_command(cls: type[T], arguments: Sequence[str], command: str, about: str | None = None) -> T:
    """What is asked of a command, as an instance of its dataclass, checked. With --help prints it and exits.

    about: opens the help; None: the docstring of the class does.
    """
    settings = settings_of(cls)
    if asks_for_help(arguments):
        places = [_value(each) for each in settings.values() if each.about.positional]
        usage = " ".join(["usage: fewbayes", command, *places, "[--key value ...]"])
        print(help_text(settings.values(), f"{usage}\n\n{about or cls.__doc__}\n"))
        raise SystemExit(0)
    names = Names(settings)
    given = names.converted(names.named(take_flags(names, arguments), LINE))
    missing = [name for name, each in settings.items() if each.needed and name not in given]
    if missing:
        raise UserError(f"missing: {', '.join(missing)} (fewbayes {command} --help says more)")
    asked = cls(**given)
    check_fields(asked)
    return asked


def asks_for_help(arguments: Iterable[str]) -> bool:
    return any(token in ("--help", "-h") for token in arguments)


def take_flags(names: Names, arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Flags and their values, in order; text as it was written."""
    tokens, taken = list(arguments), []
    places = [name for name, each in names.settings.items() if each.about.positional]
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            if not places:
                hint = (
                    "a YAML file comes first" if token.endswith((".yaml", ".yml")) else "put text with spaces in quotes"
                )
                raise UserError(f"{LINE}: {token!r} belongs to no flag; {hint}")
            many = names.settings[places[0]].many
            taken.append((places[0], [token]) if many else (places.pop(0), token))
            continue
        flag, equals, text = token[2:].partition("=")
        taken.append(_take_value(names, names.own(flag), text if equals else None, tokens))
    return taken


def _take_value(names: Names, name: str, text: str | None, tokens: list[str]) -> tuple[str, Any]:
    switch = names.switch(name)
    if switch:
        if text is not None or (tokens and tokens[0].lower() in ("true", "false", "1", "0", "yes", "no")):
            raise UserError(f"--{switch[0]} takes no value; write --{switch[0]} or --no-{switch[0]}")
        return switch
    words = [text] if text is not None else []
    known = names.settings.get(name)
    while tokens and not tokens[0].startswith("--") and (not words or known is None or known.about.several):
        words.append(tokens.pop(0))
    if known is None:
        return name, None  # refused with all others of its kind
    if not words:
        raise UserError(f"--{name} needs a value")
    return name, words if known.many else words[0]


# --- YAML -------------------------------------------------------------------------------------------------------------


def read_yaml(names: Names, path: Path) -> dict[str, Any]:
    """The settings of a YAML file by our names, as they are written there."""
    if not path.exists():
        beside = [str(path.with_name(other.name)) for other in path.parent.glob("*.y*ml")]
        raise UserError(f"there is no file {path}{did_you_mean(str(path), beside)}")
    settings = plain_yaml(path)
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; write lines such as `seed: 0`")
    return names.named(settings.items(), str(path))


# --- help -------------------------------------------------------------------------------------------------------------


def help_text(settings: Iterable[Setting], opening: str) -> str:
    """The opening, then every setting with type, default and meaning, under the headings of their groups."""
    width = min(shutil.get_terminal_size().columns, 110)
    lines, group = [textwrap.fill(line, width) for line in opening.split("\n")], None
    for each in settings:
        if each.about.group not in (None, group):
            group = each.about.group
            lines += ["", f"{group}:"]
        lines.append(f"  {_usage(each)}")
        words = f"{each.doc} {each.about.more}".strip()
        lines += textwrap.wrap(words, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _value(each: Setting) -> str:
    if each.about.value:
        return each.about.value
    if each.about.positional:
        return each.name.upper()
    return (
        "{" + ",".join(each.choices) + "}"
        if each.choices
        else {int: "N", float: "X", Path: "PATH"}.get(each.kind, "TEXT")
    )


def _usage(each: Setting) -> str:
    if each.kind is bool:
        return f"--{each.name}, --no-{each.name}  [{'on' if each.default else 'off'}]"
    shown = _value(each) if each.about.positional else f"--{each.name} {_value(each)}" + " ..." * each.about.several
    if each.needed:
        return f"{shown}  (needed)"
    default = " ".join(map(str, each.default)) if each.many else each.default
    return shown + ("" if default in (None, "") else f"  [{default}]")
