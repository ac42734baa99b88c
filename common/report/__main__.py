"""`python -m common.report show FILE` or `html FOLDER`: what a synthetic-set file or a run folder holds."""

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
    """Write report.html anew: what a run found, as one page that opens anywhere."""

    folder: tyro.conf.Positional[str]
    """the run folder"""


def main() -> None:
    """Show a file or write a page, as the command line says. Raises InputError for what cannot be read."""
    options = parse_command({"show": ShowOptions, "html": HtmlOptions}, "python -m common.report")
    if isinstance(options, HtmlOptions):
        print(write_run_report(Path(options.folder)))
    else:
        show(options)


if __name__ == "__main__":
    run_command(main)
