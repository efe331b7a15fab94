"""Self-contained HTML pages that load nothing, may ask for nothing, and take nothing put into them for markup."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from steerkit._text import clean


def sealed_page(folder: Path, name: str, **given: Any) -> str:
    """The page of a template, with its one style and its one script in it, and a policy that allows nothing else.

    Args:
        folder: Where `{name}.html`, `.css` and `.js` are; the template places `style`, `script` and `policy`.
        name: Of the page.
        **given: What the template takes. It is cleaned of control characters and escaped, unless it is `Markup`.
    """
    style, script = (Path(folder, f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    html = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return html.get_template(f"{name}.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        **given,
    )


def _hash(text: str) -> str:
    """How a content security policy names a script or a style that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
