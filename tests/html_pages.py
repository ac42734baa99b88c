"""Pages as a reader meets them: whole, closed to the network and to scripts, and shown by a browser where one is."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def page(path):
    """The page's HTML, having seen that it is whole, needs nothing from elsewhere and runs nothing."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert "@import" not in text
    assert "url(" not in text
    tags = Tags(text).found
    assert ("html", {"lang": "en-GB"}) in tags
    assert "title" in [tag for tag, _ in tags]
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "srcdoc", "action")]
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert not re.match(r"\w+:|/", attributes.get("href", ""))
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    return text


def words(text):
    """What is read on the page."""
    visible = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", visible)).split())


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOK = """<!DOCTYPE html><script>
const pages = PAGES, found = [], pixels = (element) => parseFloat(getComputedStyle(element).fontSize);
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
function ground(element) {  // the colour behind an element's text
  for (; element; element = element.parentElement) {
    const [r, g, b, opaque = 1] = parts(getComputedStyle(element).backgroundColor);
    if (opaque) return [r, g, b];
  }
  return [255, 255, 255];
}
function luminance(colour) {  // of WCAG 2
  const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = colour.map((each) => linear(each / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(element) {
  const both = [parts(getComputedStyle(element).color).slice(0, 3), ground(element)].map(luminance);
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}
function read(element) {
  const own = [...element.childNodes].some((node) => node.nodeType == 3 && node.data.trim());
  return own && element.getClientRects().length > 0;
}
function look() {
  if (found.length == 3 * pages.length) {
    document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
    return;
  }
  const frame = document.createElement("iframe"), width = [400, 1280, 1920][found.length % 3];
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.srcdoc = pages[Math.floor(found.length / 3)];
  frame.onload = () => setTimeout(() => {
    const inside = frame.contentDocument, images = [...inside.images];
    found.push({
      width: frame.contentWindow.innerWidth,
      scroll: inside.documentElement.scrollWidth,
      images: images.length,
      broken: images.filter((image) => image.naturalWidth == 0).length,
      smallest: Math.min(...[...inside.querySelectorAll("main *")].map(pixels)),
      contrast: Math.min(...[...inside.querySelectorAll("main *")].filter(read).map(contrast)),
      ran: Boolean(frame.contentWindow.ran || window.ran),
    });
    frame.remove();
    look();
  }, 50);
  document.body.append(frame);
}
window.onload = look;
</script><body></body>"""


DARK = "@media screen and (prefers-color-scheme: dark) {"


def _with_script(text):
    return text.replace("</main>", "</main><script>ran = true</script>")  # past the escaping


def assert_shown(text, folder, images):
    """At any width, light, dark and printed: nothing scrolls sideways, no picture is missing, and text can be read.

    No script runs, and the console has no error but that the one put in here was refused. folder: where to write what
    the browser needs.
    """
    assert all(text.count(each) for each in (DARK, "@media print {", "@media screen {"))
    dark = text.replace(DARK, "@media all {")
    printed = text.replace(DARK, "@media not all {").replace("@media screen {", "@media not all {")
    printed = printed.replace("@media print {", "@media all {")
    pages = [_with_script(each) for each in (text, dark, printed)]
    content = json.dumps(pages).replace("</", "<\\/")
    (folder / "look.html").write_text(LOOK.replace("PAGES", content), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --enable-logging=stderr --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    profile = f"--user-data-dir={folder / 'profile'}"
    shown = subprocess.run(
        [str(BROWSER), *flags.split(), profile, (folder / "look.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    match = re.search(r"<pre>(\[.*?\])</pre>", shown.stdout)
    assert match, shown.stdout[-2000:]
    said = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in said if "Content Security Policy" not in line]
    found = json.loads(html.unescape(match[1]))
    assert [each["width"] for each in found] == 3 * [400, 1280, 1920]
    for each in found:
        assert each["scroll"] <= each["width"]
        assert each["images"] == images
        assert each["broken"] == 0
        assert each["smallest"] >= 12
        assert each["contrast"] >= 4.5  # WCAG 2, level AA
        assert not each["ran"]
