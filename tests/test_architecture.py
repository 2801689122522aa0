"""The list of rooms in docs/architecture.md is what the modules say of themselves.

python tests/test_architecture.py      # write them anew
"""

import ast
import re
from pathlib import Path

from test_layers import FILES, FLOOR, FLOORS, SOURCE, room

PAGE = Path(__file__).parents[1] / "docs/architecture.md"
MARKED = re.compile(r"(<!-- rooms -->\n)(.*?)\n?(<!-- end -->)", re.DOTALL)
ORDER = {name: place for place, name in enumerate(" ".join(FLOORS).split())}


def first_sentence(file: Path) -> str:
    """What a module is for: its docstring up to the first full stop."""
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.?!])\s", " ".join(told.replace("|", "\\|").split()), maxsplit=1)[0]


def rooms() -> str:
    """By floor, the lowest first."""
    files = sorted(FILES, key=lambda file: (ORDER.get(room(file), -1), str(file)))
    tops = [f for f in files if (f.parent.parent == SOURCE and f.stem == "__init__") or f.parent == SOURCE]
    rows = [
        f"| {FLOOR[room(f)]} | `{room(f)}` | {first_sentence(f)} |" for f in tops if f.stem != "__main__" and room(f)
    ]
    return "\n".join(["| floor | room | what it is for |", "| --- | --- | --- |", *rows])


def test_the_list_is_what_the_modules_say():
    assert [text for _, text, _ in MARKED.findall(PAGE.read_text())] == [rooms()], (
        "run python tests/test_architecture.py"
    )


def test_every_module_says_what_it_is_for():
    silent = [str(file.relative_to(SOURCE)) for file in FILES if len(first_sentence(file).split()) < 3]
    assert not silent


if __name__ == "__main__":
    PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{rooms()}\n{found[3]}", PAGE.read_text()))
