"""The lists of rooms and files in docs/architecture.md are what the modules say of themselves.

python tests/test_architecture.py      # write them anew
"""

import ast
import re
from pathlib import Path

from test_layers import FILES, FLOOR, FLOORS, SOURCE, room

PAGE = Path(__file__).parents[1] / "docs/architecture.md"
MARKED = re.compile(r"(<!-- (rooms|files) -->\n)(.*?)\n?(<!-- end -->)", re.DOTALL)
ORDER = {name: place for place, name in enumerate(" ".join(FLOORS).split())}


def first_sentence(file: Path) -> str:
    """What a module is for: its docstring up to the first full stop."""
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.?!])\s", " ".join(told.replace("|", "\\|").split()), maxsplit=1)[0]


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def listed(what: str) -> str:
    """Rooms by floor, or the files of each room with what they are for; the lowest floor first."""
    files = sorted(FILES, key=lambda file: (ORDER.get(room(file), -1), str(file)))
    if what == "rooms":
        tops = [f for f in files if (f.parent.parent == SOURCE and f.stem == "__init__") or f.parent == SOURCE]
        rows = [
            [str(FLOOR[room(f)]), f"`{room(f)}`", first_sentence(f)] for f in tops if f.stem != "__main__" and room(f)
        ]
        return table(["floor", "room", "what it is for"], rows)
    shown = [file for file in files if file.stem != "__init__" and file.parent != SOURCE]
    rows = [[f"`{file.relative_to(SOURCE).as_posix()}`", first_sentence(file)] for file in shown]
    return table(["file", "what it is for"], rows)


def test_the_lists_are_what_the_modules_say():
    found = {name: text for _, name, text, _ in MARKED.findall(PAGE.read_text())}
    assert found == {name: listed(name) for name in ("rooms", "files")}, "run python tests/test_architecture.py"


def test_every_module_says_what_it_is_for():
    silent = [str(file.relative_to(SOURCE)) for file in FILES if len(first_sentence(file).split()) < 3]
    assert not silent


if __name__ == "__main__":
    PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{listed(found[2])}\n{found[4]}", PAGE.read_text()))
