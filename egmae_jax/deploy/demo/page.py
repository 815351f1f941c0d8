"""The page in a browser tab (needs NiceGUI: pip install -e '.[demo]').

Labels send text to the browser as plain text, so names of files and classes cannot inject HTML.
"""

import asyncio
import logging
from concurrent.futures import Executor
from pathlib import Path

import matplotlib
import numpy as np
from nicegui import ui
from nicegui.element import Element
from nicegui.events import UploadEventArguments

from egmae_jax.core.errors import UserError
from egmae_jax.data import images
from egmae_jax.deploy.demo.examine import Examination, examine
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.explain.overlay import COLORMAP

_STYLE = Path(__file__).with_suffix(".css")
_PRIMARY = "#0b62b0"  # the contrast ratio of white text on it is 6
MAX_BYTES = 100 * 10**6  # largest size of an uploaded file
logger = logging.getLogger(__name__)


class Page:
    """The page in a browser tab.

    Args:
        predictor: predictor of a run.
        worker: executor that examines images, so that the server stays responsive.
        branch: branch whose Grad-CAM is shown first.
    """

    def __init__(self, predictor: Predictor, worker: Executor, branch: str):
        self._predictor, self._worker, self._branch = predictor, worker, branch
        ui.colors(primary=_PRIMARY)
        ui.add_css(_STYLE.read_text(encoding="utf-8"))
        with ui.element("main"):
            self._add_text("h1", "Try a model")
            self._add_text("p", self._describe_run())
            self._upload = ui.upload(
                auto_upload=True,
                max_file_size=MAX_BYTES,
                on_begin_upload=lambda: self._set_status("Uploading the image …"),
                on_upload=self._show_image,
                on_rejected=self._report_rejection,
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
            self._status = self._add_text("p", "").props("role=status").classes("status")
            self._results = ui.element("div")
            self._add_text(
                "footer", "For research only; not a medical device. Images stay on this machine."
            )

    def _describe_run(self) -> str:
        run = self._predictor.run
        networks = ", ".join(f"{branch.name} ({branch.model_name})" for branch in run.branches)
        return (
            f"{run.workdir.resolve().name}: {networks}. The probabilities of each classifier are "
            "calibrated separately; the ensemble fuses them before its calibration."
        )

    def _add_text(self, tag: str, text: str) -> Element:
        """Adds an element that contains plain text."""
        with ui.element(tag) as element:
            ui.label(text)
        return element

    def _set_status(self, text: str, *, error: bool = False) -> None:
        self._status.clear()
        self._status.classes(add="error" if error else "", remove="" if error else "error")
        with self._status:
            ui.label(text)

    def _report_rejection(self) -> None:
        self._results.clear()
        self._set_status(
            f"The image was rejected: the file is larger than {MAX_BYTES / 1e6:g} MB.", error=True
        )
        self._upload.reset()

    async def _show_image(self, event: UploadEventArguments) -> None:
        name = event.file.name
        self._upload.disable()  # one image at a time
        self._results.clear()
        self._set_status(f"Classifying {name} …")
        result, problem = None, ""
        try:
            encoded = await event.file.read()
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(self._worker, examine, self._predictor, encoded)
        except UserError as error:
            problem = str(error)
        except Exception:  # a bug; the page can still classify other images
            logger.exception("An image could not be classified.")
            problem = "the image could not be classified; the terminal shows the error"
        if self._upload.is_deleted:  # the page was closed meanwhile
            return
        self._upload.reset()
        self._upload.enable()
        if result is None:
            self._set_status(f"{name}: {problem}", error=True)
            return
        probability = next(iter(result.probabilities.values())).max()
        self._set_status(f"{name}: {result.predicted}, {probability:.1%}")
        with self._results:
            self._draw_probabilities(result)
            self._draw_pictures(result)

    def _draw_probabilities(self, result: Examination) -> None:
        with ui.element("section").props('aria-label="Class probabilities"').classes("tables"):
            for name, row in result.probabilities.items():
                with ui.element("table"):
                    self._add_text("caption", name)
                    likeliest = row.argmax()
                    for k, (label, p) in enumerate(
                        zip(self._predictor.classes, row.tolist(), strict=True)
                    ):
                        with ui.element("tr").classes("likeliest" if k == likeliest else ""):
                            self._add_text("th", label).props("scope=row")
                            with ui.element("td").classes("bar"):
                                ui.element("div").style(f"width: {p:.2%}")
                            self._add_text("td", f"{p:.3f}")

    def _draw_pictures(self, result: Examination) -> None:
        size = len(result.pixels)
        with ui.element("section").props('aria-label="Pictures"').classes("pictures"):
            with ui.element("figure"):
                _add_picture(result.pixels, "Input of the networks")
                self._add_text("figcaption", f"Input of the networks, {size}x{size} pixels")
            with ui.element("figure"):
                heat = _add_picture(result.overlays[self._branch], "")
                self._add_text(
                    "figcaption",
                    f"Grad-CAM: brighter regions raise the score of “{result.predicted}” more",
                )
                with ui.element("figcaption"):
                    layer = ui.label()

                def choose(branch: str) -> None:
                    self._branch = branch
                    heat.props["src"] = _data_uri(result.overlays[branch])
                    heat.props["alt"] = f"Grad-CAM of {result.predicted} by {branch}"
                    heat.update()
                    layer.text = f"Computed at {result.layers[branch]}, and interpolated"

                choose(self._branch)
                if len(result.overlays) > 1:
                    ui.radio(
                        list(result.overlays),
                        value=self._branch,
                        on_change=lambda event: choose(event.value),
                    ).props('inline dense aria-label="Branch that Grad-CAM explains"')
            if result.entropy is not None:
                self._draw_entropy(result.entropy)

    def _draw_entropy(self, entropy: np.ndarray) -> None:
        patch = self._predictor.run.config.corruption.patch_size
        lowest, highest = entropy.min(), entropy.max()
        with ui.element("figure"):
            colors = matplotlib.colormaps[COLORMAP](entropy / max(highest, 1e-9), bytes=True)
            text = f"Entropy of the {patch}x{patch} patches, {lowest:.2f} to {highest:.2f} nats"
            _add_picture(colors[..., :3], text)
            self._add_text("figcaption", f"{text}; brighter patches have a higher entropy")


def _add_picture(pixels: np.ndarray, alt: str) -> Element:
    image = ui.element("img")
    image.props["src"], image.props["alt"] = _data_uri(pixels), alt
    return image


def _data_uri(pixels: np.ndarray) -> str:
    return images.data_uri(images.from_array(pixels), "png")
