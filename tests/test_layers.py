"""The floors of the house: a file imports from its own floor and below, never from above."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fewbayes"
FLOORS = (
    "errors progress seeds fields registry",
    "files posterior diffusion world data",
    "models",
    "methods",
    "settings",
    "runs metrics",
    "stage",
    "sample training",
    "diagnose export",
    "page",
    "studies survey",
    "cli __main__",
)
"""Rooms from the lowest floor up. A room imports from lower floors and from its own."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()} | {"": 0}
KNOW_DIFFUSERS = {"models", "world", "export", "metrics/encoders"}
ONLY = {
    "files/atomic": set(),
    "files/decode": {"msgspec", "yaml"},
    "runs/checkpoints": set(),
    "runs/folder": set(),
    "runs/provenance": set(),
    "fields": set(),
    "settings/config": {"yaml"},
    "settings/flags": {"yaml"},
    "settings/foreign": set(),
    "data/images": {"numpy", "PIL"},
    "metrics/pixels": {"numpy"},
}
"""Files with few needs, and the packages beside the standard library and this one that they may import."""

FILES = sorted(SOURCE.rglob("*.py"))


def room(file: Path) -> str:
    """The first part of a file's name under the package; "" for the package itself."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py").replace("__init__", "")


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere in it, functions included."""
    package = ("fewbayes", *file.relative_to(SOURCE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            if module == "fewbayes":
                found.update(f"fewbayes.{alias.name}" for alias in node.names if _is_room(alias.name))
    return found


def _is_room(name: str) -> bool:
    return (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()


def rooms_imported(file: Path) -> set[str]:
    parts = [name.split(".") for name in imports(file)]
    return {name[1] for name in parts if name[0] == "fewbayes" and len(name) > 1}


def packages_imported(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)} - {"fewbayes"} - set(sys.stdlib_module_names)


by_name = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


@by_name
def test_every_file_lives_on_a_floor(file):
    assert room(file) in FLOOR, f"give {room(file)} a floor in the table of this test and in docs/architecture.md"


@by_name
def test_no_file_imports_from_a_higher_floor(file):
    floor = FLOOR.get(room(file), 0)
    higher = {name for name in rooms_imported(file) if FLOOR.get(name, 0) > floor}
    assert not higher


@by_name
def test_only_a_few_files_know_diffusers(file):
    inside = file.relative_to(SOURCE).with_suffix("")
    if not {room(file), str(inside), str(inside.parent)} & KNOW_DIFFUSERS:
        assert not packages_imported(file) & {"diffusers", "transformers"}


@pytest.mark.parametrize("name", ONLY)
def test_a_file_of_few_needs_keeps_to_them(name):
    assert packages_imported(SOURCE / f"{name}.py") <= ONLY[name]


def files_reached(start: set[str]) -> set[Path]:
    """The files that importing these rooms may bring in, by following imports through the package."""
    reached: set[Path] = set()
    waiting = [file for file in FILES if room(file) in start]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += [found for name in imports(file) if (found := file_of(name))]
    return reached


def file_of(module: str) -> Path | None:
    if module.partition(".")[0] != "fewbayes":
        return None
    path = SOURCE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_the_report_never_imports_torch_not_even_through_others():
    guilty = [str(file) for file in files_reached({"page"}) if "torch" in packages_imported(file)]
    assert not guilty


@pytest.mark.parametrize(
    "module",
    [
        "fewbayes",
        "fewbayes.cli",
        "fewbayes.methods",
        "fewbayes.settings.config",
        "fewbayes.runs.folder",
        "fewbayes.data.images",
        "fewbayes.diagnose.command",
    ],
)
def test_importing_brings_in_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not {"torch", "diffusers", "transformers", "accelerate", "peft"} & set(loaded)


def test_this_test_sees_a_breach(tmp_path, monkeypatch):
    """A file on floor 0 that reaches up in every way Python has."""
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "training.py").write_text("")
    (tmp_path / "methods").mkdir()
    file = tmp_path / "methods" / "full.py"
    lines = ["import fewbayes.cli", "from fewbayes import training", "from ..page import read", "from . import lora"]
    file.write_text(
        "\n".join([*lines, "def late():", "    from fewbayes.world.draw import scene", "    import diffusers.models"])
    )
    assert rooms_imported(file) == {"cli", "training", "page", "methods", "world"}
    assert packages_imported(file) == {"diffusers"}
