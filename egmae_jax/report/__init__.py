"""report.html, a run on one page that needs no network, and its table for a paper.

`egmae report` writes both, of one run or of several that are compared.
"""

from egmae_jax.report.page import write_comparison, write_report
from egmae_jax.report.table import write_table

__all__ = ["write_comparison", "write_report", "write_table"]
