"""Configs and the words behind the colon, whatever somebody writes there."""

import importlib
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from egmae_jax.core.files import DamagedFileError, write_json
from egmae_jax.run import config as configs
from egmae_jax.run import default_config, rules
from egmae_jax.run.config import ConfigError

FIELDS = configs.flatten(default_config.get_config())
ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.just([1]), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=1)
)


def nested(flat):
    content: dict = {}
    for field, value in flat.items():
        section, _, name = field.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    return content


def can_stand_for(value, default):
    """Whether a value is of the default's kind; `check` may still refuse it."""
    if isinstance(default, list):
        of = default[0] if default else ""  # data.classes is empty
        return isinstance(value, list) and all(can_stand_for(item, of) for item in value)
    if isinstance(default, float):
        finite = isinstance(value, int | float) and abs(value) < 1e300  # False of NaN
        return finite and not isinstance(value, bool)
    return type(value) is type(default)


@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
@example("data.classes", [1, 2])
@example("branches", [["mae"]])
@settings(max_examples=300)
def test_a_value_of_another_kind_than_its_fields_is_refused_by_the_fields_name(field, value):
    config = ConfigDict(nested({**FIELDS, "data.dir": "x", field: value}))
    message = ""
    try:
        rules.check(config, num_devices=1)
    except ConfigError as error:
        message = str(error)
        assert field.split(".")[-1] in message
    assert message or can_stand_for(value, FIELDS[field])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.group_pattern", "(" * 5000),
        ("evaluation.bootstrap_resamples", 10**12),
        ("data.dir", "a\0b"),
        ("data.dir", "~nobody_of_that_name/x"),
    ],
)
def test_a_value_of_the_right_kind_that_no_run_can_have_is_refused(field, value):
    config = ConfigDict(nested({**FIELDS, "data.dir": "x", field: value}))
    with pytest.raises(ConfigError, match=re.escape(field)):
        rules.check(config, num_devices=1)


@pytest.mark.parametrize("fields", [{**nested(FIELDS), "data": 7}, nested({"seed": 0})])
def test_fields_that_are_missing_are_named(fields):
    with pytest.raises(ConfigError, match=r"data\.dir is missing"):
        rules.check(ConfigDict(fields), num_devices=1)


@pytest.mark.parametrize("content", [[], {"a.b": 1}])
def test_a_config_json_that_is_no_config_is_damaged(tmp_path, content):
    write_json(tmp_path / "config.json", content)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged .*restore it"):
        configs.load(tmp_path / "config.json")


@given(
    st.sampled_from(["busi", "covid", "brain_tumor", "skin_asff"]),
    st.text(max_size=20)
    | st.from_regex(r"[0-9]{1,3}/[0-9]{1,3}|(cpu|compare|egmae|noise=.*),?\w*", fullmatch=True),
)
@example("busi", "1000/15\n")
@example("brain_tumor", "noise=nan")
@example("brain_tumor", "noise=1e999")
@example("brain_tumor", ",,,")
@example("skin_asff", "compare,compare")
def test_any_words_make_a_config_or_are_refused(name, words):
    module = importlib.import_module(f"configs.{name}")
    try:
        config = module.get_config(words)
        config.data.dir = "x"
        rules.check(config, num_devices=1)
    except ConfigError:
        return
    assert words.isprintable()
