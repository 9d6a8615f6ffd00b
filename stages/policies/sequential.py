"""The test that may be looked at all the time: intervals that hold at every moment together, not only at one.

    counts so far ─▶ (low, high) ─▶ is 0, or the limit, outside? ─▶ that is the verdict, whenever it comes

With probability 1 - alpha none of all the intervals that are ever looked at misses the truth, so that whoever stops at
the first one that tells something is wrong with probability alpha at most. The price is width: half as wide again, at
best, as the interval of one look (stages/policies/fixed_horizon.py). Arms are called a (the champion) and b (the
challenger); a difference is b less a. Counts may be numbers or arrays of one shape.

Exact for any number of requests: `share`, `share_above`, `quantile_ranks`. For large numbers: `difference_of_shares`
and `difference_of_means`, in which the sums stand for a Brownian motion of the same variance; what that costs is
measured by simulator/experiments.py. Not modelled: requests that depend on each other (latencies in one queue do), a
share of right answers that changes with the hour while the arms' shares change too, and more than two arms.

Sources, as they were opened: Howard's and Ramdas's ConfSeq, uniform_boundaries.h (`TwoSidedNormalMixture`: Robbins'
normal mixture, and the variance that it is the narrowest at; `QuantileABTest`: quantiles by a mixture for the share
below); the abstracts of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv 2103.06476 (why the estimated variance will
do); Khuong's csm.h on Robbins, Annals of Mathematical Statistics 41, 1970 (a mixture over a share's likelihood against
that of the true one). Half of the mixture of `share_above` lies around the limit; that is our own choice, and any is
valid.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.policies.fixed_horizon import sample_size, spreads, squared_and_added

Floats = NDArray[np.float64]

# Requests of the smaller arm, nearly, at which the intervals of differences are the narrowest unless told otherwise. A
# fifth or five times as many make them a tenth wider.
TUNED_AT = 1000.0
_HALVINGS = 60
_FEW = 10  # values of an arm below which nothing is said of its mean
_log_gamma = np.frompyfunc(math.lgamma, 1, 1)


def threshold(information: ArrayLike, alpha: float, tuned_at: float = TUNED_AT) -> Floats:
    """How many standard deviations, squared, a sum may be off at any time; infinite where there is no information.

    `information` is proportional to the sum's variance, and `tuned_at` the same where it is to be the smallest.
    """
    twice = 2.0 * math.log(1.0 / alpha)
    with np.errstate(divide="ignore"):
        x = np.asarray(information, dtype=np.float64) * ((twice + math.log1p(twice)) / tuned_at)
        found: Floats = (1.0 + 1.0 / x) * (twice + np.log1p(x))
    return found


def information_of(n_a: ArrayLike, n_b: ArrayLike) -> Floats:
    """What two arms of that size tell of their difference: n_a n_b / (n_a + n_b), a little less than the smaller."""
    a, b = np.asarray(n_a, dtype=np.float64), np.asarray(n_b, dtype=np.float64)
    found: Floats = a * b / np.maximum(a + b, 1.0)
    return found


def difference_of_shares(
    ok_a: ArrayLike, n_a: ArrayLike, ok_b: ArrayLike, n_b: ArrayLike, alpha: float, tuned_at: float = TUNED_AT
) -> tuple[Floats, Floats]:
    """The interval of the difference of two shares of right answers; (-1, 1) while an arm has none at all."""
    return squared_and_added(ok_a, n_a, ok_b, n_b, threshold(information_of(n_a, n_b), alpha, tuned_at))


def difference_of_means(
    mean_a: ArrayLike,
    variance_a: ArrayLike,
    n_a: ArrayLike,
    mean_b: ArrayLike,
    variance_b: ArrayLike,
    n_b: ArrayLike,
    alpha: float,
    tuned_at: float = TUNED_AT,
) -> tuple[Floats, Floats]:
    """The interval of a difference of means, in their unit; infinite below ten values an arm. Variances of samples."""
    z_squared = threshold(information_of(n_a, n_b), alpha, tuned_at)
    a, b = np.asarray(n_a, dtype=np.float64), np.asarray(n_b, dtype=np.float64)
    variance = np.asarray(variance_a) / np.maximum(a, 1.0) + np.asarray(variance_b) / np.maximum(b, 1.0)
    return _around(np.asarray(mean_b) - np.asarray(mean_a), variance, z_squared, (a >= _FEW) & (b >= _FEW))


def mean(
    value: ArrayLike, variance: ArrayLike, n: ArrayLike, alpha: float, tuned_at: float = TUNED_AT
) -> tuple[Floats, Floats]:
    """The interval of one arm's mean, in its unit; infinite below ten values. The variance is the sample's."""
    count = np.asarray(n, dtype=np.float64)
    z_squared = threshold(count, alpha, tuned_at)
    return _around(np.asarray(value), np.asarray(variance) / np.maximum(count, 1.0), z_squared, count >= _FEW)


def share(count: ArrayLike, n: ArrayLike, alpha: float) -> tuple[Floats, Floats]:
    """The interval of one arm's share, exact; (0, 1) while there is nothing."""
    return _not_ruled_out(count, n, _log_mixture(count, n, 1.0, 1.0), alpha)


def share_above(count: ArrayLike, n: ArrayLike, limit: float, alpha: float) -> tuple[Floats, Floats]:
    """The interval of one arm's share, exact, and the quickest to tell on which side of `limit` (0 to 1) it lies.

    The share is above the limit when `low` is, and below it when `high` is. Raises ValueError for a limit that no
    share can be on both sides of.
    """
    return _not_ruled_out(count, n, _around_limit(count, n, limit), alpha)


