"""HTML report of a run or a comparison of several; table and checklists for a paper.

The pages are single files that need no internet connection. `egmae report` writes them.
"""

from egmae_jax.report.checklist import write_checklist
from egmae_jax.report.page import write_comparison, write_external_report, write_report
from egmae_jax.report.table import write_table

__all__ = [
    "write_checklist",
    "write_comparison",
    "write_external_report",
    "write_report",
    "write_table",
]
