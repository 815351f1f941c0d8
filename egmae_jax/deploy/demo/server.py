"""The server of the page, for this machine alone (needs NiceGUI: pip install -e '.[demo]').

It listens on 127.0.0.1, answers to no other name, which keeps out DNS rebinding, refuses what other
sites' pages send, and tells the browser to load nothing from elsewhere. Images stay in memory.
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
_FRAMING = 64 * 1024  # bytes that the form of an upload may have beside the file
# NiceGUI compiles its templates in the browser, by eval.
_POLICY = (
    "default-src 'self' data: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


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
        taken, too_large = 0, False

        async def receive_limited() -> Message:
            nonlocal taken, too_large
            message = await receive()
            taken += len(message.get("body", b""))
            too_large = too_large or taken > self._max_bytes
            if too_large:
                raise ValueError("The file is too large.")  # ends what reads it
            return message

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            if not too_large:
                await send(message)

        try:
            await self._app(scope, receive_limited, send_with_policy)
        except Exception:  # whatever reads the form makes of `receive_limited`'s error
            if not too_large:
                raise
        if too_large:
            await PlainTextResponse("The file is too large.", 413)(scope, receive, send)


def make_app(predictor: Predictor, *, branch: str, max_megabytes: int) -> FastAPI:
    """The page as an ASGI application; one a process, as NiceGUI's state is.

    Args:
        predictor: of a run.
        branch: whose Grad-CAM is shown first.
        max_megabytes: of 10^6 bytes, the most that a file may have.
    """
    limit = max_megabytes * 10**6 + _FRAMING
    # Starlette and NiceGUI write a larger file to a temporary one: none is.
    MultiPartParser.spool_max_size = limit
    core.sio.eio.cors_allowed_origins = None  # the socket's own check: the same origin alone
    # One thread: images of several tabs wait for their turn.
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
    """A socket of this machine alone; port 0 takes any that is free.

    Raises:
        RunError: the port is in use, or not to be had.
    """
    try:
        return socket.create_server((HOST, port))
    except OverflowError as error:
        reason = str(error).rstrip(".")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    raise RunError(
        f"Port {port} of {HOST} cannot be used: {reason}. Give another one with --port; 0 takes "
        "any that is free."
    )
