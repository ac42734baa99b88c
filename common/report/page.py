"""HTML pages of one file each, made from templates: text is escaped, pictures are data URIs, there are no scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from common.system.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

_SIDE, _QUALITY = 1200, 85  # pixels of the longer side of a picture that a page shows small and large; of WebP
TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill in a template and write the page atomically; `values` are escaped, so that they appear as text, not HTML.

    The template may extend templates in its own folder and in TEMPLATES.
    """
    page = _environment(template.parent).get_template(template.name).render(values)
    # JSON may hold half of a surrogate pair, which UTF-8 cannot encode.
    content = page.encode("utf-8", errors="xmlcharrefreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


@lru_cache
def _environment(folder: Path) -> Environment:
    """What reads the templates of a folder; kept, with the templates that it has compiled, for further pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def png_uri(pixels: np.ndarray) -> str:
    """Return pixels [H, W], [H, W, 1] or [H, W, 3] in 0..1 as the data URI of a PNG."""
    from PIL import Image

    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return _png_uri(Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels))


def picture_uri(path: Path) -> str:
    """Return the picture in a file as a data URI, its sides at most 1200 pixels: as WebP, as PNG if Pillow has none."""
    from PIL import Image, features

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    if not features.check("webp"):
        return _png_uri(small)
    content = BytesIO()
    small.save(content, format="WebP", quality=_QUALITY, method=6)
    return _uri("webp", content.getvalue())


def svg_uri(draw: Callable[[Path], None]) -> str:
    """Return the data URI of an SVG; `draw` must draw it to the path it is given, which ends in .svg."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "drawing.svg"
        draw(path)
        return _uri("svg+xml", path.read_bytes())


def _png_uri(image: Image) -> str:
    content = BytesIO()
    image.save(content, format="PNG")
    return _uri("png", content.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
