"""`steerkit play`: a page on this machine to try vectors on a model."""

from __future__ import annotations

from steerkit.cli import console, options as opt
from steerkit.errors import PluginError
from steerkit.policy import Policy


def play(
    model: str = "llava",
    *,
    vector: str | None = None,
    policy: Policy = "strict",
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = True,
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
        loading: How the model is loaded.
    """
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PluginError(
            f"the page needs gradio ({error})", expected="the extra `play`", fix="pip install 'steerkit-vlm[play]'"
        ) from error
    from steerkit.cli.loading import import_libraries, load_model

    import_libraries()
    from steerkit.cli.play_page import Session, page, serve
    from steerkit.demo import MODELS

    if vector is None:
        vector = f"cmrm-{model.replace('_', '-')}-demo" if model in MODELS else ""
    given = loading.given()
    session = Session(lambda source: load_model(source, given), policy)
    session.load(model)
    serve(page(session, vector), host, port, browser, console.say)
