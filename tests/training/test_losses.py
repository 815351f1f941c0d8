"""Losses against torch, torchvision and scikit-learn."""

import types

import jax
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from egmae_jax.training import losses
from tests import torch_reference

torch = torch_reference.torch()
functional = torch.nn.functional

CLASSES = 5
RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((40, CLASSES), np.float32)
LABELS = RNG.integers(0, CLASSES, 40)
WEIGHTS = np.array([0.2, 1.0, 3.0, 0.7, 2.0], np.float32)
SHARES = np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32)


def settings(loss="cross_entropy", smoothing=0.0, gamma=2.0, tau=1.0):
    return types.SimpleNamespace(
        loss=loss, label_smoothing=smoothing, focal_gamma=gamma, logit_adjustment_tau=tau
    )


def ours(config, weights=None, shares=None, logits=LOGITS, labels=LABELS):
    """The loss and its gradient by the logits."""
    targets = jax.nn.one_hot(labels, logits.shape[1])
    balance = losses.ClassBalance(weights, shares)
    loss = jax.value_and_grad(losses.classification_loss)
    return loss(logits, targets, config, balance)


def theirs(function, logits=LOGITS):
    """The same of a function of torch's logits."""
    tensor = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss = function(tensor)
    loss.backward()
    return loss.item(), tensor.grad.numpy()


def assert_equal(found, expected):
    assert float(found[0]) == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_weighted_mean_is_torchs_also_with_smoothed_labels(weights, smoothing):
    torch_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = torch.nn.CrossEntropyLoss(torch_weights, label_smoothing=smoothing)
    expected = theirs(lambda x: loss(x, torch.tensor(LABELS)))
    assert_equal(ours(settings(smoothing=smoothing), weights), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_the_focal_loss_of_two_classes_is_torchvisions(gamma, alpha):
    """Its alpha weights the positive class, as class weights do; ours is a weighted mean."""
    sigmoid_focal_loss = torch_reference.torchvision().ops.sigmoid_focal_loss
    labels = LABELS % 2
    logits = LOGITS[:, :2]
    weights = None if alpha is None else np.array([1 - alpha, alpha], np.float32)
    total = len(labels) if weights is None else weights[labels].sum()

    def reference(x):
        positive, options = torch.tensor(labels, dtype=torch.float64), {"reduction": "sum"}
        options |= {"alpha": -1 if alpha is None else alpha, "gamma": gamma}
        return sigmoid_focal_loss(x[:, 1] - x[:, 0], positive, **options) / float(total)

    found = ours(settings("focal", gamma=gamma), weights, logits=logits, labels=labels)
    assert_equal(found, theirs(reference, logits))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_focal_loss_of_several_classes_is_that_of_the_true_class(weights):
    """As Kornia's: -(1 - p)^gamma log p of the true class."""

    def reference(x):
        labels = torch.tensor(LABELS)
        log_p = functional.log_softmax(x, 1).gather(1, labels[:, None])[:, 0]
        each = -((1 - log_p.exp()) ** 1.5) * log_p
        factors = torch.ones(CLASSES) if weights is None else torch.tensor(weights)
        return (factors[labels] * each).sum() / factors[labels].sum()

    assert_equal(ours(settings("focal", gamma=1.5), weights), theirs(reference))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_of_a_certain_network_has_a_finite_gradient(gamma):
    logits, labels = np.array([[200.0, 0.0], [0.0, 200.0]], np.float32), np.array([0, 0])
    loss, gradient = ours(settings("focal", gamma=gamma), logits=logits, labels=labels)
    assert float(loss) == pytest.approx(100, rel=1e-4)  # the first is right, the second is wrong
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_logits_are_adjusted_by_the_logarithm_of_the_shares(tau):
    """Menon et al. (2021), equation 10, as a sum over the other classes."""

    def reference(x):
        labels, share = torch.tensor(LABELS), torch.tensor(SHARES, dtype=torch.float64)
        margins = x - x.gather(1, labels[:, None])
        return torch.log(((share / share[labels][:, None]) ** tau * margins.exp()).sum(1)).mean()

    assert_equal(ours(settings("logit_adjusted", tau=tau), shares=SHARES), theirs(reference))


def test_balanced_weights_are_scikit_learns():
    counts = np.array([70, 3, 11])
    labels = np.repeat([0, 1, 2], counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(losses.balanced_weights(counts), expected)
