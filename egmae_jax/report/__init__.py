"""report.html: what a run came to, on one page that needs no network; and its table for a paper.

python -m egmae_jax.report --workdir=W [--out=FILE] [--data_dir=FOLDER]
python -m egmae_jax.report --workdir=W --workdir=V [--out=FILE]    # compares runs
python -m egmae_jax.report --workdir=W [--workdir=V] --table=FILE    # .tex, .md or .csv
"""

from egmae_jax.report.page import write_comparison, write_report
from egmae_jax.report.table import write_table

__all__ = ["write_comparison", "write_report", "write_table"]
