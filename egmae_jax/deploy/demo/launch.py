"""Starts the server of the page and opens the page in the browser."""

import io
import logging
import threading
import webbrowser
from pathlib import Path
from typing import Literal

import PIL.Image

from egmae_jax.core import extras
from egmae_jax.deploy.demo.examine import examine
from egmae_jax.deploy.predictor import Predictor

logger = logging.getLogger(__name__)


def serve(
    workdir: Path,
    *,
    round_index: int | Literal["all"] | None,
    branch: str | None,
    port: int,
    browse: bool,
) -> None:
    """Serves the page of a finished run until the process is interrupted.

    Args:
        workdir: folder of the run.
        round_index: see `Predictor`.
        branch: branch whose Grad-CAM is shown first; None chooses as `SavedRun.branch`.
        port: port to listen on; 0 chooses a free port.
        browse: whether the page is opened in the browser.

    Raises:
        MissingExtraError: NiceGUI is not installed.
        RunError: the run is not finished or has no such round or branch, or the port cannot be
            used.
    """
    extras.require("nicegui", extra="demo")
    import uvicorn

    from egmae_jax.deploy.demo import server

    with server.listen(port) as listener:
        predictor = Predictor(workdir, round_index=round_index)
        first_branch = predictor.run.branch(branch).name
        logger.info("Compiling the networks, so that the first image is classified quickly ...")
        blank = io.BytesIO()
        PIL.Image.new("L", (64, 64)).save(blank, "PNG")
        examine(predictor, blank.getvalue())
        app = server.make_app(predictor, branch=first_branch)
        url = f"http://{server.HOST}:{listener.getsockname()[1]}"
        logger.info("The page is at %s. Press Ctrl-C to stop it.", url)
        if browse:
            # In a thread, because with some browsers the call returns only when they are closed.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listener])
