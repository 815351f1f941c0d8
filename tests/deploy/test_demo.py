"""The page to try a model: what it shows, whom it answers, and in a browser."""

import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL.Image
import pytest

import egmae_jax
from egmae_jax.commands import demo
from egmae_jax.data.images import NOT_AN_IMAGE
from egmae_jax.deploy.demo.examine import examine
from egmae_jax.deploy.predictor import Predictor
from tests import REPOSITORY, tiny

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
HOSTILE = "<img src=x onerror=document.title='taken'>.txt"


@pytest.fixture(scope="module")
def workdir(moved, tmp_path_factory):
    """A finished run, in a folder that looks like HTML."""
    return shutil.copytree(moved[0], tmp_path_factory.mktemp("demo") / "<b>`${1}")


@pytest.fixture(scope="module")
def predictor(workdir):
    return Predictor(workdir)


@pytest.fixture(scope="module")
def files(moved):
    return sorted(moved[1].rglob("*.png"))


# --- What is shown of an image -------------------------------------------------------------------


def test_shows_what_the_predictor_computes(predictor, files):
    examined = examine(predictor, files[3].read_bytes())
    expected = predictor.predict(files[3])
    assert list(examined.probabilities) == ["ensemble", "imagenet", "mae"]
    for name, row in examined.probabilities.items():
        np.testing.assert_allclose(row, expected.probabilities[name][0], atol=1e-6)
    assert [examined.predicted] == expected.predicted

    assert np.array_equal(examined.pixels, next(predictor.stream([files[3]])).pixels[0])
    assert {image.shape for image in examined.overlays.values()} == {(32, 32, 3)}
    for branch in ("imagenet", "mae"):
        assert str(examined.layers[branch]) == "layer stages_0/blocks_0, 8 x 8 grid"
    (entropy,) = egmae_jax.patch_entropy(examined.pixels[None], 16)
    np.testing.assert_allclose(examined.entropy, entropy, atol=1e-6)


# --- Whom it answers -----------------------------------------------------------------------------

HOST = "127.0.0.1:8080"


@pytest.fixture(scope="module")
def client(predictor):
    pytest.importorskip("nicegui")
    from starlette.testclient import TestClient

    from egmae_jax.deploy.demo import server

    app = server.make_app(predictor, branch="mae")
    with TestClient(app, base_url=f"http://{HOST}") as client:
        yield client


class Tab:
    """A page that a browser has opened."""

    def __init__(self, client):
        self._client = client
        page = client.get("/")
        self.url, self._id = re.search(
            r"(/_nicegui/client/([\w-]+)/upload/\d+)", page.text
        ).groups()

    def send(self, name, content):
        return self._client.post(self.url, files={"file": (name, content)})

    def texts(self):
        from nicegui import Client, ui

        elements = Client.instances[self._id].elements.values()
        return [element.text for element in elements if isinstance(element, ui.label)]

    def waits_for(self, text):
        self.waits_until(lambda texts: any(text in label for label in texts))

    def waits_until(self, holds):
        """Elements come one by one: `holds` is asked of the texts until it is true."""
        deadline = time.monotonic() + 30
        while not holds(self.texts()):
            assert time.monotonic() < deadline, self.texts()
            time.sleep(0.02)


def test_the_browser_may_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "set-cookie" not in page.headers


def test_refuses_other_hosts_and_sites(client, files):
    from starlette.testclient import WebSocketDenialResponse
    from starlette.websockets import WebSocketDisconnect

    tab = Tab(client)
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "localhost:8080"}).status_code == 200
    image = {"file": ("a.png", files[0].read_bytes())}
    for origin, status in (
        ("http://evil.example", 403),
        ("http://127.0.0.1:9", 403),
        ("null", 403),
        (f"http://{HOST}", 200),
    ):
        response = client.post(tab.url, files=image, headers={"Origin": origin})
        assert response.status_code == status, origin
    socket_url = f"ws://{HOST}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    upgrade = {"Upgrade": "websocket"}
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with (
            pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)),
            client.websocket_connect(socket_url, headers=upgrade | headers),
        ):
            pass
    with client.websocket_connect(
        socket_url, headers=upgrade | {"Origin": f"http://{HOST}"}
    ) as opened:
        assert opened.receive_text().startswith("0{")


def test_nothing_is_written(client, monkeypatch, tmp_path):
    # Above a megabyte Starlette and NiceGUI would make temporary files, which fails here.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    tab = Tab(client)
    image = io.BytesIO()
    PIL.Image.new("RGB", (1000, 1300)).save(image, "BMP")
    assert len(image.getvalue()) > 3e6
    assert tab.send("large.bmp", image.getvalue()).status_code == 200
    tab.waits_until(lambda texts: any(re.fullmatch(r"large\.bmp: \w+, \d+\.\d%", x) for x in texts))
    assert not list(tmp_path.iterdir())


