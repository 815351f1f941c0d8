"""Writes report.html of a finished run, a comparison of several, or the table of either."""

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
        help="folder of a run; several are compared")  # fmt: skip
    add_output = parser.add_mutually_exclusive_group().add_argument
    add_output("--out", type=Path, metavar="FILE",
        help="the page; without it report.html in the workdir, or, of several, "
        "comparison.html here")  # fmt: skip
    add_output("--table", type=Path, metavar="FILE",
        help="the table of results instead of the page: LaTeX for booktabs (.tex), Markdown (.md) "
        "or .csv")  # fmt: skip
    add("--data_dir", type=Path, metavar="FOLDER",
        help="folder of the images, if they were moved")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    first, *others = options.workdir
    page = Path("comparison.html") if others else first / "report.html"
    out = options.table or options.out or page
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
