"""The page in one browser tab (needs NiceGUI: pip install -e '.[demo]').

All text goes to the browser as text, so that neither the name of a file nor that of a class is
taken for HTML.
"""

import asyncio
import base64
import io
import logging
from concurrent.futures import Executor
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
from nicegui import ui
from nicegui.element import Element
from nicegui.events import UploadEventArguments

from egmae_jax.core.errors import UserError
from egmae_jax.deploy.demo.examine import Examined, examine
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.explain.overlay import COLORMAP

_STYLE = Path(__file__).with_suffix(".css")
_PRIMARY = "#0b62b0"  # white on it has a contrast of 6
MAX_BYTES = 100 * 10**6  # of a file
logger = logging.getLogger(__name__)


class Page:
    """The page in one browser tab.

    Args:
        predictor: predictor of a run.
        worker: examines images, while the server goes on answering.
        branch: branch whose Grad-CAM is shown first.
    """

    def __init__(self, predictor: Predictor, worker: Executor, branch: str):
        self._predictor, self._worker, self._branch = predictor, worker, branch
        ui.colors(primary=_PRIMARY)
        ui.add_css(_STYLE.read_text(encoding="utf-8"))
        with ui.element("main"):
            self._text("h1", "Try a model")
            self._text("p", self._about())
            self._upload = ui.upload(
                auto_upload=True,
                max_file_size=MAX_BYTES,
                on_begin_upload=lambda: self._say("Sending the image …"),
                on_upload=self._show,
                on_rejected=self._refuse,
            ).props("flat no-thumbnails")
            self._upload.add_slot(
                "header",
                """
                <div class="drop">
                  <q-btn no-caps unelevated color="primary" label="Choose an image"
                         :disable="!props.canAddFiles" @click="props.pickFiles">
                    <q-uploader-add-trigger />
                  </q-btn>
                  <span>or drop it here: JPEG, PNG, TIFF, BMP, WebP, DICOM</span>
                </div>
                """,
            )
            self._upload.add_slot("list", " ")
            self._status = self._text("p", "").props("role=status").classes("status")
            self._results = ui.element("div")
            self._text("footer", "For research; not a medical device. Images stay on this machine.")

    def _about(self) -> str:
        run = self._predictor.run
        networks = ", ".join(f"{branch.name} ({branch.model_name})" for branch in run.branches)
        return (
            f"{run.workdir.resolve().name}: {networks}. Probabilities are calibrated for each "
            "classifier by itself: the ensemble's are fused before that."
        )

    def _text(self, tag: str, text: str) -> Element:
        """Adds an element with a text, which the browser never takes for HTML."""
        with ui.element(tag) as element:
            ui.label(text)
        return element

    def _say(self, text: str, *, error: bool = False) -> None:
        self._status.clear()
        self._status.classes(add="error" if error else "", remove="" if error else "error")
        with self._status:
            ui.label(text)

    def _refuse(self) -> None:
        self._results.clear()
        self._say(f"The image was not taken: it has more than {MAX_BYTES / 1e6:g} MB.", error=True)
        self._upload.reset()

    async def _show(self, event: UploadEventArguments) -> None:
        name = event.file.name
        self._upload.disable()  # one image at a time
        self._results.clear()
        self._say(f"Looking at {name} …")
        examined, problem = None, ""
        try:
            encoded = await event.file.read()
            loop = asyncio.get_running_loop()
            examined = await loop.run_in_executor(self._worker, examine, self._predictor, encoded)
        except UserError as error:
            problem = str(error)
        except Exception:  # a bug: the terminal shows the traceback, and the page goes on
            logger.exception("An image could not be classified.")
            problem = "it could not be classified; the terminal says why"
        if self._upload.is_deleted:  # the page was closed meanwhile
            return
        self._upload.reset()
        self._upload.enable()
        if examined is None:
            self._say(f"{name}: {problem}", error=True)
            return
        decisive = next(iter(examined.probabilities.values())).max()
        self._say(f"{name}: {examined.predicted}, {decisive:.1%}")
        with self._results:
            self._draw_probabilities(examined)
            self._draw_pictures(examined)

    def _draw_probabilities(self, examined: Examined) -> None:
        with ui.element("section").props('aria-label="Class probabilities"').classes("tables"):
            for name, row in examined.probabilities.items():
                with ui.element("table"):
                    self._text("caption", name)
                    likeliest = row.argmax()
                    for k, (label, p) in enumerate(
                        zip(self._predictor.classes, row.tolist(), strict=True)
                    ):
                        with ui.element("tr").classes("likeliest" if k == likeliest else ""):
                            self._text("th", label).props("scope=row")
                            with ui.element("td").classes("bar"):
                                ui.element("div").style(f"width: {p:.2%}")
                            self._text("td", f"{p:.3f}")

    def _draw_pictures(self, examined: Examined) -> None:
        size = len(examined.pixels)
        with ui.element("section").props('aria-label="Pictures"').classes("pictures"):
            with ui.element("figure"):
                _picture(examined.pixels, "The image as the networks see it")
                self._text("figcaption", f"As the networks see it: {size}x{size} pixels")
            with ui.element("figure"):
                heat = _picture(examined.overlays[self._branch], "")
                self._text(
                    "figcaption",
                    f"Grad-CAM: regions that raise the score of “{examined.predicted}”, the "
                    "brighter the more",
                )
                with ui.element("figcaption"):
                    layer = ui.label()

                def choose(branch: str) -> None:
                    self._branch = branch
                    heat.props["src"] = _data_url(examined.overlays[branch])
                    heat.props["alt"] = f"Grad-CAM of {examined.predicted} by {branch}"
                    heat.update()
                    layer.text = f"Of {examined.layers[branch]}; between its cells interpolated"

                choose(self._branch)
                if len(examined.overlays) > 1:
                    ui.radio(
                        list(examined.overlays),
                        value=self._branch,
                        on_change=lambda event: choose(event.value),
                    ).props('inline dense aria-label="Branch that Grad-CAM explains"')
            if examined.entropy is not None:
                self._draw_entropy(examined.entropy)

    def _draw_entropy(self, entropy: np.ndarray) -> None:
        patch = self._predictor.run.config.corruption.patch_size
        lowest, highest = entropy.min(), entropy.max()
        with ui.element("figure"):
            colors = matplotlib.colormaps[COLORMAP](entropy / max(highest, 1e-9), bytes=True)
            text = f"Entropy of its {patch}x{patch} patches, {lowest:.2f} to {highest:.2f} nats"
            _picture(colors[..., :3], text)
            self._text("figcaption", f"{text}, the brighter the more")


def _picture(pixels: np.ndarray, alt: str) -> Element:
    image = ui.element("img")
    image.props["src"], image.props["alt"] = _data_url(pixels), alt
    return image


def _data_url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
