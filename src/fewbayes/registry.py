"""Things by name, each registered by its own file in one package; the files are imported when somebody first asks."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """package: whose files register the things; those whose names begin with an underscore are none of them."""

    def __init__(self, package: str):
        self._package, self._things, self._imported = package, dict[str, T](), False

    def add(self, name: str, thing: T) -> None:
        """A name can be taken once."""
        assert name not in self._things, f"two of {self._package} are called {name}"
        self._things[name] = thing

    def all(self) -> dict[str, T]:
        """By name, in the order in which they were registered."""
        if not self._imported:
            self._imported = True
            for found in pkgutil.iter_modules(import_module(self._package).__path__):
                if not found.name.startswith("_"):
                    import_module(f"{self._package}.{found.name}")
        return dict(self._things)
