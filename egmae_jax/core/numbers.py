"""Numbers in the style of the field's papers: '.914', '.914 ± .020'."""


def number(value: float | None, digits: int = 3) -> str:
    """Formats a number as '.914', '1.000' or '−.020'; None as ''."""
    if value is None:
        return ""
    sign, text = "\N{MINUS SIGN}" if value < 0 else "", f"{abs(value):.{digits}f}"
    return sign + text.removeprefix("0")


def format_mean_std(mean: float | None, std: float | None = None, digits: int = 3) -> str:
    """Formats '.914 ± .020', or '.914' if there is no standard deviation; '' without a mean."""
    spread = "" if mean is None or std is None else f" ± {number(std, digits)}"
    return number(mean, digits) + spread
