"""Writes the report of a finished run, a comparison of several, a table, or a checklist."""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_output
from egmae_jax.report import write_checklist, write_comparison, write_report, write_table
from egmae_jax.report.table import SUFFIXES


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae report`."""
    parser = Parser("report", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, action="append", type=local_path, metavar="FOLDER",
        help="folder of a run; repeat the flag to compare several runs")  # fmt: skip
    add_output = parser.add_mutually_exclusive_group().add_argument
    add_output("--out", type=local_path, metavar="FILE",
        help="HTML file to write (default: report.html in the workdir or, for several runs, "
        "comparison.html in the current folder)")  # fmt: skip
    add_output("--table", type=local_path, metavar="FILE",
        help="table of results to write instead of the HTML file: LaTeX with booktabs (.tex), "
        "Markdown (.md) or .csv")  # fmt: skip
    add_output("--checklist", type=local_path, metavar="FILE",
        help="Markdown file (.md) to write instead of the HTML file: the reporting checklists "
        "CLAIM 2024 and TRIPOD+AI, filled in from one run as far as it knows")  # fmt: skip
    add("--prevalence", action="append", default=[], metavar="[CLASS=]SHARE",
        help="prevalence of a class where the classifier will be used, such as malignant=0.05, for "
        "the predictive values in the report of one run; of two classes, 0.05 is that of the "
        "second; repeat the flag for other classes")  # fmt: skip
    add("--data_dir", type=local_path, metavar="FOLDER",
        help="folder of the images, if they were moved after training; only for the report of one "
        "run")  # fmt: skip
    options = parser.read(arguments)
    first, *others = options.workdir
    other_output = options.table or options.checklist or others
    if options.data_dir and other_output:
        parser.error("--data_dir is for the report of one run; other outputs need no images")
    if options.prevalence and other_output:
        parser.error("--prevalence is for the report of one run")
    if options.checklist and others:
        parser.error("--checklist is for one run; give --workdir once")
    console.set_up_logging()
    default = Path("comparison.html") if others else first / "report.html"
    out = options.table or options.checklist or options.out or default
    suffixes = SUFFIXES if options.table else (".md",) if options.checklist else (".html", ".htm")
    require_output(out, suffixes)
    with explain_storage_errors(*options.workdir, out.parent):
        if options.table:
            write_table(options.workdir, out)
        elif options.checklist:
            write_checklist(first, out)
        elif others:
            write_comparison(options.workdir, out)
        else:
            write_report(first, out, data_dir=options.data_dir, prevalence=options.prevalence)
    print(f"Written to {out}")


if __name__ == "__main__":
    sys.exit(main())
