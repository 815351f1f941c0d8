"""Steps of SGD on the mean cross-entropy, of a network of this package and of PyTorch's."""

import jax
import jax.numpy as jnp

from tests import torch_reference

torch = torch_reference.torch()


def our_training_step(model, *, learning_rate):
    """(variables, images, labels) -> those after a step of SGD; the gradient of the parameters."""

    @jax.jit
    def step(variables, images, labels):
        def loss_fn(params):
            logits, changes = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return losses.mean(), changes

        params = variables["params"]
        (_, changes), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        moved = jax.tree.map(lambda x, slope: x - learning_rate * slope, params, gradient)
        return {"params": moved, **changes}, gradient

    return step


def train_theirs(network, batches, learning_rate):
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate)
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), torch.from_numpy(labels)).backward()
        optimizer.step()
