"""The command `python -m common.report`: `show FILE` draws a synthetic set, `html FOLDER` writes the page of a run."""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass
from pathlib import Path

import tyro

from common.config.command_line import parse_command
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
    options = parse_command({"show": ShowOptions, "html": HtmlOptions}, "python -m common.report")
    if isinstance(options, HtmlOptions):
        folder = Path(options.folder)
        print((write_seeds_report if (folder / FILE).exists() else write_run_report)(folder))
    else:
        show(options)


if __name__ == "__main__":
    run_command(main)
