"""The test that looks once: how large must an experiment be, and what does it say when it is over?

    effect one wants to see ─▶ sample_size ─▶ duration_s          before
    right answers of two arms ─▶ z_statistic ─▶ p_value           after, once: whoever looks again and again and stops
                              └▶ difference_of_shares             at the first good news finds an effect where none is

Arms are called a (the champion) and b (the challenger); a difference is b less a. Counts may be numbers or arrays of
one shape. The test for those who do look again is in stages/policies/sequential.py. Not modelled: answers that depend
on each other, and more than two arms.

Sources, as they were opened: Fleiss, Tytun, Ury, Biometrics 36, 1980, 343-346, in the code of Hmisc (`ftuss`, `ftupwr`:
pooled variance under the null hypothesis, both variances under the other; here without the continuity correction);
Newcombe, Statistics in Medicine 17, 1998, 873-890, in the code of contingencytables and biostatUZH (Wilson's bounds of
both shares, squared and added).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_NORMAL = NormalDist()


def critical_value(alpha: float) -> float:
    """How far from 0 a standard normal number is with probability `alpha`, to both sides together."""
    return _NORMAL.inv_cdf(1.0 - alpha / 2.0)


def z_statistic(ok_a: ArrayLike, n_a: ArrayLike, ok_b: ArrayLike, n_b: ArrayLike) -> Floats:
    """The difference of two shares over its standard deviation if there were none; 0 where nothing can be said."""
    k_a, m_a, k_b, m_b = _floats(ok_a, n_a, ok_b, n_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (k_a + k_b) / (m_a + m_b)
        deviation = np.sqrt(pooled * (1.0 - pooled) * (1.0 / m_a + 1.0 / m_b))
        z = (k_b / m_b - k_a / m_a) / deviation
    return np.asarray(np.where(np.isfinite(z), z, 0.0), dtype=np.float64)


def p_value(z: float) -> float:
    """The probability of a difference at least so far from 0, to either side, where there is none."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def difference_of_shares(
    ok_a: ArrayLike, n_a: ArrayLike, ok_b: ArrayLike, n_b: ArrayLike, alpha: float
) -> tuple[Floats, Floats]:
    """The interval of a difference of shares that holds with 1 - alpha, for one look at a size fixed before."""
    return squared_and_added(ok_a, n_a, ok_b, n_b, critical_value(alpha) ** 2)


def wilson(count: ArrayLike, n: ArrayLike, z_squared: ArrayLike) -> tuple[Floats, Floats]:
    """Wilson's bounds of a share: those p from which `count` of n is no more than z standard deviations of p away.

    (0, 1) where n is 0, or z infinite.
    """
    k, m, z2 = _floats(count, n, z_squared)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(z2 * np.maximum(k * (m - k) / m, 0.0) + z2 * z2 / 4.0)
        low, high = (k + z2 / 2.0 - half) / (m + z2), (k + z2 / 2.0 + half) / (m + z2)
    told = (m > 0) & np.isfinite(z2)
    return np.where(told, np.clip(low, 0.0, 1.0), 0.0), np.where(told, np.clip(high, 0.0, 1.0), 1.0)


def squared_and_added(
    ok_a: ArrayLike, n_a: ArrayLike, ok_b: ArrayLike, n_b: ArrayLike, z_squared: ArrayLike
) -> tuple[Floats, Floats]:
    """Newcombe's interval of a difference of shares, z standard deviations to each side; (-1, 1) without both arms.

    Each end uses the variance that the shares would have there, and so it is sound for rare events, where the
    variance that was seen is none at all as long as nothing has happened.
    """
    k_a, m_a, k_b, m_b = _floats(ok_a, n_a, ok_b, n_b)
    (low_a, high_a), (low_b, high_b) = wilson(k_a, m_a, z_squared), wilson(k_b, m_b, z_squared)
    there = (m_a > 0) & (m_b > 0)
    share_a, share_b = k_a / np.maximum(m_a, 1.0), k_b / np.maximum(m_b, 1.0)
    difference = share_b - share_a
    low = difference - np.hypot(share_b - low_b, high_a - share_a)
    high = difference + np.hypot(high_b - share_b, share_a - low_a)
    return np.where(there, np.maximum(low, -1.0), -1.0), np.where(there, np.minimum(high, 1.0), 1.0)


def sample_size(baseline: float, effect: float, share: float, alpha: float, power: float) -> int:
    """Labelled requests, of both arms together, after which one look finds `effect` with probability `power`.

    `baseline` is the share of right answers of arm a, `baseline + effect` that of arm b, which gets `share` of the
    requests. Raises ValueError where there can be no such experiment.
    """
    spread_null, spread = spreads(baseline, effect, share)
    needed = critical_value(alpha) * spread_null + _NORMAL.inv_cdf(power) * spread
    return math.ceil((needed / effect) ** 2)


def power(baseline: float, effect: float, share: float, alpha: float, requests: int) -> float:
    """The probability with which one look after so many labelled requests finds `effect`; ValueError as above."""
    spread_null, spread = spreads(baseline, effect, share)
    beyond = abs(effect) * math.sqrt(requests) - critical_value(alpha) * spread_null
    return _NORMAL.cdf(beyond / spread)


def spreads(baseline: float, effect: float, share: float) -> tuple[float, float]:
    """The standard deviation of the difference times the root of the number of requests: without and with the effect.

    Raises ValueError where there can be no such experiment.
    """
    right_b = baseline + effect
    if not (0.0 < baseline < 1.0 and 0.0 <= right_b <= 1.0 and effect != 0.0):
        raise ValueError(
            f"baseline and baseline + effect must be shares of right answers between 0 and 1 that differ, got "
            f"{baseline:g} and {right_b:g}"
        )
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must be above 0 and below 1, got {share:g}: one arm would get nothing")
    pooled = (1.0 - share) * baseline + share * right_b
    null = math.sqrt(pooled * (1.0 - pooled) * (1.0 / (1.0 - share) + 1.0 / share))
    return null, math.sqrt(baseline * (1.0 - baseline) / (1.0 - share) + right_b * (1.0 - right_b) / share)


def duration_s(requests: float, rate_rps: float, labelled_share: float = 1.0, delay_s: float = 0.0) -> float:
    """Seconds until so many requests have their label, where that share of them gets one, `delay_s` later each."""
    return requests / (rate_rps * labelled_share) + delay_s


def _floats(*values: ArrayLike) -> list[Floats]:
    return [np.asarray(value, dtype=np.float64) for value in values]
