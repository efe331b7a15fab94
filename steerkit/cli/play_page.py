"""The page of `steerkit play`, made of gradio's parts; imported by that command alone.

Whatever comes from a model or a pack is shown as the value of a text box, or escaped: it is never markup.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from html import escape
from threading import Event, Lock, Thread
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
import torch
from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

import steerkit as sk
from steerkit.demo import MODELS, SUITES
from steerkit.errors import OptionError, SteerKitError
from steerkit.evaluation import load_suite
from steerkit.models import open_image, tokenizer_of
from steerkit.policy import Check, Policy
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

CSS = """
.layers, .checks { width: 100%; border-collapse: collapse; font-size: 0.9rem }
.layers th, .layers td, .checks th, .checks td { text-align: left; padding: 2px 6px; vertical-align: top }
.layers .bar { background: var(--color-accent); height: 0.7rem; display: block; min-width: 1px }
.layers td:nth-child(2) { width: 60% }
.layers td:first-child, .layers td:last-child, .checks td:not(:last-child) { white-space: nowrap }
.checks td:last-child { overflow-wrap: anywhere; width: 90% }
"""


class Session:
    """The model that is loaded, and the last pack; one at a time, for whoever uses the page."""

    def __init__(self, load: Callable[[str], VLM], policy: Policy) -> None:
        self.loader = load
        self.policy: Policy = policy
        self.source = ""
        self.vlm: VLM | None = None
        self.packs: dict[str, SteeringVector] = {}
        self.lock = Lock()

    def load(self, source: str) -> VLM:
        """The model, loaded unless it is the one that is there."""
        source = source.strip()
        if not source:
            raise OptionError("no model is named", expected="a repository id, a folder or a demo model")
        with self.lock:
            if self.vlm is None or source != self.source:
                self.vlm = None  # its memory first
                self.vlm, self.source = self.loader(source), source
            return self.vlm

    def pack(self, ref: str) -> SteeringVector | None:
        """The pack, or None for an empty reference."""
        ref = ref.strip()
        if ref and ref not in self.packs:
            self.packs = {ref: sk.load_vector(ref, policy=self.policy)}
        return self.packs.get(ref)

    def checks(self, source: str, ref: str, strength: float) -> tuple[Check, ...]:
        """What `steerkit verify` says of the pack on the model, but for the screening."""
        if not ref.strip():
            return ()
        return tuple(sk.verify(ref.strip(), model=self.load(source), strength=strength, screening=False).checks)

    def answers(
        self, source: str, ref: str, image: Image.Image | None, prompt: str, strength: float, length: float
    ) -> Generator[tuple[str, str, Any], None, None]:
        """What there is so far of the answer, unsteered and steered, and at the end the receipt."""
        vlm, vector = self.load(source), self.pack(ref)
        if not prompt.strip():
            raise OptionError("there is no prompt", expected="a question or a request")
        sample = sk.Sample(prompt, images=() if image is None else (image,))
        vlm.check_prompt(sample)
        plain = text = ""
        for plain in _streamed(vlm, sample, int(length), nullcontext()):
            yield plain, "", None
        if vector is not None:
            block = sk.steer(vlm, vector, strength=strength, policy=self.policy)
            receipts: list[Any] = []
            for text in _streamed(vlm, sample, int(length), block, receipts):
                yield plain, text, None
            yield plain, text, receipts[0]


def _streamed(vlm: VLM, sample: sk.Sample, length: int, block: Any, receipts: list[Any] | None = None) -> Iterator[str]:
    """An answer as it grows, at last as `VLM.generate` gives it, made in a thread that opens the block itself."""
    tokenizer: Any = tokenizer_of(vlm.processor)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    left = Event()
    criteria = StoppingCriteriaList(
        [lambda ids, _, **more: torch.full_like(ids[:, 0], left.is_set(), dtype=torch.bool)]
    )
    options: dict[str, Any] = {"streamer": streamer, "stopping_criteria": criteria}
    done: list[Any] = []

    def work() -> None:
        try:
            with block as receipt:
                done.extend(vlm.generate([sample], max_new_tokens=length, do_sample=False, **options))
            if receipts is not None:
                receipts.append(receipt)
        except BaseException as error:  # told where the answer is waited for
            done[:] = [error]
        finally:
            streamer.end()

    thread = Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    text = ""
    try:
        for part in streamer:
            text += part
            yield text.strip()
    finally:
        left.set()  # nobody waits any more
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    yield done[0]


def page(session: Session, vector: str) -> gr.Blocks:
    """The page.

    Args:
        session: With the model that it begins with.
        vector: The pack that it begins with.
    """
    case = load_suite(SUITES["test"]).harmful[0].sample if session.source in MODELS else None
    first = session.pack(vector)
    strength = 1.0 if first is None else first.metadata.strength.recommended
    with gr.Blocks(title="steerkit play", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown("# steerkit play\nThe same prompt, answered without and with a steering vector.")
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    model = gr.Textbox(session.source, label="Model", info="repository id, folder or demo model")
                    ref = gr.Textbox(vector, label="Pack", info="bundled name, file, hf://... or empty")
                image = gr.Image(
                    None if case is None else open_image(case.images[0]),
                    label="Image",
                    type="pil",
                    sources=["upload", "clipboard"],
                    height=220,
                )
                prompt = gr.Textbox("" if case is None else case.turns[-1][1], label="Prompt", lines=2)
                dose = gr.Slider(min(-2.0, 2 * strength), max(4.0, 2 * strength), strength, step=0.1, label="Strength")
                length = gr.Slider(1, 512, 64, step=1, label="Longest answer, in tokens")
                with gr.Row():
                    answer = gr.Button("Answer", variant="primary")
                    check = gr.Button("Check the pack")
                    stop = gr.Button("Stop")
            with gr.Column():
                with gr.Row():
                    plain = gr.Textbox(label="Unsteered", lines=6, interactive=False)
                    steered = gr.Textbox(label="Steered", lines=6, interactive=False)
                status = gr.Textbox(label="Receipt", lines=3, interactive=False)
                layers = gr.HTML(_layers(None), label="Effect by layer")
                checks = gr.HTML(_checks(()), label="Checks of the pack")

        stopped: set[Any] = set()
        """The tabs in which Stop was pressed: an answer that gradio itself cancelled could overwrite what is said."""

        def answered(request: gr.Request, *given: Any) -> Iterator[tuple[str, str, str, str, str]]:
            before, after, tab = "", "", request.session_hash
            stopped.discard(tab)
            yield "", "", "Answering ...", _layers(None), _checks(())
            try:
                with closing(session.answers(*given)) as made:
                    for before, after, receipt in made:
                        if tab in stopped:
                            yield before, after, "Stopped.", _layers(None), _checks(())
                            return
                        found = () if receipt is None else receipt.checks
                        said = "Answering ..." if receipt is None else str(receipt)
                        yield before, after, said, _layers(receipt), _checks(found)
                if not given[1].strip():
                    yield before, "", "No pack is named: nothing was steered.", _layers(None), _checks(())
            except SteerKitError as error:
                yield before, after, str(error), _layers(None), _checks(())

        def halt(request: gr.Request) -> None:
            stopped.add(request.session_hash)

        def checked(source: str, pack: str, strength: float) -> tuple[str, str]:
            try:
                return "", _checks(session.checks(source, pack, strength))
            except SteerKitError as error:
                return str(error), _checks(())

        given = [model, ref, image, prompt, dose, length]
        shown = [plain, steered, status, layers, checks]
        for asked in (answer.click, prompt.submit):
            asked(answered, given, shown)
        stop.click(halt, None, None, queue=False)
        check.click(checked, [model, ref, dose], [status, checks])
    return app


def serve(
    app: gr.Blocks, host: str, port: int, browser: bool, password: str | None, say: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C; fonts are the system's, since gradio's are fetched from elsewhere.

    Raises:
        OptionError: The port is taken, or can't be listened on.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        app.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            footer_links=[],
            theme=theme,
            css=CSS,
            max_file_size="64mb",
            auth=None if password is None else [("steerkit", password)],
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OptionError(f"can't listen on {host}:{port} ({error})", expected="a free port", fix="--port") from error
    say(f"steerkit play: {app.local_url} (Ctrl-C ends it)")
    app.block_thread()


def _layers(receipt: Any) -> str:
    """A bar for each steered place: the size of the change beside that of the hidden state."""
    if receipt is None:
        return "<p>Effect by layer: after the answer.</p>"
    sites = [(layer, site, count.relative_change) for (layer, site), count in sorted(receipt.sites.items())]
    most = max((change for _, _, change in sites if change == change), default=0.0) or 1.0
    rows = "".join(
        f"<tr><td>{layer} {escape(site)}</td>"
        f"<td><span class='bar' style='width:{100 * change / most:.1f}%'></span></td><td>{100 * change:.1f} %</td></tr>"
        for layer, site, change in sites
        if change == change  # NaN: not measured
    )
    head = "<tr><th>Layer</th><th>Change, relative to the hidden state</th><th></th></tr>"
    return f"<table class='layers'><caption>Effect by layer</caption>{head}{rows}</table>"


def _checks(found: tuple[Check, ...]) -> str:
    if not found:
        return "<p>Checks of the pack: after the answer, or by the button.</p>"
    rows = "".join(
        f"<tr><td>{escape(each.status)}</td><td>{escape(each.name)}</td>"
        f"<td>{escape(each.message)} {escape(each.fix)}</td></tr>"
        for each in found
    )
    return f"<table class='checks'><caption>Checks of the pack</caption>{rows}</table>"
