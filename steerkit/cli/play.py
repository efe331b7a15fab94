"""`steerkit play`: a page on this machine to try vectors on a model."""

from __future__ import annotations

import os
from getpass import getpass
from ipaddress import ip_address

from steerkit.cli import console, options as opt
from steerkit.errors import OptionError, PluginError
from steerkit.policy import Policy


def play(
    model: str = "llava",
    *,
    vector: str | None = None,
    policy: Policy = "strict",
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = True,
    password: bool = False,
    loading: opt.Loading,
) -> None:
    """Try a model and a pack on a local page, unsteered and steered side by side.

    Without arguments it opens the demo model with its pack. The page asks nothing of any network.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        vector (REF): A pack to begin with, as for `pull`. Default: of a demo model, the bundled one.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        host: Where to listen. Whoever reaches it can load any model and pack that you can.
        port: Where to listen.
        browser: Open the page in a browser.
        password: Let in who signs in as "steerkit" with the password that is asked for here, or that the environment
            variable STEERKIT_PLAY_PASSWORD holds.
        loading: How the model is loaded.
    """
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PluginError(
            f"the page needs gradio ({error})", expected="the extra `play`", fix="pip install 'steerkit-vlm[play]'"
        ) from error
    word = _password() if password else None
    if word is None and not _is_own(host):
        console.say(f"whoever reaches {host} can load any model, pack and image that you can: --password lets in fewer")
    from steerkit.cli.loading import import_libraries, load_model

    import_libraries()
    from steerkit.cli.play_page import Session, page, serve
    from steerkit.demo import MODELS

    if vector is None:
        vector = f"cmrm-{model.replace('_', '-')}-demo" if model in MODELS else ""
    given = loading.given()
    session = Session(lambda source: load_model(source, given), policy)
    session.load(model)
    serve(page(session, vector), host, port, browser, word, console.say)


def _password() -> str:
    try:
        word = os.environ.get("STEERKIT_PLAY_PASSWORD") or getpass("Password of the page: ")
    except EOFError:
        word = ""
    if not word:
        raise OptionError("the password is empty", expected="one to sign in with", fix="STEERKIT_PLAY_PASSWORD=...")
    return word


def _is_own(host: str) -> bool:
    """Whether an address is reached from this machine alone; a name that is not known to be counts as reached."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
