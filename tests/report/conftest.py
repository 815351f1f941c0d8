"""The page of a finished run, and a browser for pages."""

import html.parser
import shutil

import pytest

from egmae_jax.core import console

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1200, 1920)
A4 = 703  # CSS pixels between margins of 12 mm
# What leaves the page; SVG has boxes of its own.
OVERFLOW = """() => {
  const page = document.documentElement, wide = [];
  for (const box of document.querySelectorAll('body *:not(svg *)')) {
    const scrolls = box.closest('.scroll') && getComputedStyle(box.closest('.scroll')).overflowX;
    if (box.getBoundingClientRect().right > page.clientWidth + 1 && scrolls !== 'auto')
      wide.push(`${box.tagName}.${box.className} ${box.textContent.trim().slice(0, 40)}`);
  }
  if (page.scrollWidth > page.clientWidth) wide.push(`${page.scrollWidth} in all`);
  return wide;
}"""


@pytest.fixture(scope="session")
def read(html_run):
    """The report of a run whose names are HTML, parsed."""
    return Page((html_run[0] / "report.html").read_text())


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
        page = browser.new_page()
        page.set_content(html)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            yield width, page
        page.emulate_media(media="print")
        page.set_viewport_size({"width": A4, "height": 1000})
        yield A4, page
        page.close()

    return show
