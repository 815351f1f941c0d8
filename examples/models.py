"""A network as a pure function of a plain dict: make one, run it, differentiate it.

python examples/models.py
"""

# %% A model is a Flax Linen module; its variables are nested dicts of arrays: the
# parameters and, of networks with batch norms, their running statistics in "batch_stats".
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from egmae_jax import models
from egmae_jax.models.init import initial_variables

model = models.create("squeezenet1_1", num_classes=3)  # small, so that this compiles soon
image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
params = initial_variables(model, 0, image)["params"]  # 0 is the seed
print(f"{len(models.names())} models, such as {', '.join(models.names()[:4])}")
print(f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters")

# %% Logits of a batch of normalised images.
images = jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
logits = jax.jit(model.apply)({"params": params}, images)
print("logits", logits.shape, logits.dtype)


# %% One step of your own training: nothing of ours is in the way.
@jax.jit
def step(params, opt_state, images, labels):
    """Returns the loss before the step, and what comes after it."""

    def loss(params):
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return value, optax.apply_updates(params, updates), opt_state


optimizer = optax.adamw(1e-4)
opt_state = optimizer.init(params)
labels = jnp.array([0, 1, 2, 0])
for _ in range(5):
    value, params, opt_state = step(params, opt_state, images, labels)
    print(f"loss {value:.4f}")

# %% Partial loading and freezing are dictionary work.
flat = traverse_util.flatten_dict(params, sep="/")
print("the classifier:", {name: x.shape for name, x in flat.items() if name.startswith("head/")})
