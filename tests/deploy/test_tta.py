"""The PyTorch program behind an ONNX file averages over the views of test-time augmentation."""

import numpy as np
from scipy.special import softmax

from egmae_jax.augmentations import tta
from egmae_jax.deploy.export import pytorch
from egmae_jax.deploy.export.system import Network, System, View
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.method import augment
from egmae_jax.run.branches import Branch
from tests import torch_reference

torch = torch_reference.torch()


class Corner(torch.nn.Module):
    """Takes the upper left pixel as logits, which differs from view to view."""

    def forward(self, images):
        return images[:, :, 0, 0]


def test_probabilities_are_the_mean_over_the_views():
    view = View(37, "shorter_side", "rgb", 37)
    network = Network(Branch("mae", "convnext_atto"), None, None)
    scaling, classes = Scaling(1.0, 0.0), ("a", "b", "c")
    system = System("mae", (network,), None, scaling, classes, view, 32, tta.KINDS)
    images = np.random.default_rng(0).integers(0, 256, (2, 37, 37, 3), np.uint8)
    with torch.inference_mode():
        probabilities, calibrated = pytorch._make_classifier(system, Corner())(
            torch.from_numpy(images)
        )
    views = tta.views(images, tta.KINDS, 32, flip=np.flip)
    corners = [np.asarray(augment.normalize(view[:, 0, 0])) for view in views]
    expected = np.mean([softmax(corner, axis=1) for corner in corners], axis=0)
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(calibrated.numpy(), expected, atol=1e-6)
