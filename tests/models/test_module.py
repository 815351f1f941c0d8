"""Parameters of another shape are refused, as by Flax itself."""

import jax
import numpy as np
import pytest
from flax import errors

from egmae_jax import models
from egmae_jax.models import registry
from egmae_jax.models.init import initial_variables
from tests import tiny


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    tiny.register()


@pytest.mark.parametrize(
    ("name", "path"),
    [(tiny.MODEL, "stages_0/blocks_0/fc1"), (tiny.RESNET, "stem/conv")],
)
def test_a_parameter_of_another_shape_is_named(name, path):
    model = models.create(name, 3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    params = initial_variables(model, 0, image)["params"]
    layer = params
    for part in path.split("/"):
        layer = layer[part]
    layer["kernel"] = np.zeros((*layer["kernel"].shape[:-1], 99), np.float32)
    with pytest.raises(errors.ScopeParamShapeError, match=rf'"kernel" in "/{path}".*99'):
        jax.eval_shape(lambda p, x: model.apply({"params": p}, x), params, image)
