"""report.html: what a run came to, on one page that needs no network.

python -m egmae_jax.report --workdir=W [--out=FILE] [--data_dir=FOLDER]
python -m egmae_jax.report --workdir=W --workdir=V [--out=FILE]    # compares runs
"""

from egmae_jax.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
