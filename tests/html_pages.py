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
      ran: Boolean(frame.contentWindow.ran || window.ran),
    });
    frame.remove();
    look();
  }, 50);
  document.body.append(frame);
}
window.onload = look;
</script><body></body>"""


def assert_shown(text, folder, images):
    """At any width nothing scrolls sideways, no picture is missing, no text is tiny, and no script runs.

    folder: where to write what the browser needs.
    """
    text = text.replace("</main>", "</main><script>ran = true</script>")  # past the escaping
    (folder / "look.html").write_text(LOOK.replace("PAGES", json.dumps([text]).replace("</", "<\\/")), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    profile = f"--user-data-dir={folder / 'profile'}"
    shown = subprocess.run(
        [str(BROWSER), *flags.split(), profile, (folder / "look.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    match = re.search(r"<pre>(\[.*?\])</pre>", shown)
    assert match, shown[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert [each["width"] for each in found] == [400, 1280, 1920]
    for each in found:
        assert each["scroll"] <= each["width"]
        assert each["images"] == images
        assert each["broken"] == 0
        assert each["smallest"] >= 13
        assert not each["ran"]
