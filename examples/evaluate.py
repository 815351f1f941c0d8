"""Metrics with intervals, calibration, fusion and paired tests for the output of any classifier.

python examples/evaluate.py
"""

# %% Probabilities of two classifiers. For those of a run: load_predictions("W/predictions/….npz").
import numpy as np
from scipy import special

from egmae_jax.evaluation import calibration, ensemble
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.significance import Resampled, Round, mcnemar

rng = np.random.default_rng(0)
labels = np.repeat(rng.integers(0, 3, 150), 2)
patients = np.repeat(np.arange(150), 2)  # two images of each
first, second = (
    special.softmax(strength * np.eye(3)[labels] + rng.normal(size=(300, 3)), axis=1)
    for strength in (1.5, 2.0)
)
validation, test = slice(0, 100), slice(100, 300)

# %% Metrics with 95 % intervals.
metrics = compute_metrics(labels[test], first[test])
names = np.arange(200).astype(str)
rounds = [Round(names, labels[test], (first[test], second[test]), patients[test])]
resampled = Resampled(rounds, resamples=1000)
for name in ("accuracy", "f1", "auc"):
    _, low, high = resampled.estimate(0, name)
    print(f"{name:9} {metrics[name]:.3f} ({low:.3f} to {high:.3f})")

# %% Fusion and calibration, fitted on validation and measured on test.
fused = ensemble.fit("weighted", labels[validation], [first[validation], second[validation]])
together = fused.apply([first[test], second[test]])
print("weights", np.round(fused.fitted["weights"], 2))
fit = calibration.fit(labels[validation], first[validation], patients[validation])
print(f"temperature {fit.temperature:.2f}, no probability above {1 - (3 - 1) * fit.least:.3f}")
for name, p in (("before", first[test]), ("after", fit.scaling.apply(first[test]))):
    print(f"calibration error {name}: {calibration.expected_error(labels[test], p):.3f}")

# %% Paired comparison: is the second classifier better on the same images?
better = resampled.difference(0, 1, "auc")
print(f"AUC higher by {better.mean:.3f} ({better.low:.3f} to {better.high:.3f})")
print(f"McNemar's p: {mcnemar(labels[test], first[test], second[test], patients[test]).p:.3f}")
