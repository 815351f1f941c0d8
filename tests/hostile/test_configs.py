"""Configs and what stands behind the colon, whatever somebody writes there."""

import importlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import default
from egmae_jax import config as configs
from egmae_jax.config import ConfigError
from egmae_jax.data import prepare
from egmae_jax.data.datasets import DataError
from egmae_jax.files import DamagedFileError, write_json

FIELDS = configs.flatten(default.get_config())
ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.just([1]), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=1)
)


def test_the_types_are_those_of_the_default_config():
    kinds = {field: kind for kind, fields in configs._TYPES.items() for field in fields}
    assert kinds.keys() == FIELDS.keys()
    assert not list(configs.type_problems(default.get_config()))


def nested(flat):
    content: dict = {}
    for field, value in flat.items():
        section, _, name = field.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    return content


@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
@example("data.classes", [1, 2])
@example("branches", [["mae"]])
@example("pretrain.splits", [["train"]])
@example("data.group_pattern", "(" * 5000)
@example("evaluation.bootstrap_resamples", 10**12)
@example("data.dir", "a\0b")
@example("data.dir", "~nobody_of_that_name/x")
@settings(max_examples=300)
def test_a_config_with_any_value_in_any_field_is_right_or_the_field_is_named(field, value):
    config = ConfigDict(nested({**FIELDS, "data.dir": "x", field: value}))
    try:
        configs.check(config, num_devices=1)
    except ConfigError as error:
        assert field.split(".")[-1] in str(error)  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_field_that_is_missing_is_named(field):
    config = ConfigDict(nested({name: x for name, x in FIELDS.items() if name != field}))
    with pytest.raises(ConfigError, match=f"{field} is missing"):
        configs.check(config, num_devices=1)


def test_a_section_that_is_a_number_lacks_its_fields():
    with pytest.raises(ConfigError, match=r"data\.dir is missing"):
        configs.check(ConfigDict({**nested(FIELDS), "data": 7}), num_devices=1)


@pytest.mark.parametrize("content", [7, [], "x", None, {"a.b": 1}])
def test_a_config_json_that_is_no_config_is_damaged(tmp_path, content):
    write_json(tmp_path / "config.json", content)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged .*restore it"):
        configs.load(tmp_path / "config.json")


NAMES = ("busi", "brain_tumor", "skin_asff", "covid", "isic2018", "kvasir", "skin_lesions", "demo")


@given(st.sampled_from(NAMES), st.text(max_size=20) | st.from_regex(r"\d+/\d+|(cpu|noise=.*),?\w*"))
@example("busi", "9" * 5000 + "/15")
@example("busi", "1000/15\n")
@example("busi", "\u0664/\u0664")
@example("brain_tumor", "noise=nan")
@example("brain_tumor", "noise=1e999")
@example("brain_tumor", ",,,")
@example("brain_tumor", "noise=0.1,noise=0.2")
@example("skin_asff", "compare,compare")
def test_any_words_behind_the_colon_are_a_config_or_an_error_that_says_which_there_are(name, words):
    module = importlib.import_module(f"configs.{name}")
    try:
        config = module.get_config(words)
        config.data.dir = "x"
        configs.check(config, num_devices=1)
    except ConfigError:
        pass
    except TypeError:
        assert name == "demo"  # takes no words
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize("pattern", [r"((a+)+)$", r"(\w*\w*\w*\w*\w*\w*)-", r"((.*)*)x"])
def test_a_pattern_that_would_take_for_ever_is_stopped(monkeypatch, pattern):
    monkeypatch.setattr(prepare, "_PATTERN_SECONDS", 0.3)
    listed = [prepare.ImageFile(f"cat/{'a' * 200}!", "cat")]
    with pytest.raises(DataError, match=r"data\.group_pattern .* takes more than 0\.3 seconds"):
        prepare._group_by_name(listed, pattern)


def test_a_pattern_in_time_leaves_no_alarm():
    import signal

    listed = [prepare.ImageFile("cat/p1_2.png", "cat"), prepare.ImageFile("cat/p2_3.png", "cat")]
    assert [x.group for x in prepare._group_by_name(listed, r"(p\d)_")] == ['["p1"]', '["p2"]']
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