def ruled_out(count: ArrayLike, n: ArrayLike, limit: float, alpha: float) -> NDArray[np.bool_]:
    """Whether `limit` lies outside of the interval of `share_above`, without looking for its ends: a hundredth of the
    work. On which side the share is, `count` says."""
    k, m = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    log_likelihood = _log_likelihood(k, m - k, np.asarray(limit, dtype=np.float64))
    found: NDArray[np.bool_] = np.asarray(_around_limit(k, m, limit) - log_likelihood >= math.log(1.0 / alpha))
    return found


def quantile_ranks(n: int, level: float, alpha: float) -> tuple[int, int]:
    """Between which of n sorted values the quantile of that level (0.95: p95) lies: (low, high), counted from 1.

    0 for low and n + 1 for high stand for no bound. Exact for any distribution; the search is by halving, because the
    count below the quantile becomes less likely to both sides.
    """
    middle = min(n, max(0, round(n * level)))

    def possible(below: int) -> bool:
        return not bool(ruled_out(below, n, level, alpha))

    if n == 0 or not possible(middle):
        return 0, n + 1
    low, low_out = middle, -1
    while low - low_out > 1:
        half = (low + low_out) // 2
        low, low_out = (half, low_out) if possible(half) else (low, half)
    high, high_out = middle, n + 1
    while high_out - high > 1:
        half = (high + high_out) // 2
        high, high_out = (half, high_out) if possible(half) else (high, half)
    return low, high + 1


def quantile(ordered: Floats, level: float, alpha: float) -> tuple[float, float]:
    """The interval of a quantile, given all values in ascending order; from minus infinity, or to infinity, if need be.

    The values are taken to differ: where many are alike, the interval is a little wider than it has to be.
    """
    low, high = quantile_ranks(int(ordered.size), level, alpha)
    below = float(ordered[low - 1]) if low >= 1 else -math.inf
    return below, float(ordered[high - 1]) if high <= ordered.size else math.inf


def requests_needed(
    baseline: float, effect: float, share_b: float, alpha: float, power: float, tuned_at: float = TUNED_AT
) -> int:
    """Labelled requests of both arms after which the interval has left out 0 with probability `power`, at the latest.

    As fixed_horizon.sample_size, with the bound of that moment in the place of the critical value; most experiments
    are over long before. Raises ValueError where there can be no such experiment.
    """
    spread_null, spread = spreads(baseline, effect, share_b)
    beyond = NormalDist().inv_cdf(power) * spread

    def enough(requests: float) -> bool:
        z = math.sqrt(float(threshold(requests * share_b * (1.0 - share_b), alpha, tuned_at)))
        return abs(effect) * math.sqrt(requests) >= z * spread_null + beyond

    high = 2.0
    while not enough(high):
        high *= 2.0
    low = high / 2.0
    for _ in range(_HALVINGS):
        half = (low + high) / 2.0
        low, high = (low, half) if enough(half) else (half, high)
    return math.ceil(high)


def tuned_for(baseline: float, effect: float, share_b: float, alpha: float, power: float) -> float:
    """Where intervals should be the narrowest if `effect` is what one wants to see: at the size that one look needs."""
    return sample_size(baseline, effect, share_b, alpha, power) * share_b * (1.0 - share_b)


def _around(
    value: ArrayLike, variance: ArrayLike, z_squared: Floats, enough: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    middle = np.asarray(value, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        half = np.where(enough, np.sqrt(z_squared * np.asarray(variance, dtype=np.float64)), np.inf)
    middle = np.where(enough, middle, 0.0)
    return middle - half, middle + half


def _log_mixture(count: ArrayLike, n: ArrayLike, a: float, b: float) -> Floats:
    """The log likelihood of a share that is drawn from the beta law with parameters a and b."""
    k, m = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    of_data = _log_gamma(k + a) + _log_gamma(m - k + b) - _log_gamma(m + a + b)
    of_law = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return np.asarray(of_data - of_law, dtype=np.float64)


def _around_limit(count: ArrayLike, n: ArrayLike, limit: float) -> Floats:
    """The same of a share that is anywhere, or, as likely, near the limit: the beta law's mean is the limit then."""
    if not 0.0 < limit < 1.0:
        raise ValueError(f"limit must be above 0 and below 1, got {limit:g}: every share is on one side of it")
    a, b = max(1.0, limit / (1.0 - limit)), max(1.0, (1.0 - limit) / limit)
    anywhere, near = _log_mixture(count, n, 1.0, 1.0), _log_mixture(count, n, a, b)
    found: Floats = np.logaddexp(anywhere, near) - math.log(2.0)
    return found


def _log_likelihood(right: Floats, wrong: Floats, p: Floats) -> Floats:
    """The log probability of one order of so many right and wrong answers; nothing times log 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_right = np.where(right > 0, right * np.log(p), 0.0)
        of_wrong = np.where(wrong > 0, wrong * np.log1p(-p), 0.0)
    found: Floats = of_right + of_wrong
    return found


def _not_ruled_out(count: ArrayLike, n: ArrayLike, log_mixture: Floats, alpha: float) -> tuple[Floats, Floats]:
    """The shares whose likelihood is not below alpha times the mixture's: between two roots, found by halving."""
    k, m = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    right, wrong = np.broadcast_arrays(k, m - k)
    least = log_mixture - math.log(1.0 / alpha)
    best = right / np.maximum(right + wrong, 1.0)
    ends = []
    for outer in (np.zeros_like(best), np.ones_like(best)):
        inside, outside = best.copy(), outer
        for _ in range(_HALVINGS):
            half = (inside + outside) / 2.0
            kept = _log_likelihood(right, wrong, half) >= least
            inside, outside = np.where(kept, half, inside), np.where(kept, outside, half)
        reaches = _log_likelihood(right, wrong, outer) >= least
        ends.append(np.where(reaches, outer, outside))
    return ends[0], ends[1]
