# SPDX-License-Identifier: Apache-2.0
"""The page: gradio's components, and what happens when a visitor moves them.

Whatever goes wrong is one line on the page. Nothing is fetched from elsewhere, neither fonts nor
scripts, and no use is counted.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import gradio as gr

from contourdiff_jax.contours.settings import BLURS, ContourSettings
from contourdiff_jax.demo import uploads, views
from contourdiff_jax.demo.offers import MOST_SAMPLES, Offer, Wish
from contourdiff_jax.demo.sessions import Opened, Session, Sessions
from contourdiff_jax.demo.views import Drawn, Seen
from contourdiff_jax.errors import InputError, tell
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes.volume import Assumed

FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
STEEPEST = 500  # threshold of Canny to be chosen; settings may have higher ones
HEIGHT = 360  # pixels of a picture on the page
CSS = """
#notice p {color: #b45309; font-weight: 600}
#status textarea {font-weight: 600}
#wipe img {object-fit: contain}
"""
PRIVACY = "Files are deleted when this page is closed."
PROMPT = "Give an image, and say whether it is CT or MR."
STEPS = """
1. Drop a NIfTI file, a zip of one DICOM series, or a picture, and say whether it is CT or MR.
2. Look through its slices. The network is shown their contours: move the thresholds until these
   follow the anatomy, without noise.
