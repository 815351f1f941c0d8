"""Configs and what stands behind the colon, whatever somebody writes there."""

import importlib
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from egmae_jax import models
from egmae_jax.core.files import DamagedFileError, write_json
from egmae_jax.method import layer_entropy
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
@example("pretrain.splits", [["train"]])
@example("data.group_pattern", "(" * 5000)
@example("evaluation.bootstrap_resamples", 10**12)
@example("data.dir", "a\0b")
@example("data.dir", "~nobody_of_that_name/x")
@settings(max_examples=300)
def test_a_value_of_another_kind_than_its_fields_is_refused_by_the_fields_name(field, value):
    config = ConfigDict(nested({**FIELDS, "data.dir": "x", field: value}))
    refused = ""
    try:
        rules.check(config, num_devices=1)
    except ConfigError as error:
        refused = str(error)
        assert field.split(".")[-1] in refused
    assert refused or can_stand_for(value, FIELDS[field])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.group_pattern", "(" * 5000),
        ("evaluation.bootstrap_resamples", 10**12),
        ("data.dir", "a\0b"),
        ("data.dir", "~nobody_of_that_name/x"),
        ("finetune.drop_path_rate", 1.0),
        ("pretrain.betas", [0.9, 1.0]),
        ("corruption.kind", "blur"),
    ],
)
def test_a_value_of_the_right_kind_that_no_run_can_have_is_refused(field, value):
    config = ConfigDict(nested({**FIELDS, "data.dir": "x", field: value}))
    with pytest.raises(ConfigError, match=re.escape(field)):
        rules.check(config, num_devices=1)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_field_that_is_missing_is_named(field):
    config = ConfigDict(nested({name: x for name, x in FIELDS.items() if name != field}))
    with pytest.raises(ConfigError, match=f"{field} is missing"):
        rules.check(config, num_devices=1)


def test_a_section_that_is_a_number_lacks_its_fields():
    with pytest.raises(ConfigError, match=r"data\.dir is missing"):
        rules.check(ConfigDict({**nested(FIELDS), "data": 7}), num_devices=1)


@pytest.mark.parametrize("content", [7, [], "x", None, {"a.b": 1}])
def test_a_config_json_that_is_no_config_is_damaged(tmp_path, content):
    write_json(tmp_path / "config.json", content)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged .*restore it"):
        configs.load(tmp_path / "config.json")


# What may stand behind the colon, beside epochs such as 100/30, as the configs' docstrings say.
WORDS = {
    **dict.fromkeys(("busi", "isic2018", "kvasir", "skin_lesions", "demo"), ("cpu",)),
    "covid": ("cpu", "covid2"),
    "skin_asff": ("cpu", "compare"),
    "brain_tumor": ("cpu", "egmae", *layer_entropy.MODES, *models.names()),
}


@given(
    st.sampled_from(sorted(WORDS)),
    st.text(max_size=20)
    | st.from_regex(r"[0-9]{1,3}/[0-9]{1,3}|(cpu|compare|egmae|noise=.*),?\w*", fullmatch=True),
)
@example("busi", "9" * 5000 + "/15")
@example("busi", "1000/15")
@example("busi", "1000/15\n")
@example("busi", "\u0664/\u0664")
@example("brain_tumor", "noise=nan")
@example("brain_tumor", "noise=1e999")
@example("brain_tumor", "noise=0.1,resnet34")
@example("brain_tumor", ",,,")
@example("brain_tumor", "noise=0.1,noise=0.2")
@example("skin_asff", "compare,compare")
def test_only_words_that_a_config_knows_make_one(name, words):
    module = importlib.import_module(f"configs.{name}")
    try:
        config = module.get_config(words)
        config.data.dir = "x"
        rules.check(config, num_devices=1)
    except ConfigError:
        return
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (one of the words is wrong: see below)
        return
    joined_by_commas = name in ("brain_tumor", "skin_asff")
    for word in words.split(",") if joined_by_commas else [words]:
        if word in WORDS[name] or not words:
            continue
        if joined_by_commas:
            assert (name, word[:6]) == ("brain_tumor", "noise=")
            assert 0 <= float(word[6:]) < np.inf
        else:
            epochs = [config.pretrain.epochs, config.finetune.epochs]
            assert [int(number) for number in word.split("/")] == epochs


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, word) for name in ("busi", "demo", "kvasir") for word in ("cpu", "1000/15")),
        *(("covid", "covid2"), ("skin_asff", "compare,cpu"), ("brain_tumor", "noise=0.1,resnet34")),
    ],
)
def test_the_words_that_a_config_knows_are_accepted(name, words):
    config = importlib.import_module(f"configs.{name}").get_config(words)
    config.data.dir = "x"
    rules.check(config, num_devices=1)
