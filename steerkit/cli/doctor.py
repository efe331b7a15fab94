"""`steerkit doctor`: what is installed here, and what is wrong with it."""

from __future__ import annotations

import importlib
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import metadata, requires
from pathlib import Path
from typing import Any

from steerkit._internal import plugins
from steerkit._version import __version__
from steerkit.cli.command import Result
from steerkit.cli.loading import import_libraries
from steerkit.policy import Check
from steerkit_vectors_hub.installation import OURS, problems


def doctor() -> Result:
    """Check the installation, and show what is wrong.

    Versions, adapters, methods, formats, engines, devices and caches; other distributions that overwrite steerkit's
    files, plug-ins that do not load, versions out of bounds, extras that are missing. Exit code 1 if anything is wrong.
    """
    found: list[Check] = []
    for section, check in _CHECKS.items():
        try:
            found += [Check(section, *each) for each in check()]
        except Exception as error:  # the others are still worth knowing
            found.append(Check(section, "fail", f"{type(error).__name__}: {error}", "see `steerkit doctor --debug`"))
    failed = sum(each.status == "fail" for each in found)
    document = {"steerkit": __version__, "ok": not failed, "checks": [each.as_json() for each in found]}
    return Result(document, _lines(found, failed), code=1 if failed else 0)


def _lines(found: list[Check], failed: int) -> Iterator[str]:
    for each in found:
        yield str(each)
        if each.fix:
            yield f"      fix: {each.fix}"
    yield f"{failed} of {len(found)} checks failed." if failed else "Nothing is wrong."


def _installation() -> Iterator[tuple[Any, ...]]:
    imported = Path(__file__).resolve().parent.parent
    yield "pass", f"steerkit {__version__} in {imported}, Python {platform.python_version()}, {platform.platform()}"
    for text, fix in problems(imported):
        yield "fail", text, fix


def _versions() -> Iterator[tuple[Any, ...]]:
    """Every requirement, and what is installed of it."""
    from packaging.requirements import Requirement

    extras = ["", *(each for each in metadata(OURS).get_all("Provides-Extra", []) if each not in _FOR_DEVELOPERS)]
    for requirement in map(Requirement, requires(OURS) or ()):
        marker, there = requirement.marker, plugins.version_of(requirement.name)
        extra = next((each for each in extras if marker is None or marker.evaluate({"extra": each})), None)
        wanted = f"{requirement.name}{requirement.specifier}"
        install = f"pip install '{OURS}[{extra}]'" if extra else f"pip install '{wanted}'"
        if extra is None or requirement.name == OURS:  # of another system, or for those who work on steerkit
            continue
        if there is None:
            needed = f" (extra {extra})" if extra else ""
            yield "skip" if extra else "fail", f"{wanted} is not installed{needed}", install
        elif not requirement.specifier.contains(there, prereleases=True):
            yield "fail", f"{requirement.name} {there} is installed, and {wanted} is needed", install
        else:
            yield "pass", f"{requirement.name} {there}"


def _plugins(group: plugins.Group, home: str, base: str) -> Callable[[], Iterator[tuple[Any, ...]]]:
    def check() -> Iterator[tuple[Any, ...]]:
        import_libraries()
        rows = plugins.registered(group, getattr(importlib.import_module(home), base))
        good = [each.name for each in rows if each.error is None]
        yield ("pass" if good else "fail"), ", ".join(good) or "none", "" if good else f"reinstall {OURS}"
        for each in rows:
            if each.error is not None:
                yield (
                    "fail",
                    f"{each.name} of {each.distribution}: {each.error}",
                    "reinstall or remove that distribution",
                )

    return check


def _engines() -> Iterator[tuple[Any, ...]]:
    import_libraries()
    for name in ("hooks", "nnsight"):
        try:
            importlib.import_module(f"steerkit.engines.{name}")
            yield "pass", name
        except Exception as error:
            yield "fail", f"{name}: {type(error).__name__}: {error}", f"pip install --force-reinstall {OURS}"


def _devices() -> Iterator[tuple[Any, ...]]:
    import torch

    yield "pass", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield "pass", f"cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB"
    if torch.version.cuda and not torch.cuda.is_available():
        yield "skip", f"torch is built for CUDA {torch.version.cuda} and finds no GPU"
    if torch.backends.mps.is_available():
        yield "pass", "mps"


def _caches() -> Iterator[tuple[Any, ...]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from steerkit_vectors_hub.cache import PLACE, Store

    for what, folder, variable in (
        ("packs", Store.default().root, PLACE),
        ("models", Path(HF_HUB_CACHE), "HF_HUB_CACHE"),
    ):
        existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        try:
            with tempfile.TemporaryFile(dir=existing) as probe:
                probe.write(b"0" * 4096)
            yield "pass", f"{what} in {folder}"
        except OSError as error:
            yield (
                "fail",
                f"{what} in {folder}, which can't be written: {error.strerror}",
                f"set {variable} to another folder",
            )


def _trust() -> Iterator[tuple[Any, ...]]:
    from steerkit_vectors_hub.signing.trust import default_trust, trust_path

    trust = default_trust()
    yield "pass", f"{trust_path()}: " + (f"{len(trust.signers)} signers" if trust_path().exists() else "there is none")


_FOR_DEVELOPERS = ("test", "docs", "dev")
"""Extras that no user misses."""

_CHECKS: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "installation": _installation,
    "versions": _versions,
    "adapters": _plugins(plugins.ADAPTERS, "steerkit.models", "Family"),
    "methods": _plugins(plugins.METHODS, "steerkit.methods", "SteeringMethod"),
    "formats": _plugins(plugins.FORMATS, "steerkit_vectors_hub.interop.base", "ForeignReader"),
    "engines": _engines,
    "devices": _devices,
    "caches": _caches,
    "trust file": _trust,
}
