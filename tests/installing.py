"""Throw-away distributions, installed for the time of a test: packages and their .dist-info in a folder on the path."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from steerkit._internal import plugins


class SiteFolder:
    """A folder like site-packages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def install(self, distribution: str, source: str, group: str, **points: str) -> None:
        """A distribution of one module, with entry points `name=Class`."""
        module = distribution.replace("-", "_")
        (self.path / f"{module}.py").write_text(source)
        self._register(distribution, module, {group: {name: f"{module}:{kind}" for name, kind in points.items()}})

    def install_project(self, folder: Path) -> None:
        """What a wheel of a project holds: its packages, and the entry points of its pyproject.toml."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        shutil.copytree(folder / package, self.path / package)
        self._register(project["project"]["name"], package, project["project"]["entry-points"])

    def _register(self, distribution: str, module: str, groups: Mapping[str, Mapping[str, str]]) -> None:
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("".join(lines))
        self.modules.append(module)
        plugins.forget()


@contextmanager
def site_folder(path: Path) -> Iterator[SiteFolder]:
    """A folder on the path; afterwards nothing of it is left."""
    site = SiteFolder(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        try:
            yield site
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] in site.modules]:
                del sys.modules[name]
    plugins.forget()
