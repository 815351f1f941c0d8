"""Serves the page to this machine only (needs NiceGUI: pip install -e '.[demo]').

The server listens on 127.0.0.1. It accepts only this host name and localhost (against DNS
rebinding), refuses requests from pages of other sites, and forbids the browser to load anything
from other hosts. Images stay in memory.
"""

import functools
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from nicegui import core, ui
from starlette.formparsers import MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from egmae_jax.deploy.demo.page import MAX_BYTES, Page
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.run.saved_run import RunError

HOST = "127.0.0.1"
# 'unsafe-eval', because NiceGUI compiles its templates in the browser.
_POLICY = (
    "default-src 'self' data: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


def make_app(predictor: Predictor, *, branch: str) -> FastAPI:
    """Creates the page as an ASGI application, once per process: NiceGUI's state is global.

    Args:
        predictor: predictor of a run.
        branch: branch whose Grad-CAM is shown first.
    """
    # Starlette and NiceGUI would write larger uploads to temporary files; the page rejects those.
    MultiPartParser.spool_max_size = MAX_BYTES
    core.sio.eio.cors_allowed_origins = None  # the socket accepts only the same origin
    # One thread, so that the networks process the images of several tabs one after another.
    worker = ThreadPoolExecutor(1, thread_name_prefix="networks")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_refuse_other_sites)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    ui.run_with(
        app,
        root=functools.partial(Page, predictor, worker, branch),
        title="egmae_jax: try a model",
        dark=None,  # follows the browser's setting
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )
    return app


async def _refuse_other_sites(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Refuses requests from pages of other sites, and sets the content security policy."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return PlainTextResponse("The server refuses requests from pages of other sites.", 403)
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def listen(port: int) -> socket.socket:
    """Opens a socket that listens on 127.0.0.1.

    Args:
        port: port to listen on; 0 chooses a free port.

    Raises:
        RunError: the port is in use, may not be used, or is not a valid port number.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise RunError(
            f"Port {port} of {HOST} cannot be used ({error}). Choose another --port; --port=0 "
            "chooses a free one."
        ) from None
