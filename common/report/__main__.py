"""The command `python -m common.report`: `show FILE` draws a synthetic set, `html FOLDER` writes the page of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from common.config.command_line import parse_command
from common.report.run_page import write_run_report
from common.report.show import ShowOptions, show
from common.system.command import run_command


@dataclass
class HtmlOptions:
    """Write report.html again from a run folder: one self-contained page with the results of the run."""

    folder: tyro.conf.Positional[str]
    """the run folder"""


def main() -> None:
    """Run the subcommand of the command line. Raises InputError for a file or folder that cannot be read."""
    options = parse_command({"show": ShowOptions, "html": HtmlOptions}, "python -m common.report")
    if isinstance(options, HtmlOptions):
        print(write_run_report(Path(options.folder)))
    else:
        show(options)


if __name__ == "__main__":
    run_command(main)
