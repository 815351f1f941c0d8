"""How the report writes figures."""

from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """'.914', '1.000', '−.020'; nothing for None."""
    if value is None:
        return ""
    sign, text = "\N{MINUS SIGN}" if value < 0 else "", f"{abs(value):.{digits}f}"
    return sign + text.removeprefix("0")


def interval(estimate: Sequence[float]) -> str:
    """'.901 to .925' of a (..., low, high)."""
    return f"{number(estimate[-2])} to {number(estimate[-1])}"


def p_value(value: float) -> str:
    """'.031', '< .001'."""
    return "< .001" if value < 0.001 else number(value)
