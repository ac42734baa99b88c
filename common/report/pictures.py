"""Pictures of a synthetic set and of a run; the suffix of the path, .png or .svg, decides the file format."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.report.voxels import render
from common.system.errors import printable
from common.system.files import write_atomically
from common.system.text import networks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES, MAX_IMAGES = 20, 16
_MAX_MASKS = 40
_MAX_LABEL = 16  # characters
_LEGEND = 10  # seeds; of more, no colour could be told from the others
_DPI = 150


def draw_images(path: Path, images: Tensor, class_names: Sequence[str], title: str) -> None:
    """Draw images [C * n, ch, H, W] in [0, 1], grouped by class, one row per class; at most 20 classes of 16 images."""
    rows = images.unflatten(0, (len(class_names), -1))[:MAX_CLASSES, :MAX_IMAGES].cpu().numpy()
    count, columns, _, height, width = rows.shape
    # All images are one picture with white gaps; a matplotlib axis per image takes twenty times as long.
    gap = max(1, width // 12)
    padded = np.pad(rows, [(0, 0), (0, 0), (0, 0), (0, gap), (0, gap)], constant_values=1)
    # [C, n, ch, H, W] -> [C * H, n * W, ch]
    mosaic = padded.transpose(0, 3, 1, 4, 2).reshape(count * (height + gap), columns * (width + gap), -1)
    side = max(0.7, 3.2 / columns)
    figure = _figure(side * columns + 1.2, side * count * height / width + 0.6)
    axis = figure.subplots()
    axis.imshow(mosaic[:-gap, :-gap], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks(
        [row * (height + gap) + (height - 1) / 2 for row in range(count)],
        [_label(name) for name in class_names[:count]],
        fontsize=8,
    )
    axis.tick_params(length=0)
    axis.set_frame_on(False)
    figure.suptitle(_plain(title), fontsize=8, wrap=True)
    _save(figure, path)


def draw_voxels(path: Path, volumes: Tensor, class_names: Sequence[str], title: str) -> None:
    """Draw volumes [C * n, ch, D, H, W] in [0, 1], grouped by class, one row per class, each turned to face the viewer.

    Channels are averaged. At most 20 classes of 16 volumes are drawn; a volume takes 25 ms on one core.
    """
    rows = volumes.mean(dim=1).unflatten(0, (len(class_names), -1))[:MAX_CLASSES, :MAX_IMAGES].cpu()
    pictures = torch.cat([render(row) for row in rows])[:, None]
    draw_images(path, pictures, class_names[:MAX_CLASSES], title)


def draw_masks(path: Path, masks: Tensor, class_names: Sequence[str], title: str) -> None:
    """Draw the kept positions of up to 40 classes; low frequencies are at the top left.

    masks: boolean [C, H, W], or [C, D, H, W], for which the share of kept positions along each axis is drawn.
    """
    shown, columns, side = masks[:_MAX_MASKS].cpu().numpy(), 10, 1.1  # inches
    if shown.ndim == 4:
        shown, columns, side = shares_along_axes(shown), 5, 1.8
        title += "\nshare kept along depth (top left), width (top right) and height (bottom left); black means 1"
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(max(4.0, side * columns), (side + 0.15) * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for mask, name, axis in zip(shown, class_names, axes, strict=False):
        axis.imshow(mask, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_facecolor("0.8")  # where there is no position
        axis.set_title(_label(name), fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(_plain(title), fontsize=8, wrap=True)
    _save(figure, path)


def draw_shares(path: Path, cells: Sequence[tuple[str, Tensor]], columns: int, title: str) -> None:
    """Draw a table of maps, filled row by row with `columns` columns.

    cells: for each map its caption and, for each position [H, W], the share of classes that keep it.
    """
    rows = -(-len(cells) // columns)
    figure = _figure(1.9 * columns, 2.3 * rows + 0.7)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(cells) :]:
        axis.set_axis_off()
    for (caption, share), axis in zip(cells, axes, strict=False):
        drawn = axis.imshow(share.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(_plain(caption), fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(drawn, ax=list(axes), shrink=0.5, label="share of classes that keep the position")
    figure.suptitle(_plain(title), fontsize=8, wrap=True)
    _save(figure, path)


def draw_curves(path: Path, losses: Sequence[tuple[int, float]], evaluations: Sequence[dict[str, Any]]) -> None:
    """Plot matching loss (log scale) and accuracy in % (mean and standard deviation over networks) against the updates.

    evaluations: those of a single network, or of a pool of networks, which get one line each.
    """
    figure = _figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    _plot_losses(left, losses)
    _plot_accuracies(right, evaluations)
    _save(figure, path)


def draw_losses(path: Path, losses: Sequence[tuple[int, float]]) -> None:
    """Plot the matching loss (log scale) against the updates."""
    figure = _figure(4.2, 3.2)
    _plot_losses(figure.subplots(), losses)
    _save(figure, path)


def draw_step_sizes(
    path: Path, sizes: Sequence[float], losses: Sequence[float | None], usual: float, suggested: float, title: str
) -> None:
    """Plot the loss of each step size on a logarithmic axis; None for one that diverged.

    usual, suggested: the step sizes that are marked.
    """
    figure = _figure(7, 4)
    axis = figure.subplots()
    there = [(size, loss) for size, loss in zip(sizes, losses, strict=True) if loss is not None]
    axis.plot(*zip(*there, strict=True), marker="o", color="tab:blue")
    axis.set_xscale("log")
    axis.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    for size, loss in zip(sizes, losses, strict=True):
        if loss is None:
            axis.axvline(size, color="tab:red", linestyle=":", linewidth=1)
    axis.plot([], [], color="tab:red", linestyle=":", label="diverged") if None in losses else None
    axis.axvline(usual, color="tab:gray", linestyle="--", label=f"used without a flag: {usual:.4g}")
    axis.axvline(suggested, color="tab:green", label=f"suggested: {suggested:.4g}")
    axis.set_xlabel("lr_freq")
    axis.set_ylabel("mean loss of the last quarter")
    axis.set_title(_plain(title), fontsize=10)
    axis.legend()
    _save(figure, path)


def draw_evaluations(path: Path, evaluations: Sequence[dict[str, Any]]) -> None:
    """Plot accuracy in % (mean and standard deviation) against the updates, one line per network of a pool."""
    figure = _figure(4.2, 3.2)
    _plot_accuracies(figure.subplots(), evaluations)
    _save(figure, path)


def draw_sets(path: Path, evaluations: Mapping[int, Sequence[dict[str, Any]]]) -> None:
    """Plot accuracy in % (mean and standard deviation over networks) against the updates, one line per synthetic set.

    evaluations: of each set, by its seed.
    """
    figure = _figure(4.2, 3.2)
    axis = figure.subplots()
    for seed, points in evaluations.items():
        _plot_points(axis, [(point["iteration"], point) for point in points], f"seed {seed}")
    if len(evaluations) <= _LEGEND:
        axis.legend(fontsize=8)
    _label_updates(axis, "test accuracy, %")
    _save(figure, path)


def _plot_losses(axis: Axes, losses: Sequence[tuple[int, float]]) -> None:
    from matplotlib.ticker import LogFormatter

    if losses:
        axis.plot(*zip(*losses, strict=True), linewidth=0.8)
        if any(loss > 0 for _, loss in losses):
            axis.set_yscale("log")
            axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # 2, where the default is 2 x 10^0
    _label_updates(axis, "matching loss (no unit)")


def _plot_accuracies(axis: Axes, evaluations: Sequence[dict[str, Any]]) -> None:
    pools = [networks_of(point) for point in evaluations]
    names = list(dict.fromkeys(name for pool in pools for name in pool))
    for name in names:
        tested = [
            (point["iteration"], pool[name]) for point, pool in zip(evaluations, pools, strict=True) if name in pool
        ]
        _plot_points(axis, tested, name)
    if len(names) > 1:
        axis.legend(fontsize=8)
    _label_updates(axis, "test accuracy, %")


def _plot_points(axis: Axes, tested: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> None:
    """Draw a line through (iteration, figures) with the standard deviations as bars."""
    axis.errorbar(
        [iteration for iteration, _ in tested],
        _in_percent([figures["mean"] for _, figures in tested]),
        yerr=_in_percent([figures["std"] for _, figures in tested]),
        marker="o",
        capsize=3,
        label=_plain(name),
    )


def _in_percent(fractions: Sequence[float | None]) -> np.ndarray:
    """Fractions in %, NaN for None, where nothing is drawn: all networks of that evaluation diverged."""
    return 100 * np.array(fractions, dtype=float)


def _label_updates(axis: Axes, what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set(xlabel="updates", ylabel=what)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def draw_energy(path: Path, frequencies: Tensor, energy: Tensor, class_names: Sequence[str], title: str) -> None:
    """Plot the energy [C, F] of each class (log scale) against the F frequencies [F]; at most 20 classes."""
    figure = _figure(4.6, 4.0)
    axis = figure.subplots()
    for row, name in zip(energy[:MAX_CLASSES].cpu(), class_names, strict=False):
        kept = row > 0
        axis.plot(frequencies[kept].cpu(), row[kept], marker=".", markersize=3, linewidth=0.8, label=_label(name))
    axis.set_yscale("log")
    axis.set(xlabel="frequency (sum over the axes, at most 1 per axis)", ylabel="mean square of the coefficients")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(_plain(title), fontsize=8, wrap=True)
    _save(figure, path)


def draw_accuracies(path: Path, percent: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Draw a table of accuracies in %, [rows, columns], coloured from worst to best; NaN where there is none."""
    figure = _figure(0.75 * len(columns) + 2.8, 0.3 * len(rows) + 1.1)
    axis = figure.subplots()
    drawn = axis.imshow(percent, cmap="viridis", aspect="auto")
    known = percent[~np.isnan(percent)]
    least, most = (known.min(), known.max()) if known.size else (0.0, 0.0)
    for (row, column), value in np.ndenumerate(percent):
        text = "-" if np.isnan(value) else f"{value:.1f}"
        dark = value < (least + most) / 2 or (least == most and value == value)
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_xticks(range(len(columns)), [_plain(each) for each in columns], fontsize=8)
    axis.set_yticks(range(len(rows)), [_plain(each) for each in rows], fontsize=8)
    axis.tick_params(length=0)
    figure.colorbar(drawn, ax=axis, label="test accuracy, %")
    figure.suptitle(_plain(title), fontsize=8, wrap=True)
    _save(figure, path)


