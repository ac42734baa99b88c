"""Pages that are one file: templates filled in, every text escaped, pictures inside as data URIs, no script."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from common.system.files import write_atomically

_THUMBNAIL = 320  # pixels of the longer side
TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill in a template and write the page atomically; whatever `values` say is text, never HTML.

    The template may extend its neighbours and those in TEMPLATES.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(values)
    # JSON may hold half a surrogate pair, which UTF-8 has no bytes for.
    content = page.encode("utf-8", errors="xmlcharrefreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def png_uri(pixels: np.ndarray) -> str:
    """A picture [H, W] or [H, W, 3 or 1] in 0..1."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return _png_uri(Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels))


def thumbnail_uri(path: Path) -> str:
    """The picture in a file, made small."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _png_uri(small)


def svg_uri(draw: Callable[[Path], None]) -> str:
    """What `draw` draws to a path that ends in .svg."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "drawing.svg"
        draw(path)
        return _uri("svg+xml", path.read_bytes())


def _png_uri(image: Image.Image) -> str:
    content = BytesIO()
    image.save(content, format="PNG")
    return _uri("png", content.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
