"""Serves the page to this machine alone (needs NiceGUI: pip install -e '.[demo]').

The server listens on 127.0.0.1, answers to no other name, which keeps out DNS rebinding, refuses
requests of other sites' pages, and tells the browser to load nothing from elsewhere. Images stay in
memory.
"""

import functools
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from fastapi import FastAPI
from nicegui import core, ui
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from egmae_jax.deploy.demo.page import Page
from egmae_jax.deploy.predictor import Predictor
from egmae_jax.run.saved_run import RunError

HOST = "127.0.0.1"
_FRAMING = 64 * 1024  # most bytes of an upload's form besides the file
# NiceGUI compiles its templates in the browser, by eval.
_POLICY = (
    "default-src 'self' data: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


class _LimitedBody:
    """Receives the body of a request, which may have at most `max_bytes` bytes.

    Raises:
        ValueError: there are more, which ends whatever reads them.
    """

    def __init__(self, receive: Receive, max_bytes: int):
        self._receive, self._bytes_left = receive, max_bytes

    @property
    def too_large(self) -> bool:
        return self._bytes_left < 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes_left -= len(message.get("body", b""))
        if self.too_large:
            raise ValueError("The file is too large.")
        return message


class _Guard:
    """ASGI middleware: refuses other sites' requests and too large bodies, and sets the policy."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            refusal = PlainTextResponse("This page answers no other site.", 403)
            return await refusal(scope, receive, send)
        body = _LimitedBody(receive, self._max_bytes)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            if not body.too_large:
                await send(message)

        try:
            await self._app(scope, body, send_with_policy)
        except Exception:  # whatever the form's reader makes of a body that is too large
            if not body.too_large:
                raise
        if body.too_large:
            await PlainTextResponse("The file is too large.", 413)(scope, receive, send)


def make_app(predictor: Predictor, *, branch: str, max_megabytes: int) -> FastAPI:
    """The page as an ASGI application; one per process, because NiceGUI's state is global.

    Args:
        predictor: predictor of a run.
        branch: branch whose Grad-CAM is shown first.
        max_megabytes: largest size of a file, in 10^6 bytes.
    """
    limit = max_megabytes * 10**6 + _FRAMING
    # Starlette and NiceGUI write larger files to temporary ones; no file is larger.
    MultiPartParser.spool_max_size = limit
    core.sio.eio.cors_allowed_origins = None  # the socket's own check: the same origin alone
    # One thread, so that images of several tabs wait for their turn.
    worker = ThreadPoolExecutor(1, thread_name_prefix="networks")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard, max_bytes=limit)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    ui.run_with(
        app,
        root=functools.partial(Page, predictor, worker, branch, max_megabytes),
        title="egmae_jax: try a model",
        dark=None,  # as the browser's
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )
    return app


def listen(port: int) -> socket.socket:
    """Opens a socket for this machine alone; port 0 takes any that is free.

    Raises:
        RunError: the port is in use, or is no port.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except OverflowError as error:
        reason = str(error).rstrip(".")
    raise RunError(
        f"Port {port} of {HOST} cannot be used: {reason}. Give another one with --port; 0 takes "
        "any that is free."
    )
