"""`steerkit new`: a package to start from, with a method or an adapter that works."""

from __future__ import annotations

import keyword
import re
import shutil
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Literal

import steerkit as sk
from steerkit._internal.files import write_atomically
from steerkit.cli.console import echo
from steerkit.errors import OptionError

_TEMPLATES = Path(__file__).parent / "templates"


Kind = Literal["method", "adapter"]
_SHARED = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "$package/__init__.py": "package.py",
    "tests/test_$name.py": "checks.py",
}
_FILES: dict[Kind, dict[str, str]] = {"method": _SHARED, "adapter": {**_SHARED, "$package/tiny.py": "tiny.py"}}
"""Each file of a package, and the template that it is made from."""


def new(
    kind: Kind,
    name: str,
    *,
    path: Path = Path(),
) -> None:
    """Write a package that adds a method or a model family.

    It can be installed with pip, is found by its name, and passes its own tests as it is: change it from there.

    Args:
        kind: What the package is to hold.
        name (NAME): Its name: lower-case letters, digits, _.
        path (FOLDER): Where the package's folder is made.
    """
    folder = scaffold(kind, name, path)
    echo(f"Wrote {folder}. Next: pip install -e '{folder}[test]' && pytest {folder}")


def scaffold(kind: Kind, name: str, path: Path) -> Path:
    """Write the package.

    Args:
        kind: What it holds.
        name: The name of the method or adapter, from which those of package and distribution are made.
        path: Where its folder is made.

    Returns:
        The folder.

    Raises:
        OptionError: The name is impossible or taken, or the folder exists.
    """
    check_name(kind, name)
    folder = path / f"steerkit-{name.replace('_', '-')}"
    if folder.exists() or folder.is_symlink():
        raise OptionError(
            f"{str(folder)!r} exists", expected="a folder that does not", fix="name another one with --path"
        )
    words = {
        "name": name,
        "package": f"steerkit_{name}",
        "distribution": folder.name,
        "class_name": class_name(kind, name),
        "version": sk.__version__,
    }
    try:
        for target, template in _FILES[kind].items():
            text = (_TEMPLATES / kind / f"{template}.txt").read_text(encoding="utf-8")
            write_atomically(folder / Template(target).substitute(words), Template(text).substitute(words).encode())
    except BaseException:  # half a package would stand in the way of the next attempt
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def class_name(kind: Kind, name: str) -> str:
    """`mean_centring` as a class: MeanCentring; a family is a record, whatever its name."""
    return "".join(map(str.capitalize, name.split("_"))) if kind == "method" else "FAMILY"


def check_name(kind: Kind, name: str) -> None:
    """Refuse a name that can't be one, or that something has already.

    Raises:
        OptionError: See above.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise OptionError(
            f"the name is {name!r}",
            expected="lower-case letters, digits and single underscores, a letter first, and no word of Python",
        )
    made, wanted = class_name(kind, name), f"steerkit-{name.replace('_', '-')}"
    names = sk.methods.method_names() if kind == "method" else sk.models.adapter_names()
    its_class = f"the name is {name!r}: its class would be {made!r}, which is"
    taken = {
        f"{its_class} a word of Python": keyword.iskeyword(made),
        f"{its_class} what the package imports under that name": made in _imported(kind),
        f"the {kind} {name!r} exists already": name in names,
        f"the distribution {wanted!r} exists already": any(Distribution.discover(name=wanted)),
        f"the package 'steerkit_{name}' exists already": find_spec(f"steerkit_{name}") is not None,
    }
    for problem, holds in taken.items():
        if holds:
            raise OptionError(problem, expected="a name that is free", fix="choose another name")


def _imported(kind: Kind) -> set[str]:
    """What the module with the class imports: a class of such a name would hide it."""
    text = (_TEMPLATES / kind / "package.py.txt").read_text(encoding="utf-8")
    return {name for line in re.findall(r"^(?:from .* )?import (.*)", text, re.MULTILINE) for name in line.split(", ")}
