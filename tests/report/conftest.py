"""A browser that shows the report's pages at several widths and as they are printed."""

import shutil

import pytest

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
