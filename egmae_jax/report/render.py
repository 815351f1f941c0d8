"""Jinja environments of the report's templates, and how its numbers are written."""

from collections.abc import Callable, Sequence
from typing import Any

import jinja2


def environment(escape: Callable[[str], str] | None = None, **syntax: Any) -> jinja2.Environment:
    """An environment whose templates escape all that they are given and require all they name.

    Args:
        escape: escapes a text for the format of the templates; None: they are HTML.
        **syntax: delimiters other than Jinja's own.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("egmae_jax.report", "templates"),
        autoescape=escape is None,
        finalize=None if escape is None else lambda value: escape(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **syntax,
    )
    templates.filters |= {"number": number, "interval": interval, "p_value": p_value}
    return templates


def number(value: float | None, digits: int = 3) -> str:
    """'.914', '1.000', '−.020'; '' for None."""
    if value is None:
        return ""
    sign, text = "\N{MINUS SIGN}" if value < 0 else "", f"{abs(value):.{digits}f}"
    return sign + text.removeprefix("0")


def interval(estimate: Sequence[float]) -> str:
    """'.901 to .925', of an estimate that ends in its limits (..., low, high)."""
    return f"{number(estimate[-2])} to {number(estimate[-1])}"


def p_value(value: float) -> str:
    """'.031', '< .001'."""
    return "< .001" if value < 0.001 else number(value)
