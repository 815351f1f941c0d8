"""Results from tables 1 to 4 of the paper, for comparison with a run.

The paper's splits are not published, so they differ from those of any run. FLOPs are multiply-adds
per image, as is usual in such tables.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """A model in a table of the paper, with metrics from 0 to 1; None for unpublished values."""

    model: str
    gflops: float | None  # multiply-adds per image, 10^9
    parameters: float | None  # number of parameters, millions
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float


class Table(NamedTuple):
    """A table of the paper."""

    number: int  # number of the table in the paper
    data: str  # name of the data set
    rows: Sequence[Row]


# GFLOPs and million parameters of each model.
_COMPARATORS = {
    "SWIN": (15.19, 87.77),
    "ConvNeXt": (8.73, 49.46),
    "CMT": (3.95, 24.98),
    "SMT": (4.72, 22.04),
    "FocalNet": (8.65, 49.89),
    "PerViT": (11.5, 20.85),
    "SG-Former": (4.59, 22.55),
    "SPA": (4.57, 30.02),
    "CPVT": (15.64, 22.76),
    "The paper's ensemble, 1000/15": (None, None),
}
# Accuracy, precision, recall, F1 and AUC of each model, in the order above.
_BUSI = """
.6925 .6580 .6621 .6608 .8224
.6738 .6464 .5447 .5234 .7093
.7137 .6803 .6820 .6839 .8749
.7877 .7628 .7369 .7462 .8846
.7538 .7441 .6795 .6850 .8045
.7736 .7547 .7424 .7468 .8837
.7819 .7623 .7370 .7564 .8731
.7475 .7289 .7008 .7067 .8749
.8195 .8031 .8090 .8039 .9213
.9744 .9766 .9603 .9684 .9974
"""
_ISIC2018 = """
.8508 .7312 .6379 .6730 .9463
.8629 .7679 .7208 .7395 .9558
.8533 .7583 .6692 .7033 .9474
.8689 .7798 .7196 .7479 .9671
.8351 .7124 .6441 .6743 .9495
.8343 .6990 .6312 .6612 .9514
.8408 .7791 .7203 .6705 .9398
.8429 .7079 .6497 .6711 .9418
.8798 .8603 .7745 .8113 .9683
.9118 .8814 .8240 .8517 .9832
"""
_KVASIR = """
.8915 .8912 .8910 .8909 .9855
.8190 .8206 .8191 .8186 .9394
.8797 .8813 .8798 .8800 .9821
.8953 .8955 .8954 .8948 .9911
.8765 .8787 .8766 .8751 .9842
.8691 .8698 .8683 .8694 .9848
.8948 .8961 .8947 .8954 .9905
.8935 .8946 .8935 .8940 .9859
.9041 .9052 .9042 .9038 .9904
.9430 .9445 .9430 .9437 .9966
"""
_COVID2 = """
.9320 .9221 .9404 .9298 .9788
.9486 .9340 .9476 .9458 .9857
.9388 .9241 .9195 .9206 .9836
.9417 .9252 .9474 .9342 .9881
.9425 .9312 .9405 .9396 .9874
.9413 .9205 .9373 .9292 .9860
.9453 .9368 .9508 .9422 .9845
.9471 .9374 .9513 .9430 .9856
.9497 .9377 .9525 .9474 .9899
.9782 .9793 .9788 .9790 .9988
"""


def _table(number: int, data: str, figures: str) -> Table:
    lines = [[float(x) for x in line.split()] for line in figures.split("\n") if line]
    models = zip(_COMPARATORS.items(), lines, strict=True)
    return Table(number, data, [Row(name, *size, *values) for (name, size), values in models])


_TABLES: Mapping[tuple[str, int], Table] = {
    ("busi", 3): _table(1, "BUSI", _BUSI),
    ("isic2018", 7): _table(2, "ISIC 2018", _ISIC2018),
    ("kvasir", 8): _table(3, "Kvasir", _KVASIR),
    ("covid", 2): _table(4, "COVID2", _COVID2),
}


def find_table(dataset: str, num_classes: int) -> Table | None:
    """Returns the paper's table of a data set.

    Args:
        dataset: name of the data set, as in `config.data.name`.
        num_classes: number of its classes in the run.

    Returns:
        The table; None if the paper has none for this data set with as many classes.
    """
    return _TABLES.get((dataset, num_classes))