def shares_along_axes(masks: np.ndarray) -> np.ndarray:
    """Average masks [C, D, H, W] along each axis: front, side and top view in one picture [C, H + 2 + D, W + 2 + D].

    Pixels outside the three views are NaN.
    """
    count, depth, height, width = masks.shape
    views = np.full((count, height + 2 + depth, width + 2 + depth), np.nan)
    views[:, :height, :width] = masks.mean(axis=1)
    views[:, :height, -depth:] = masks.mean(axis=3).swapaxes(1, 2)
    views[:, -depth:, :width] = masks.mean(axis=2)
    return views


def _plain(text: str) -> str:
    # matplotlib would read the text between two dollar signs as mathematics, and fail if it is not, as it fails for a
    # name that is no UTF-8.
    return printable(text, keep="\n").replace("$", r"\$")


def _label(name: str) -> str:
    # A long name would leave no room for the pictures.
    name = printable(name)
    return _plain(name if len(name) <= _MAX_LABEL else name[: _MAX_LABEL - 1] + "…")


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, which would keep every figure alive and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr, call-arg]
    return figure


def _save(figure: Figure, path: Path) -> None:
    # The temporary file has another suffix than the path, so the format is passed explicitly.
    kind = path.suffix.removeprefix(".")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a script that the font lacks it draws boxes
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=_DPI, format=kind, bbox_inches="tight"))
