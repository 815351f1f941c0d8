"""Thresholds for a stated specificity, chosen on validation images and tested on others.

python examples/operating_points.py
"""

# %% Labels and probabilities of two classes: of a validation part, and of a test part.
import numpy as np

from egmae_jax.evaluation import operating_points
from egmae_jax.evaluation.significance import Round

rng = np.random.default_rng(0)


def simulate(count):
    """Labels and probabilities of a classifier with an AUC of about .92."""
    labels = rng.integers(0, 2, count)
    positive = 1 / (1 + np.exp(-(rng.normal(size=count) + 2 * labels - 1)))
    return labels, np.stack([1 - positive, positive], axis=1)


validation, test = simulate(500), simulate(300)

# %% Thresholds, and what they achieve on the test part, with intervals that count groups.
thresholds = operating_points.choose_thresholds(*validation)  # [classes, targets]
labels, probabilities = test
ids = groups = np.arange(len(labels))  # every image is a patient of its own
rounds = [Round(ids, labels, [probabilities], groups)]
((_, points),) = operating_points.estimate(rounds, [[thresholds]], resamples=500)
for point in points:
    (threshold,) = point.thresholds
    print(
        f"{point.target.rate} {point.target.level} on validation: threshold {threshold:.3f}, "
        "sensitivity {:.3f} ({:.3f} to {:.3f}), ".format(*point.sensitivity)
        + "specificity {:.3f} ({:.3f} to {:.3f}) on test".format(*point.specificity)
    )

# %% Predictive values of the last one where the disease is rare.
ppv, npv = operating_points.predictive_values(point.sensitivity, point.specificity, 0.05)
print(f"at a prevalence of 5 %: PPV {ppv.mean:.3f}, NPV {npv.mean:.3f}")
