"""A finished run whose classes and files are called like HTML, and a browser for its pages."""

import html.parser
import shutil

import pytest

from egmae_jax import experiment
from egmae_jax.core import console
from tests import tiny

CLASSES = {
    "benign": '<script>alert("a")<script>',
    "malignant": "\"><img src=x onerror='b()'>",
    "normal": "{{ 7 * 7 }} $x^2$ & <b>",
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1200, 1920)
A4 = 703  # CSS pixels between margins of 12 mm
# What is wider than the box that scrolls it, and what leaves the page. A letter's ink may be a
# pixel wider than its box; SVG has boxes of its own.
OVERFLOW = """() => {
  const page = document.documentElement, found = [];
  for (const box of document.querySelectorAll('body *:not(svg *)')) {
    const edge = box.getBoundingClientRect();
    const name = `${box.tagName}.${box.className} ${box.textContent.trim().slice(0, 40)}`;
    const scrolls = box.closest('.scroll') && getComputedStyle(box.closest('.scroll')).overflowX;
    if (edge.right > page.clientWidth + 1 && scrolls !== 'auto') found.push(`page: ${name}`);
    if (!box.closest('.matrix')) continue;
    if (box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display !== 'inline')
      found.push(`matrix: ${name} ${box.scrollWidth} in ${box.clientWidth}`);
  }
  if (page.scrollWidth > page.clientWidth) found.push(`${page.scrollWidth} in all`);
  return found;
}"""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Workdir and images of a run of two rounds, which writes its report."""
    folder = tmp_path_factory.mktemp("hostile")
    data = tiny.make_data(folder / "phantoms")
    for name, label in CLASSES.items():
        (data / name).rename(folder / "phantoms" / label)
        for k, path in enumerate(sorted((data / label).glob("*.png"))):
            path.rename(path.with_name(f"<i>{k}<i> {path.name}"))
    fields = {"evaluation__report": True, "pretrain__epochs": 2, "finetune__epochs": 2}
    experiment.run(tiny.make_config(data, folder / "cache", **fields), folder / "run")
    return folder / "run", data


@pytest.fixture(scope="session")
def read(made):
    """The page of that run, parsed."""
    return Page((made[0] / "report.html").read_text())


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(console, "set_up_logging", lambda: None)  # global


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, and the text; asserts that tags are closed in order."""

    VOID = ("meta", "img", "br", "path", "use", "rect", "circle")

    def __init__(self, text):
        super().__init__()
        self.tags, self.strings, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    @property
    def text(self):
        return " ".join("".join(self.strings).split())

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, text):
        self.strings.append(text)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="session")
def browser():
    """Chromium; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture
def views(browser):
    """Shows HTML at each of the widths and as A4 in print; yields the width and the page."""

    def show(html):
        opened = browser.new_page()
        opened.set_content(html)
        for width in WIDTHS:
            opened.set_viewport_size({"width": width, "height": 900})
            yield width, opened
        opened.emulate_media(media="print")
        opened.set_viewport_size({"width": A4, "height": 1000})
        yield A4, opened
        opened.close()

    return show
