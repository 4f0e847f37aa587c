"""Our statistics against scipy and statsmodels on random tables: closed forms to 1e-9, bootstrap intervals to the
noise of 4,000 resamples. Argument: the print_statistics binary."""

import json
import subprocess
import sys
import warnings

import numpy as np
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

rng = np.random.default_rng(20260101)
TOLERANCE = 1e-9


def table(number):
    n = int(rng.integers(3, 400))
    x = rng.normal(0, 10 ** rng.uniform(-1, 3), n)
    wins = (rng.random(n) < 1 / (1 + np.exp(-rng.normal() - rng.normal() * np.tanh(x / x.std())))).astype(float)
    wins[rng.random(n) < 0.2] = 0.5
    trials = int(10 ** rng.uniform(0, 4))
    # Halves, ends and far tails too.
    successes = [0, trials, trials // 2, int(rng.integers(0, trials + 1)), int(rng.binomial(trials, 0.5))][number % 5]
    counts = [int(c) for c in rng.integers(0, 10 ** int(rng.integers(1, 4)), 4)]
    return dict(x=x.tolist(), y=(x * rng.normal() + rng.normal(0, 5, n)).tolist(), wins=wins.tolist(), successes=successes,
                trials=trials, only_a=counts[0], only_b=counts[1], both=counts[2], neither=counts[3])


def close(what, ours, theirs, tolerance=TOLERANCE):
    # Relative for what is large or, as p-values may be, very small.
    error = abs(ours - theirs) / max(abs(theirs), 1e-300) if abs(theirs) > 1 or "_p" in what else abs(ours - theirs)
    assert error <= tolerance, f"{what}: ours {ours!r}, theirs {theirs!r}"
    return error


tables = [table(number) for number in range(200)]
answers = json.loads(subprocess.run([sys.argv[1]], input=json.dumps(tables), capture_output=True, text=True, check=True).stdout)
worst, fits = 0.0, 0
for number, (t, ours) in enumerate(zip(tables, answers, strict=True)):
    x, y, wins = (np.array(t[key]) for key in ("x", "y", "wins"))

    def check(what, mine, theirs):
        global worst
        worst = max(worst, close(f"table {number}: {what}", mine, theirs))

    low, high = proportion_confint(t["successes"], t["trials"], method="beta")
    check("interval, low", ours["proportion"]["low"], 0.0 if np.isnan(low) else low)
    check("interval, high", ours["proportion"]["high"], 1.0 if np.isnan(high) else high)
    binomial = scipy.stats.binomtest(t["successes"], t["trials"]).pvalue
    check("sign test", ours["sign_test"], binomial)
    if binomial > 1e-250:
        assert abs(ours["sign_test"] / binomial - 1) < 1e-8, (ours["sign_test"], binomial)
    check("mcnemar", ours["mcnemar"], mcnemar([[t["both"], t["only_a"]], [t["only_b"], t["neither"]]], exact=True).pvalue)
    check("correlation", ours["correlation"], scipy.stats.pearsonr(x, y)[0])
    check("mean", ours["mean"], x.mean())
    check("standard error", ours["standard_error"], scipy.stats.sem(x))

    if "length_controlled" in ours:
        fits += 1
        design = sm.add_constant(np.tanh(x / x.std()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # halves are no counts
            fit = sm.GLM(wins, design, family=sm.families.Binomial()).fit(tol=1e-12, tol_criterion="params", maxiter=200)
        fitted = ours["length_controlled"]
        for what, mine, theirs in (("intercept", fitted["intercept"], fit.params[0]), ("slope", fitted["slope"], fit.params[1]),
                                   ("intercept error", fitted["intercept_error"], fit.bse[0]),
                                   ("slope error", fitted["slope_error"], fit.bse[1])):
            check(f"length-controlled {what}", mine, theirs)
        low, high = 1 / (1 + np.exp(-fit.conf_int()[0]))
        check("length-controlled low", fitted["win_rate"]["low"], low)
        check("length-controlled high", fitted["win_rate"]["high"], high)

    if number % 20 == 0 and len(x) > 30:
        for name, statistic, data in (("bootstrap", lambda a, axis: a.mean(axis), (x,)),
                                      ("paired_bootstrap", lambda a, b, axis: a.mean(axis) - b.mean(axis), (x, y))):
            theirs = scipy.stats.bootstrap(data, statistic, n_resamples=20000, paired=True, method="percentile", rng=1)
            for side in ("low", "high"):
                noise = 0.15 * theirs.standard_error  # a quantile of 4,000 resamples is off by 0.04 of it
                assert abs(ours[name][side] - getattr(theirs.confidence_interval, side)) < noise, (number, name, side)

assert fits > 150, fits
print(f"{len(tables)} tables, {fits} of them with a length-controlled fit: largest difference {worst:.1e}")
