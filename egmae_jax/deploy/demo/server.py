"""Serves the page to this machine alone (needs NiceGUI: pip install -e '.[demo]').

The server listens on 127.0.0.1, answers to no other name, which keeps out DNS rebinding, refuses
requests of other sites' pages, and tells the browser to load nothing from elsewhere. Images stay in
memory.
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
# NiceGUI compiles its templates in the browser, by eval.
_POLICY = (
    "default-src 'self' data: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


def make_app(predictor: Predictor, *, branch: str) -> FastAPI:
    """The page as an ASGI application; one per process, because NiceGUI's state is global.

    Args:
        predictor: predictor of a run.
        branch: branch whose Grad-CAM is shown first.
    """
    # Starlette and NiceGUI write larger uploads to temporary files; the page takes none.
    MultiPartParser.spool_max_size = MAX_BYTES
    core.sio.eio.cors_allowed_origins = None  # the socket's own check: the same origin alone
    # One thread, so that images of several tabs wait for their turn.
    worker = ThreadPoolExecutor(1, thread_name_prefix="networks")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    ui.run_with(
        app,
        root=functools.partial(Page, predictor, worker, branch),
        title="egmae_jax: try a model",
        dark=None,  # as the browser's
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )
    return app


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuses requests of other sites' pages, and sets the content security policy."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return PlainTextResponse("This page answers no other site.", 403)
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def listen(port: int) -> socket.socket:
    """Opens a socket for this machine alone; port 0 takes any that is free.

    Raises:
        RunError: the port is in use, or is no port.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise RunError(
            f"Port {port} of {HOST} cannot be used ({error}). Take another --port; 0 is any that "
            "is free."
        ) from None
