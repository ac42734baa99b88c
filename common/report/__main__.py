"""The command `python -m common.report`: pictures and pages of sets and runs.

show FILE         draw a synthetic set and print what it holds
html FOLDER       write the page of a run again
gallery FOLDER    write a page of all synthetic sets of a folder
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass
from pathlib import Path

import tyro

from common.config.command_line import parse_command
from common.gallery.page import GalleryOptions, write_gallery
from common.report.run_page import write_run_report
from common.report.seeds import FILE, write_seeds_report
from common.report.show import ShowOptions, show
from common.system.command import run_command


@dataclass
class HtmlOptions:
    """Write report.html again from a run folder, or from the folder <name>-seeds of several runs: one page that needs
    no other file."""

    folder: tyro.conf.Positional[str]
    """the run folder, or the folder <name>-seeds that --seeds wrote"""


def main() -> None:
    """Run the subcommand of the command line. Raises InputError for a file or folder that cannot be read."""
    kinds = {"show": ShowOptions, "html": HtmlOptions, "gallery": GalleryOptions}
    options = parse_command(kinds, "python -m common.report")
    if isinstance(options, HtmlOptions):
        folder = Path(options.folder)
        print((write_seeds_report if (folder / FILE).exists() else write_run_report)(folder))
    elif isinstance(options, GalleryOptions):
        print(write_gallery(options))
    else:
        show(options)


if __name__ == "__main__":
    run_command(main)
