"""Predictions come in the order of the images, each once, whatever the batch."""

import numpy as np
import pytest

from egmae_jax.data.pipeline import Images
from egmae_jax.run.prediction import predict


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
def test_predictions_come_in_order_and_without_padding(batch_size):
    images = Images(
        np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.ones((5, 2), np.int32), np.arange(5)
    )

    def program(images, indices, first):
        value = 0.1 * images.pixels[indices, 0, 0, 0].astype(np.float32)
        return np.stack([value, 1 - value], axis=1)

    class Split:
        """Stands for `pipeline.Evaluation`, whose own tests show that it gives each image once."""

        def __len__(self):
            return 5

        def batches(self, size):
            for start in range(0, 5, size):
                wanted = np.arange(start, start + size)
                yield images, np.where(wanted < 5, wanted, 0), wanted < 5

    result = predict(program, Split(), batch_size)
    assert (result.shape, result.dtype) == ((5, 2), np.float32)
    np.testing.assert_allclose(result[:, 0], 0.1 * np.arange(5), rtol=1e-6)
