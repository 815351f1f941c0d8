"""A network is a plain Flax module: list its layers, run it, differentiate it, train it by optax.

python examples/models.py
"""

# %% A model is a Flax Linen module; its variables are nested dicts of arrays: the
# parameters and, of networks with batch norms, their running statistics in "batch_stats".
import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from flax.nnx import bridge

from egmae_jax import models
from egmae_jax.models.init import initial_variables

model = models.create("squeezenet1_1", num_classes=3)  # small, so that this compiles soon
image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
params = initial_variables(model, 0, image)["params"]  # 0 is the seed
print(f"{len(models.names())} models, such as {', '.join(models.names()[:4])}")
print(f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters")

# %% Its layers, as of any Flax module.
zeros = jnp.zeros(image.shape)
print(model.tabulate(jax.random.key(0), zeros, depth=1, console_kwargs={"width": 100}))

# %% Logits of a batch of normalised images.
images = jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
logits = jax.jit(model.apply)({"params": params}, images)
print("logits", logits.shape, logits.dtype)

# %% Derivatives in every mode: how the logits change where the images become brighter.
direction = jnp.ones_like(images)
_, change = jax.jvp(lambda x: model.apply({"params": params}, x), (images,), (direction,))
print("change of the logits", change.shape)


# %% One step of your own training, with optax as it comes.
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

# %% The same module in NNX, for those who prefer it.
nnx_model = bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(zeros)
print("logits by NNX", nnx_model(images).shape)