3. Translate, compare, download. Several samples show where the network is unsure.
"""
FAULT = "this is a fault of the demo; its traceback is in the terminal where it runs"


class Page:
    """The page and its handlers, which return what becomes of components.

    Attributes:
      offers: runs by name.
      sessions: its visitors.
      most: bytes that an upload may have.
      blocks: what gradio serves.
    """

    def __init__(self, offers: Mapping[str, Offer], sessions: Sessions, upload_mb: int):
        self.offers, self.sessions, self.most = dict(offers), sessions, upload_mb << 20
        with gr.Blocks(title="contourdiff", analytics_enabled=False, fill_width=True) as blocks:
            gr.Markdown("# contourdiff\nAn image of one modality, drawn as one of another.")
            gr.Markdown(f"{NOTICE} {PRIVACY}", elem_id="notice")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._lay_out_questions()
                with gr.Column(scale=5):
                    self._lay_out_answers()
            self._connect(blocks)
        self.blocks = blocks

    def launch(self, host: str, port: int) -> None:
        """Serve it from now on, by threads of its own; OSError for an address that is taken."""
        self.blocks.queue(default_concurrency_limit=4).launch(
            server_name=host,
            server_port=port,
            max_file_size=self.most,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            enable_monitoring=False,
            theme=gr.themes.Default(**FONTS),
            css=CSS,
        )

    # Layout ---------------------------------------------------------------------------------------

    def _lay_out_questions(self) -> None:
        names = {
            f"{name}, to {it.run.preset.modality.upper()}": name for name, it in self.offers.items()
        }
        self.run = gr.Dropdown([*names.items()], value=next(iter(self.offers)), label="Run")
        self.modality = gr.Radio([("CT", "ct"), ("MR", "mr")], label="The image is")
        self.upload = gr.File(label=f"Image, up to {self.most >> 20} MB", height=180)
        with gr.Accordion("What a picture does not say", open=False):
            self.spacing = gr.Number(None, label="Pixel spacing [mm]; 1 without")
            with gr.Row():
                self.black = gr.Number(None, label="HU of black", min_width=120)
                self.white = gr.Number(None, label="HU of white", min_width=120)
        with gr.Accordion("Contours", open=True):
            of = {"interactive": False, "step": 1}  # before there is an image
            self.low = gr.Slider(0, STEEPEST, label="Low threshold", **of)
            self.high = gr.Slider(0, STEEPEST, label="High threshold", **of)
            self.blur = gr.Slider(BLURS[0], BLURS[-1], label="Blur [px]", **of | {"step": 2})
        self.samples = gr.Slider(1, MOST_SAMPLES, value=1, step=1, label="Samples")
        self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        self.go = gr.Button("Translate", variant="primary", interactive=False)

    def _lay_out_answers(self) -> None:
        self.status = gr.Textbox(
            PROMPT, label="Status", interactive=False, elem_id="status", lines=1, max_lines=6
        )
        self.number = gr.Slider(0, 1, step=1, label="Slice", visible=False)
        self.steps = gr.Markdown(STEPS)
        how = {"height": HEIGHT, "buttons": [], "visible": False}
        with gr.Row():
            self.source = gr.Image(label="Contours on the image", **how)
            self.wipe = gr.ImageSlider(label="Image | translation", elem_id="wipe", **how)
            self.spread = gr.Image(label="Deviation of samples", **how)
        self.files = gr.File(
            label="Download", file_count="multiple", interactive=False, visible=False
        )

    def _connect(self, blocks: gr.Blocks) -> None:
        asked = [self.upload, self.run, self.modality, self.spacing, self.black, self.white]
        contours = [self.low, self.high, self.blur]
        shown = [self.status, self.source, self.wipe, self.spread]
        private = {"api_visibility": "private"}
        triggers = [self.upload.upload, self.upload.clear, self.modality.input, self.run.input]
        triggers += [it.submit for it in (self.spacing, self.black, self.white)]
        gr.on(
            triggers,
            self._told(self.open, self._blank),
            asked,
            [*shown, self.steps, self.number, *contours, self.samples, self.files, self.go],
            concurrency_limit=2,
            show_progress_on=self.status,
            **private,
        )
        gr.on(
            [it.input for it in (self.number, *contours)],
            self._told(self.look, dict),
            [self.number, *contours],
            shown,
            trigger_mode="always_last",
            show_progress="hidden",
            **private,
        )
        self.go.click(
            self._told(self.translate, dict),
            [self.number, *asked[1:], *contours, self.samples, self.seed],
            [*shown, self.files],
            concurrency_limit=1,  # of all visitors: one at a time has the device
            show_progress_on=self.status,
            **private,
        )
        blocks.load(self.enter, **private)
        blocks.unload(self.leave)

    def _told(self, handler: Callable, otherwise: Callable[[], dict]) -> Callable:
        """A handler whose errors become the one line of the status, and `otherwise` of the rest."""

        def telling(request: gr.Request, progress=gr.Progress(), *values):  # noqa: B008, as gradio asks
            session = self.sessions.of(request.session_hash)
            try:
                return handler(session, progress, *values)
            except InputError as error:
                line = session.plain(str(error))
            except Exception as error:
                tell(error, "demo: ")
                line = FAULT
            finally:
                self.sessions.sweep(session)
            return otherwise() | {self.status: gr.Textbox(line, label="Not done")}

        return telling

    # Handlers -------------------------------------------------------------------------------------

    def enter(self, request: gr.Request) -> None:
        self.sessions.enter(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        self.sessions.close(request.session_hash)

    def open(self, session: Session, progress, upload, *said) -> dict:
        """Read an upload, and show its middle slice."""
        if upload is not None:
            session.uploads.add(Path(upload))
        with session.opening:
            place = session.begin()
            if upload is None:
                return self._blank() | {self.status: gr.Textbox(PROMPT, label="Status")}
            progress(0, "Reading")
            session.opened = opened = self._read(session, Path(upload), place, *said)
        seen, settings = opened.seen, opened.contours
        line = session.plain(" ".join(seen.said)) or f"{len(seen)} slices; ready to translate."
        return self._blank() | {
            **self._pictures(session, opened),
            self.steps: gr.Markdown(visible=False),
            self.status: gr.Textbox(line, label="Status"),
            self.number: gr.Slider(
                maximum=max(len(seen) - 1, 1), value=opened.number, visible=len(seen) > 1
            ),
            self.low: gr.Slider(value=settings.low, interactive=seen.free),
            self.high: gr.Slider(value=settings.high, interactive=seen.free),
            self.blur: gr.Slider(value=settings.blur, interactive=seen.free),
            self.samples: _samples(opened.offer),
            self.go: gr.Button(interactive=True),
        }

    def look(self, session: Session, progress, number, low, high, blur) -> dict:
        """Show another slice, or other contours."""
        del progress
        opened = _opened(session)
        opened.number, opened.contours = int(number), _contours(opened.seen, low, high, blur)
        return self._pictures(session, opened)

    def translate(self, session: Session, progress, number, *values) -> dict:
        """Translate what is shown, with the contours that are shown."""
        run, modality, spacing, black, white, low, high, blur, samples, seed = values
        opened = _opened(session)
        seen, offer = opened.seen, opened.offer
        said = self.offers[run], Wish(modality, assumed=_assumed(spacing, black, white))
        if said != (offer, opened.wish):
            raise InputError(
                "what is said of the image has changed: press Enter where you typed it, or wait "
                "until the image is shown again"
            )
        opened.number = int(number)
        opened.contours = contours = _contours(seen, low, high, blur)
        changed = contours if contours != seen.settings else None
        wish = dataclasses.replace(
            opened.wish, contours=changed, samples=int(samples), seed=int(seed or 0)
        )
        total = offer.batches(len(seen), wish.samples)
        progress(0, "Drawing; the first time its program is compiled, which takes a while")

        def tell_progress(count: int) -> None:
            session.check_shows(opened)
            progress(min(count / total, 1), f"Drawn {count} of {total} batches of slices")

        try:
            request = offer.request(opened.source, session.place("out"), wish)
            made = offer.translate(request, tell_progress)
            opened.drawn = Drawn.of(made, seen, request.assumed)
            shown = self._pictures(session, opened)
        finally:  # with the image its files have gone, which is no fault of the drawing
            session.check_shows(opened)
        files = [str(path) for path in (made.image, made.sidecar, made.whole) if path]
        moved = "" if opened.contours == contours else ", with the contours before they were moved"
        return shown | {
            self.files: gr.File(files, visible=True),
            self.status: gr.Textbox(f"{NOTICE} Translated{moved}.", label="Status"),
        }

    def _read(
        self, session: Session, upload: Path, place: Path, run, modality, spacing, black, white
    ) -> Opened:
        """An upload as what is looked at, whose files lie in `place`."""
        source = uploads.received(upload, place, self.most)
        assumed = _assumed(spacing, black, white)
        if modality is None:
            looks = uploads.looks(source, assumed)
            raise InputError(f"Its values look like {looks}: say whether the image is CT or MR.")
        offer, wish = self.offers[run], Wish(modality, assumed=assumed)
        seen = Seen.of(*offer.read(offer.request(source, session.place("out"), wish)))
        return Opened(source, offer, wish, seen, seen.settings, len(seen) // 2)

    # What components become -----------------------------------------------------------------------

    def _blank(self) -> dict:
        """All components that show an image, without one."""
        hidden = (self.source, self.wipe, self.spread, self.number)
        return {
            **{component: gr.update(visible=False) for component in hidden},
            self.files: gr.File(None, visible=False),
            self.steps: gr.Markdown(visible=True),
            self.go: gr.Button(interactive=False),
        }

    def _pictures(self, session: Session, opened: Opened) -> dict:
        """What is shown of an image: one slice."""
        seen, drawn, contours = opened.seen, opened.drawn, opened.contours
        number = min(opened.number, len(seen) - 1)
        greys, position = seen.stack.greys[number], seen.stack.positions[number]
        outlined = views.picture(greys, seen.edges(number, contours))
        shown = {self.source: gr.Image(session.picture(outlined), visible=True)}
        if drawn is not None:
            pair = (views.picture(greys), views.picture(drawn.stack.at(position)))
            value = tuple(session.picture(picture) for picture in pair)
            shown[self.wipe] = gr.ImageSlider(value, visible=True)
        if drawn is None or drawn.spread is None:
            return shown | {self.spread: gr.Image(visible=False)}
        label = f"Deviation of samples, white: {drawn.most}"
        value = session.picture(views.heat(drawn.spread.at(position)))
        return shown | {self.spread: gr.Image(value, label=label, visible=True)}


def _samples(offer: Offer) -> gr.Slider:
    """How many samples may be asked for: one where all would be the same."""
    return gr.Slider(interactive=True) if offer.stepwise else gr.Slider(value=1, interactive=False)


def _opened(session: Session) -> Opened:
    session.check_open()
    opened = session.opened
    if opened is None:
        raise InputError("there is no image; give one first")
    return opened


def _contours(seen: Seen, low: float, high: float, blur: int) -> ContourSettings:
    """The contours of an image with a visitor's thresholds; its own where these count nothing."""
    if not seen.free:
        return seen.settings
    return dataclasses.replace(seen.settings, low=low, high=high, blur=int(blur))


def _assumed(spacing: float | None, black: float | None, white: float | None) -> Assumed:
    """What a visitor says of a picture."""
    if (black is None) != (white is None):
        raise InputError("HU of black and of white: give both, or neither")
    return Assumed(spacing or None, None if black is None else (black, white))
