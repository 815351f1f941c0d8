"""Loads and saves weights in timm's format, without torch.

python examples/interop.py
"""

# %% Saves a file in timm's format. The weights are random, because this example runs offline;
# `timm.load("timm/convnext_atto.d2_in1k", "convnext_atto")` downloads ImageNet weights.
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from egmae_jax import models
from egmae_jax.models import timm
from egmae_jax.models.init import initial_variables

model = models.create("convnext_atto", num_classes=3)
variables = initial_variables(model, 0, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "model.safetensors"
timm.save(variables, path, "convnext_atto")
tensors = load_file(path)
print(f"{len(tensors)} tensors, such as {', '.join(list(tensors)[:3])}")
# In PyTorch: timm.create_model("convnext_atto", num_classes=3, checkpoint_path=path)

# %% Loads the file again: the parameters are bit-identical.
again = timm.load(path, "convnext_atto")
same = jax.tree.all(jax.tree.map(np.array_equal, variables, again))
print("the same bits:", same)

# %% A file that does not fit is refused, with a message that names the wrong tensors.
try:
    timm.load(path, "convnext_tiny")
except timm.CheckpointError as error:
    print("refused:", str(error).splitlines()[0][:100])
folder.cleanup()
