"""`fewbayes completion bash|zsh|fish`: what a shell completes, read off the help of every command.

Flags and the words they take come from the fields that the help is written from, so a new setting is completed too.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fewbayes.errors import UserError

FLAG = re.compile(r"^  --(\w+)(?:, --(no-\w+))?(?: \{([^}]*)\})?", re.MULTILINE)
SHELLS = ("bash", "zsh", "fish")
SCRIPT = """\
_fewbayes() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flags=
  if ((COMP_CWORD == 1)); then COMPREPLY=($(compgen -W "@commands" -- "$cur")); return; fi
  case "${COMP_WORDS[1]} $prev" in
@words
  esac
  case "${COMP_WORDS[1]}" in
@flags
  esac
  if [[ $cur == --* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi
}
complete -o filenames -F _fewbayes fewbayes
"""


class Flag(NamedTuple):
    """A flag of a command and the words it takes, none where any will do."""

    name: str
    words: tuple[str, ...] = ()


def flags_in(help_text: str) -> list[Flag]:
    """The flags that a help names."""
    found = []
    for name, off, words in FLAG.findall(help_text):
        found.append(Flag(name, tuple(words.split(",")) if words else ()))
        found += [Flag(off)] if off else []
    return found


def completion(shell: str, commands: Mapping[str, Callable[[list[str]], int]]) -> str:
    """The script of a shell; each command is asked for its help."""
    if shell not in SHELLS:
        raise UserError(f"{shell!r} is no shell that is known here; there are {', '.join(SHELLS)}")
    known = {name: flags_in(_help(command)) for name, command in commands.items()}
    if shell == "fish":
        return _fish(known)
    words = [
        f'    "{name} --{flag.name}") COMPREPLY=($(compgen -W "{" ".join(flag.words)}" -- "$cur")); return;;'
        for name, flags in known.items()
        for flag in flags
        if flag.words
    ]
    flags = [f'    {name}) flags="{" ".join(f"--{f.name}" for f in flags)}";;' for name, flags in known.items()]
    parts = {"@commands": " ".join(known), "@words": "\n".join(words), "@flags": "\n".join(flags)}
    script = re.sub("|".join(parts), lambda found: parts[found[0]], SCRIPT)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script


def _fish(known: Mapping[str, list[Flag]]) -> str:
    lines = [f"complete -c fewbayes -n __fish_use_subcommand -f -a '{' '.join(known)}'"]
    for name, flags in known.items():
        for flag in flags:
            words = f" -x -a '{' '.join(flag.words)}'" if flag.words else ""
            lines.append(f"complete -c fewbayes -n '__fish_seen_subcommand_from {name}' -l {flag.name}{words}")
    return "\n".join(lines) + "\n"


def _help(command: Callable[[list[str]], int]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        command(["--help"])
    return said.getvalue()
