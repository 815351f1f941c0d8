"""Names of the package and of a user in one registry."""

import pytest

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.registry import Registry


def test_a_user_adds_and_replaces_names_but_not_those_of_the_package():
    registry = Registry("number")
    registry.register("one")(1)
    registry.reserve()
    for value in (2, 3):  # a config file that is executed twice
        assert registry.register("mine")(value) == value
        assert registry.get("mine") == value
    assert registry.names() == ("one", "mine")
    assert [registry.is_own(name) for name in registry.names()] == [True, False]
    with pytest.raises(ValueError, match=r"has the number 'one'; register yours by another name"):
        registry.register("one")
    with pytest.raises(ConfigError, match=r"no number 'on'\. Did you mean 'one'\? Known: one, min"):
        registry.get("on")
