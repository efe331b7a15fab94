"""Whether steerkit is installed as it was published; needs the standard library only.

An unrelated distribution of the public index is named `steerkit` and installs a package of that name. Of two such, pip
lets the later one overwrite the files of the earlier, and removes them with either, without a word.
`python -m steerkit_vectors_hub.installation` works where the package `steerkit` and its command are another's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

OURS = "steerkit-vlm"
PACKAGES = ("steerkit", "steerkit_vlm", "steerkit_adapters", "steerkit_vectors_hub")
SCRIPTS = ("steerkit", "steerkit.exe", "steerkit-vlm", "steerkit-vlm.exe")

_REINSTALL = f"pip uninstall NAME, then pip install --force-reinstall --no-deps {OURS}"


def report() -> int:
    """Print what is wrong with the installation; returns how much it is."""
    spec = find_spec("steerkit")
    found = list(problems(Path(spec.origin or "").resolve().parent if spec is not None else Path()))
    for text, fix in found:
        print(f"error: {text}\n  fix: {fix}", file=sys.stderr)
    return len(found)


def problems(imported: Path) -> Iterator[tuple[str, str]]:
    """What is wrong, and how to mend it.

    Args:
        imported: The folder from which `steerkit` was imported.
    """
    try:
        ours = distribution(OURS)
    except PackageNotFoundError:
        yield f"no distribution {OURS!r} is installed; steerkit comes from {imported}", f"pip install {OURS}"
        return
    for name, release, packages in _others():
        shared = ", ".join(packages)
        yield f"{name} {release} installs files of {shared} as well", _REINSTALL.replace("NAME", name)
    source = _editable_source(ours)
    at_home = imported.parent == source if source else imported == Path(str(ours.locate_file("steerkit"))).resolve()
    if not at_home:
        where = source or ours.locate_file("")
        yield (
            f"steerkit is imported from {imported}, and {OURS} is installed in {where}",
            "leave that folder, or PYTHONPATH",
        )
    missing, changed = _compared(ours)
    for files, what in ((missing, "missing"), (changed, "not those that were installed")):
        if files:
            shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
            yield f"{len(files)} files of {OURS} are {what}: {shown}", _REINSTALL.partition("then ")[2]


def _others() -> Iterator[tuple[str, str, list[str]]]:
    """Distributions but ours that own files of our packages."""
    owners = packages_distributions()
    names = {name for package in PACKAGES for name in owners.get(package, ()) if _normal(name) != OURS}
    for name in sorted(names):
        yield name, version(name), [package for package in PACKAGES if name in owners.get(package, ())]


def _compared(ours: Distribution) -> tuple[list[str], list[str]]:
    """Files of ours that are gone, and those whose content is not the recorded one."""
    missing, changed = [], []
    for file in ours.files or ():
        path = Path(str(file.locate()))
        if (file.parts[0] not in PACKAGES and file.name not in SCRIPTS) or file.suffix == ".pyc":
            continue
        if not path.is_file():
            missing += [str(file)] if file.parts[0] in PACKAGES else []  # pip records scripts wrongly for --target
        elif file.hash is not None and file.hash.value != _digest(path, file.hash.mode):
            changed.append(str(file))
    return missing, changed


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return base64.urlsafe_b64encode(hashlib.file_digest(file, kind).digest()).decode().rstrip("=")


def _editable_source(ours: Distribution) -> Path | None:
    """The folder of an editable installation, whose files may change."""
    origin = json.loads(ours.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return Path(url2pathname(urlsplit(origin["url"]).path)).resolve()


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(1 if report() else print("Nothing is wrong."))
