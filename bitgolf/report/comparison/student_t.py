"""The upper tail of Student's t distribution, from the regularized incomplete beta function.

P(T > t) = I_x(df / 2, 1 / 2) / 2 with x = df / (df + t^2) for t >= 0. I_x is evaluated by its continued fraction
(Abramowitz and Stegun 26.5.8) in Lentz's form, on the side where the fraction converges fast. 1 - x is passed along,
so neither tail loses digits. The relative error is about 1e-12 up to df = 1,000 and 1e-8 at a million, where lgamma
loses digits.
"""

import math

_SMALLEST = 1e-300  # replaces a zero denominator
_MOST_TERMS = 100_000


def upper_tail(t: float, df: float) -> float:
    """P(T > t) for T of Student's t distribution with `df` > 0 degrees of freedom (need not be whole).

    Raises ValueError when `df` is not positive and finite, or `t` is not a number.
    """
    if not (df > 0 and math.isfinite(df)):
        raise ValueError(f"degrees of freedom must be positive and finite, got {df}")
    if math.isnan(t):
        raise ValueError("t is not a number")
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    scaled = t / math.sqrt(df)
    ratio = scaled * scaled  # t^2 / df
    if math.isinf(ratio):
        return 0.0 if t > 0 else 1.0
    half = 0.5 * incomplete_beta(0.5 * df, 0.5, 1 / (1 + ratio), ratio / (1 + ratio))
    return half if t > 0 else 1 - half


def incomplete_beta(a: float, b: float, x: float, one_minus_x: float | None = None) -> float:
    """The regularized incomplete beta function I_x(a, b), a and b > 0, 0 <= x <= 1.

    Args:
        one_minus_x: 1 - x, if the caller has more digits of it than the subtraction would leave.
    Raises:
        ValueError: an argument is out of its range.
    """
    y = 1 - x if one_minus_x is None else one_minus_x
    if not (a > 0 and b > 0 and 0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"I_x(a, b) needs a, b > 0 and 0 <= x <= 1, got a = {a}, b = {b}, x = {x}")
    if x == 0 or y == 0:
        return float(y == 0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * _log(x, y) + b * _log(y, x)
    front = math.exp(log_front)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, y) / b


def _log(x: float, one_minus_x: float) -> float:
    """log(x), computed from the smaller of the two."""
    return math.log1p(-one_minus_x) if one_minus_x < 0.5 else math.log(x)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b) without its factor x^a (1-x)^b / (a B(a, b))."""
    numerator, denominator = 1.0, _nonzero(1 - (a + b) * x / (a + 1))
    denominator = 1 / denominator
    value = denominator
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            denominator = 1 / _nonzero(1 + coefficient * denominator)
            numerator = _nonzero(1 + coefficient / numerator)
            value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            return value
    raise ValueError(f"the incomplete beta function did not converge for a = {a}, b = {b}, x = {x}")


def _nonzero(value: float) -> float:
    return value if abs(value) > _SMALLEST else _SMALLEST
