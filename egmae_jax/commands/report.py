"""Writes the report of a finished run, a comparison of several runs, or a table of results."""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_output
from egmae_jax.report import write_comparison, write_report, write_table
from egmae_jax.report.table import SUFFIXES


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae report`."""
    parser = Parser("report", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, action="append", type=Path, metavar="FOLDER",
        help="folder of a run; repeat the flag to compare several runs")  # fmt: skip
    add_output = parser.add_mutually_exclusive_group().add_argument
    add_output("--out", type=Path, metavar="FILE",
        help="HTML file to write (default: report.html in the workdir or, for several runs, "
        "comparison.html in the current folder)")  # fmt: skip
    add_output("--table", type=Path, metavar="FILE",
        help="table of results to write instead of the HTML file: LaTeX with booktabs (.tex), "
        "Markdown (.md) or .csv")  # fmt: skip
    add("--data_dir", type=Path, metavar="FOLDER",
        help="folder of the images, if they were moved after training")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    first, *others = options.workdir
    default = Path("comparison.html") if others else first / "report.html"
    out = options.table or options.out or default
    require_output(out, SUFFIXES if options.table else (".html", ".htm"))
    with explain_storage_errors(*options.workdir, out.parent):
        if options.table:
            write_table(options.workdir, out)
        elif others:
            write_comparison(options.workdir, out)
        else:
            write_report(first, out, data_dir=options.data_dir)
    print(f"Written to {out}")


if __name__ == "__main__":
    sys.exit(main())
