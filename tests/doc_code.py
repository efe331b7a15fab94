"""The code in the documentation: found, and run; also as a script, `python doc_code.py PAGE.md`."""

import linecache
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "<!-- not run"


def python_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """`(line number, code)` of every Python block, but for those that a comment above says are not run."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        if not above.startswith(NOT_RUN):
            yield text.count("\n", 0, match.start()) + 1, match[1]


def run_page(page: Path, change: Callable[[str], str] = lambda code: code, **given: Any) -> dict[str, Any]:
    """Run the blocks of a page one after the other, in one namespace, with the lines that the page gives them."""
    names: dict[str, Any] = {"__name__": "__page__", **given}
    with tempfile.TemporaryDirectory() as folder:
        # a file of Python, not the page: nnsight, once imported, reads the source of whoever calls `backward`
        file = Path(folder, f"{page.stem}.py")
        for line, code in python_blocks(page):
            file.write_text("\n" * line + change(code), encoding="utf-8")
            linecache.checkcache(str(file))
            exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    return names


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