def test_a_bad_file_ends_in_a_message_and_the_page_goes_on(client, files, monkeypatch):
    tab = Tab(client)
    tab.send(HOSTILE, b"no image")
    tab.waits_for(f"{HOSTILE}: {NOT_AN_IMAGE}")
    with monkeypatch.context() as patch:

        def fail(*_):
            raise RuntimeError("unforeseen")

        patch.setattr("egmae_jax.deploy.demo.page.examine", fail)
        tab.send("b.png", files[0].read_bytes())
        tab.waits_for("b.png: the image could not be classified; the terminal shows the error")
    tab.send("d.png", files[0].read_bytes())
    tab.waits_for("Grad-CAM: brighter regions raise the score of “")
    tab.waits_for("Computed at layer stages_0/blocks_0, 8 x 8 grid")


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def refused(command):
    """Runs the command, which must end before it serves; returns its errors."""

    def start(workdir, *flags):
        status, _, errors = command(demo, "--no-open", *flags, workdir=workdir)
        assert status == 1
        return errors

    return start


def test_names_the_extra_that_is_missing(refused, workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert "pip install -e '.[demo]'" in refused(workdir)


def test_refuses_what_cannot_be_shown(refused, workdir):
    pytest.importorskip("nicegui")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = refused(workdir, f"--port={port}")
        assert f"Port {port} of 127.0.0.1 cannot be used" in error
        assert "Address already in use" in error
    assert "Port 70000" in refused(workdir, "--port=70000")
    assert "no branch 'x'" in refused(workdir, "--port=0", "--branch=x")


# --- In a browser --------------------------------------------------------------------------------


@pytest.fixture
def served(workdir):
    """The address of the page, served by a process of its own."""
    pytest.importorskip("nicegui")
    pytest.importorskip("playwright.sync_api")
    start = "import sys; from tests import tiny; tiny.register(); "
    start += "from egmae_jax.deploy.demo import page; page.MAX_BYTES = 10**6; "
    start += "from egmae_jax.commands.demo import main; sys.exit(main())"
    flags = (f"--workdir={workdir}", "--port=0", "--no-open")
    process = subprocess.Popen(
        [sys.executable, "-c", start, *flags],
        cwd=REPOSITORY,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = ""
    for line in process.stdout:
        output += line
        if address := re.search(r"http://127\.0\.0\.1:\d+", line):
            yield address[0]
            break
    else:
        pytest.fail(output)
    process.send_signal(signal.SIGINT)
    left, _ = process.communicate(timeout=30)
    assert (process.returncode, left) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser(served, predictor, files, tmp_path):
    from playwright import sync_api as playwright

    examined = examine(predictor, files[3].read_bytes())
    bad = tmp_path / HOSTILE.replace("/", "")
    bad.write_text("no image")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served)
        expect = playwright.expect
        status = page.get_by_role("status")

        # By keyboard.
        button = page.get_by_role("button", name="Choose an image")
        button.focus()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(files[3])
        expect(status).to_have_text(
            f"{files[3].name}: {examined.predicted}, {examined.probabilities['ensemble'].max():.1%}"
        )
        for name, row in examined.probabilities.items():
            table = page.get_by_role("table", name=name)
            for label, p in zip(predictor.classes, row, strict=True):
                expect(table.get_by_role("row", name=label)).to_contain_text(f"{p:.3f}")
        heat = page.get_by_alt_text(f"Grad-CAM of {examined.predicted} by mae")
        assert heat.evaluate("image => image.naturalWidth") == 32
        expect(page.get_by_text("Computed at layer stages_0/blocks_0, 8 x 8 grid")).to_be_visible()
        page.get_by_role("radio", name="imagenet").press("Space")
        expect(
            page.get_by_alt_text(f"Grad-CAM of {examined.predicted} by imagenet")
        ).to_be_visible()
        expect(page.get_by_alt_text("Entropy of the 16x16 patches")).to_be_visible()
        expect(page.get_by_text("not a medical device")).to_be_visible()
        for image in page.locator("img").all():
            assert image.get_attribute("alt")
        assert page.evaluate("document.documentElement.scrollWidth") == 390

        # A file that is too large, one that is no image, and then an image that is dropped.
        large = tmp_path / "large.png"
        large.write_bytes(bytes(2 * 10**6))
        page.set_input_files("input[type=file]", large)
        expect(status).to_contain_text("larger than 1 MB")
        expect(page.locator("figure")).to_have_count(0)
        page.set_input_files("input[type=file]", bad)
        expect(status).to_have_text(f"{bad.name}: {NOT_AN_IMAGE}")
        dropped = page.evaluate_handle(
            """bytes => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
              return data;
            }""",
            list(files[3].read_bytes()),
        )
        for event, place in (("dragover", ".q-uploader"), ("drop", ".q-uploader__dnd")):
            page.dispatch_event(place, event, {"dataTransfer": dropped})
        expect(status).to_contain_text(f"dropped.png: {examined.predicted}")

        assert page.title() == "egmae_jax: try a model"
        assert not errors
        assert not [url for url in requests if not url.startswith((f"{served}/", "data:"))]
        browser.close()
