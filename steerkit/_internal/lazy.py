"""Names of a package that are imported when they are first used.

A package's stub, `__init__.pyi`, says which names it offers and where each lives. Type checkers read it, and so does
this module: there is one list.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names are listed in the stub beside it.

    Args:
        package: `__name__` of the package.
        file: `__file__` of the package.
    """
    homes: dict[str, str] = {}
    public: list[str] | None = None
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            homes.update({name.name: str(node.module) for name in node.names})
        elif isinstance(node, ast.Assign):
            public = ast.literal_eval(node.value)

    def load(name: str) -> Any:
        if name not in homes:
            face = sys.modules[package.partition(".")[0]]
            if face.__name__ == "steerkit" and "__getattr__" not in vars(
                face
            ):  # an unrelated distribution of our import name asks us for its own
                raise ImportError(
                    f"{face.__file__} is another distribution's, and was written over a file of steerkit-vlm. "
                    "`steerkit-vlm doctor` says whose it is, and how to mend it."
                )
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        # a room of the package itself is a module; everything else is a name in one
        value = importlib.import_module(f"{package}.{name}") if home == package else _named(home, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names, sorted(homes) if public is None else public


def _named(home: str, name: str) -> Any:
    return getattr(importlib.import_module(home), name)
