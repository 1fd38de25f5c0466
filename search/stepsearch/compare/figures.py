"""What readers of results need without the models: their format, and numbers with errors."""

from math import floor, isfinite, log10

FORMAT = "stepsearch.evaluation/1"


def with_error(value: float, se: float) -> str:
    """Both to the digit of the error's first figure, or its second if the first is 1."""
    if not isfinite(se) or se <= 0:
        return f"{value:.4g}"
    exponent = floor(log10(se))
    digits = max(0, -exponent + (1 if se / 10**exponent < 1.95 else 0))
    return f"{round(value, digits) + 0.0:.{digits}f} ± {se:.{digits}f}"  # + 0.0: no "-0"
