"""Makes figures.json: what scipy and statsmodels say, so that the intervals and the drift of this package are held to
figures that others computed. Run with `pip install scipy statsmodels`; the numbers are committed, tests need no Python.
"""

import json
import pathlib

import numpy as np
import scipy
import statsmodels
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

rng = np.random.default_rng(20261130)
ALPHA = 0.05


def proportions():
    pairs = [(0, 1), (1, 1), (0, 10), (10, 10), (1, 10), (5, 10), (35, 39), (36, 40), (39, 40), (40, 40), (86, 86),
             (83, 86), (133, 140), (180, 200), (225, 230), (804, 874), (1, 1000), (999, 1000), (500, 1000),
             (65535, 65536), (3, 7), (93, 96), (48213, 50000)]
    for x, n in pairs:
        wilson = proportion_confint(x, n, ALPHA, method="wilson")
        exact = proportion_confint(x, n, ALPHA, method="beta")
        exact = [0.0 if x == 0 else float(exact[0]), 1.0 if x == n else float(exact[1])]
        yield {"x": x, "n": n, "wilson": [float(w) for w in wilson], "exact": exact}


def means():
    for n in [2, 3, 5, 12, 96, 384]:
        values = np.round(np.clip(rng.normal(0.9, 0.05, n), 0, 1), 6)
        low, high = stats.t.interval(1 - ALPHA, n - 1, loc=values.mean(), scale=stats.sem(values))
        yield {"values": values.tolist(), "mean": float(values.mean()), "interval": [float(low), float(high)]}


def clusters():
    """The variance of a ratio by patient, without small-sample correction: statsmodels' cluster-robust covariance of a
    regression on a constant. The effective number of trials is what would give that variance unclustered."""
    for patients, most in [(10, 1), (10, 4), (40, 6), (200, 3)]:
        sizes = rng.integers(1, most + 1, patients)
        hits = [int(rng.binomial(m, rng.choice([0.5, 0.9, 1.0]))) for m in sizes]
        x = np.concatenate([[1] * h + [0] * (m - h) for h, m in zip(hits, sizes)])
        groups = np.repeat(np.arange(patients), sizes)
        fit = sm.OLS(x, np.ones(len(x))).fit(
            cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
        p, variance = float(x.mean()), float(fit.cov_params()[0, 0])
        yield {"patients": [[int(h), int(m)] for h, m in zip(hits, sizes)], "estimate": p,
               "effective": min(len(x), p * (1 - p) / variance)}


def indices():
    for bins, n, m, shift in [(2, 60, 50, 0.0), (5, 400, 300, 0.3), (10, 1000, 800, 0.8), (10, 50, 50, 0.0), (4, 90, 70, 3.0)]:
        edges = np.quantile(rng.normal(size=5000), np.linspace(0, 1, bins + 1)[1:-1])
        count = lambda v: np.bincount(np.searchsorted(edges, v), minlength=bins)
        e, a = count(rng.normal(size=n)), count(rng.normal(shift, 1, m))
        pe, pa = (e + 0.5) / (e + 0.5).sum(), (a + 0.5) / (a + 0.5).sum()
        yield {"reference": e.tolist(), "current": a.tolist(), "psi": float(stats.entropy(pa, pe) + stats.entropy(pe, pa)),
               "noise": float(stats.chi2.ppf(0.99, bins - 1) * (1 / n + 1 / m))}


def cusums():
    for p0, p1, n, rate in [(0.05, 0.10, 60, 0.05), (0.05, 0.10, 60, 0.25), (0.3, 0.15, 80, 0.1)]:
        events = rng.binomial(1, rate, n)
        weight = stats.binom.logpmf(events, 1, p1) - stats.binom.logpmf(events, 1, p0)
        total = np.concatenate([[0.0], np.cumsum(weight)])
        path = total - np.minimum.accumulate(total)
        yield {"p0": p0, "p1": p1, "events": events.tolist(), "path": [float(v) for v in path[1:]]}


figures = {
    "source": f"scipy {scipy.__version__}, statsmodels {statsmodels.__version__}, numpy {np.__version__}: figures.py",
    "proportions": list(proportions()), "means": list(means()), "clusters": list(clusters()),
    "indices": list(indices()), "cusums": list(cusums()),
}
text = ",\n".join(
    f'"{key}": ' + (json.dumps(value) if isinstance(value, str) else "[\n" + ",\n".join(map(json.dumps, value)) + "\n]")
    for key, value in figures.items())
pathlib.Path(__file__).with_name("figures.json").write_text("{\n" + text + "\n}\n")
