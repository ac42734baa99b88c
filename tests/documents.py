"""The documents of the repository as data: their code blocks, commands, links and headings.

`python -m tests.documents` opens every link to the outside and lists those that do not answer (`make links`).
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
_NOT_OURS = {"data", "runs", "build", "pretrained", "buffers"}  # ignored by git, and may hold documents of others


def _is_ours(path: Path) -> bool:
    first = path.relative_to(ROOT).parts[0]
    return first not in _NOT_OURS and (first == ".github" or not first.startswith("."))


FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "*/*.md", "results/*/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
    if _is_ours(path)
)
_AGENT = {"User-Agent": "Mozilla/5.0 (a check of links)"}
_SECONDS = 30


class Command(NamedTuple):
    """A line of a shell block."""

    file: str
    text: str
    environment: dict[str, str]
    words: list[str]


def read(file: str) -> str:
    """The text of a document; of a notebook, that of its Markdown cells."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if not file.endswith(".ipynb"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(file: str, language: str) -> list[str]:
    """The fenced code blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(file), flags=re.DOTALL | re.MULTILINE)


def prose(file: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", read(file), flags=re.DOTALL | re.MULTILINE)


def commands(file: str) -> Iterator[Command]:
    """Every command in the `sh` blocks of a document; `&&` joins two, and after a backslash a line goes on."""
    for block in blocks(file, "sh"):
        for line in re.split(r"\n| && ", block.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            environment = {}
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                environment[name] = value
            if words:
                yield Command(file, line.strip(), environment, words)


def links(file: str) -> list[str]:
    """The targets of a document's links and pictures."""
    found = re.findall(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)?)\)", re.sub(r"`[^`\n]*`", "", prose(file)))
    return [*found, *re.findall(r"<(https?://[^>\s]+)>", prose(file))]


def anchors(file: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(file), flags=re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    seen: Counter[str] = Counter()
    found = set()
    for slug in slugs:
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def _answer(url: str) -> str | None:
    """What is wrong with a link to the outside; None if it answers, if only to say that robots are not welcome."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=_AGENT), timeout=_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403, 405, 429) else f"{error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    """Print the links to the outside that do not answer; the exit code is 1 if there are any."""
    notebooks = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.ipynb")]
    where: dict[str, list[str]] = {}
    for file in (*FILES, *notebooks):
        for link in links(file):
            if link.startswith(("http://", "https://")):
                where.setdefault(link.partition("#")[0], []).append(file)
    wrong = 0
    for url, files in sorted(where.items()):
        if problem := _answer(url):
            wrong += 1
            print(f"{url} in {', '.join(sorted(set(files)))}: {problem}")
    print(f"{len(where)} links to the outside, {wrong} without an answer")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
