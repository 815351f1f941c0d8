"""Jinja environments for the report's templates, and the formats of its numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from egmae_jax.core.numbers import number


def environment(escape: Callable[[str], str] | None = None, **syntax: Any) -> jinja2.Environment:
    """Creates a Jinja environment that escapes all values and raises for undefined ones.

    Args:
        escape: function that escapes a text for the format of the templates; None: HTML.
        **syntax: delimiters that replace Jinja's defaults.
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


def interval(estimate: Sequence[float]) -> str:
    """Formats the interval of an estimate (..., low, high) as '.901 to .925'."""
    return f"{number(estimate[-2])} to {number(estimate[-1])}"


def p_value(value: float) -> str:
    """Formats a p-value as '.031' or '< .001'."""
    return "< .001" if value < 0.001 else number(value)
