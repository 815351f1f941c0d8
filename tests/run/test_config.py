"""Configs are checked before any work, and every field of them is read."""

import importlib
import json
import re

import pytest
from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import DamagedFileError, write_json
from egmae_jax.run import branches, default_config, rules
from egmae_jax.run import config as configs
from tests import REPOSITORY

CONFIG_FILES = sorted(
    path.stem for path in (REPOSITORY / "configs").glob("*.py") if path.stem != "__init__"
)


def load(name, *preset):
    return importlib.import_module(f"configs.{name}").get_config(*preset)


def changed(**fields):
    """The default config with a data folder and some fields changed (`__` for the dot)."""
    config = default_config.get_config()
    config.data.dir = "somewhere"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def problems(config, num_devices=1):
    """The lines of the error, one a problem."""
    with pytest.raises(ConfigError) as caught:
        rules.check(config, num_devices)
    first, *lines = str(caught.value).split("\n")
    assert first == "The config cannot be run:"
    return [line.strip() for line in lines]


# --- what passes -------------------------------------------------------------------------------


def usable(name, *preset):
    config = load(name, *preset)
    config.data.dir = config.data.dir or "somewhere"
    return config


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_every_config_file_passes(name):
    for num_devices in (1, 2, 8):
        rules.check(usable(name), num_devices)


@pytest.mark.parametrize("name", ["busi", "image_folder"])
def test_presets_change_epochs_or_make_a_small_recipe(name):
    small, longer = usable(name, "cpu"), usable(name, "500/45")
    for config in (small, longer):
        rules.check(config, 1)
        assert configs.flatten(config).keys() == configs.flatten(default_config.get_config()).keys()
    assert small.model.name == "convnext_atto"
    assert (longer.pretrain.epochs, longer.finetune.epochs) == (500, 45)


@pytest.mark.parametrize("preset", ["gpu", "1000", "1000/15/3", "-1/15"])
def test_an_unknown_preset_is_named_with_those_there_are(preset):
    with pytest.raises(ConfigError, match=f"no preset '{re.escape(preset)}'.*cpu.*1000/15"):
        load("busi", preset)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (None, {"imagenet.model": "resnet18", "finetune.trainable_share": 0.90}),
        ("resnet34,head", {"imagenet.model": "resnet34", "finetune.trainable_share": 0.82}),
        ("random", {"branches": ["imagenet"], "finetune.trainable": "random"}),
        ("all,noise=0.3", {"finetune.trainable": "all", "finetune.input_noise": 0.3}),
        ("cpu", {"data.image_size": 96, "finetune.epochs": 3, "imagenet.model": "resnet18"}),
        ("head,egmae", {"branches": ["imagenet", "mae"], "finetune.trainable": "head"}),
        ("cpu,egmae", {"model.name": "convnext_atto", "pretrain.epochs": 20}),
    ],
)
def test_words_change_the_layer_selection(words, fields):
    config = usable("brain_tumor", words)
    rules.check(config, 1)
    flat = configs.flatten(config)
    assert flat.keys() == configs.flatten(default_config.get_config()).keys()
    assert {field: flat[field] for field in fields} == fields


@pytest.mark.parametrize(
    ("words", "count", "image_size"),
    [(None, 1, 224), ("compare,cpu", 6, 64)],
)
def test_words_change_the_asff_recipe(words, count, image_size):
    config = usable("skin_asff", words)
    rules.check(config, 1)
    chosen = branches.from_config(config)
    assert chosen[0].model_name == "asff_resnet50"
    assert len(chosen) == count
    assert not any(branch.is_mae for branch in chosen)
    assert config.data.image_size == image_size


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("brain_tumor", "resnet19", r"no preset 'resnet19'\. Words: all, head, .*resnet18"),
        ("brain_tumor", "noise=much", r"'noise=much' needs a number, such as noise=0\.1"),
        ("brain_tumor", "resnet34,egmae", r"resnet34, egmae exclude each other"),
        ("skin_asff", "compare,100/15", r"no preset '100/15'\. Words: compare, cpu"),
    ],
)
def test_an_unknown_word_is_named_with_those_there_are(name, words, message):
    with pytest.raises(ConfigError, match=message):
        load(name, words)


def test_branches_are_networks_by_their_own_name_or_by_the_papers():
    config = changed(branches=("imagenet", "mae", "resnet34"), imagenet__model="resnet18")
    assert branches.from_config(config) == (
        ("imagenet", "resnet18"),
        ("mae", "convnext_tiny"),
        ("resnet34", "resnet34"),
    )
    assert [branch.is_mae for branch in branches.from_config(config)] == [False, True, False]
    twin = branches.from_config(changed(model__name="convnext_nano"))
    assert twin == (("imagenet", "convnext_nano"), ("mae", "convnext_nano"))


def test_without_pretraining_or_a_convnext_their_demands_do_not_count():
    rules.check(changed(branches=("resnet18",), data__image_size=90, finetune__resize=90), 1)
    small = changed(branches=("squeezenet1_1",), data__image_size=31)
    assert any("networks need at least 32" in line for line in problems(small))
    odd = changed(branches=("convnext_tiny",), data__image_size=90)
    assert any("ConvNeXt's stride 32 must divide it" in line for line in problems(odd))


# --- what does not -----------------------------------------------------------------------------

WRONG = [
    # choices and names
    ({"data__dir": ""}, r"data\.dir is empty.*--config\.data\.dir="),
    ({"data__name": "bussi"}, r"data\.name.*'bussi'.* busi,"),
    ({"data__group_pattern": r"p\d+_"}, r"data\.group_pattern is .* it must contain a \(group\)"),
    ({"data__group_pattern": "(p"}, r"data\.group_pattern is '\(p': missing \)"),
    ({"data__classes": ("COVID",)}, r"data\.classes is \('COVID',\); it must name two or more"),
    ({"data__color": "bgr"}, r"data\.color is 'bgr'.*'rgb', 'grey'"),
    ({"finetune__loss": "focl"}, r"finetune\.loss is .focl.*.cross_entropy., .focal., .logit_adj"),
    ({"finetune__class_weights": "a=1,b=-2"}, r"class_weights is .a=1,b=-2.*a positive number for"),
    (
        {"corruption__kind": "mask"},
        r"corruption\.kind: There is no corruption 'mask'.*entropy_noise.*random_mask",
    ),
    (
        {"data__protocol": "official", "rounds__kind": "folds"},
        r"rounds\.kind is 'folds'.*data\.protocol='official' excludes",
    ),
    ({"rounds__kind": "folds", "rounds__count": 2}, r"rounds\.count is 2.*needs at least 3"),
    # The test share of folds is 1 / rounds.count, whatever data.test_share says.
    (
        {"rounds__kind": "folds", "rounds__count": 3, "data__validation_share": 0.7},
        r"data\.validation_share and a fold for testing leave nothing",
    ),
    ({"pretrain__splits": ("train", "val")}, r"pretrain\.splits.*train, validation, test"),
    # numbers
    ({"finetune__resize": 223}, r"finetune\.resize is 223.* at least data\.image_size=224"),
    ({"pretrain__epochs": 0}, r"pretrain\.epochs is 0; it must be positive"),
    ({"pretrain__epochs": -1, "pretrain__weights": "w"}, r"pretrain\.epochs is -1; .* or 0 to"),
    ({"pretrain__probe_epochs": -1}, r"pretrain\.probe_epochs is -1; it must not be negative"),
    ({"pretrain__unlabelled": ("a", "")}, r"pretrain\.unlabelled is \('a', ''\).* each once"),
    ({"finetune__warmup_epochs": -1}, r"warmup_epochs is -1; it must not be negative"),
    ({"data__test_share": 0.0}, r"data\.test_share is 0\.0.*between 0 and 1"),
    ({"data__test_share": 0.5, "data__validation_share": 0.5}, r"leave nothing to train on"),
    ({"finetune__drop_path_rate": 1.0}, r"finetune\.drop_path_rate is 1\.0"),
    ({"finetune__trainable_share": 1.1}, r"trainable_share is 1\.1.*above 0 and at most 1"),
    ({"finetune__label_share": 0.0}, r"label_share is 0\.0; it must be above 0 and at most 1"),
    ({"finetune__focal_gamma": -1.0}, r"focal_gamma is -1\.0; it must not be negative"),
    ({"pretrain__betas": (0.9, 1.0)}, r"pretrain\.betas is .*0\.9, 1\.0.*below 1"),
    ({"pretrain__crop_scale": (0.2, 1.5)}, r"pretrain\.crop_scale.*at most 1"),
    ({"pretrain__crop_scale": (1.0, 0.5)}, r"pretrain\.crop_scale.*lowest, highest"),
    ({"entropy__num_bins": 100}, r"entropy\.num_bins is 100.*divisor of 256"),
    ({"corruption__threshold": 6.0}, r"threshold is 6\.0: no patch would be masked.* = 5\.545"),
    ({"seed": 2**31}, r"seed is 2147483648; it must be at least 0 and below 2\*\*31"),
    ({"pretrain__betas": ("0.9", 0.95)}, r"pretrain\.betas holds '0\.9'.*two numbers"),
    ({"finetune__learning_rate": float("nan")}, r"finetune\.learning_rate is nan.*finite"),
    # branches and fusion
    ({"branches": ()}, r"branches: there is none; the paper's are 'imagenet' and 'mae'"),
    ({"branches": ("mae", "mae")}, r"branches: \('mae', 'mae'\) names a branch twice"),
    ({"branches": ("mae", "resnet81")}, r"branches: .*'resnet81'. Did you mean 'resnet18'"),
    ({"model__name": "resnet18"}, r"branches: 'mae' cannot pre-train model\.name=resnet18"),
    (
        {"branches": ("imagenet",), "fusion__kind": "stacked"},
        r"fusion\.kind is 'stacked', but there is only one branch",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_one_mistake_is_one_problem_that_names_field_value_and_what_would_do(fields, message):
    (line,) = problems(changed(**fields))
    assert re.search(message, line), line


def test_batches_need_not_divide_among_the_devices_unless_the_mesh_is_given():
    for field in ("pretrain.batch_size", "finetune.batch_size", "evaluation.batch_size"):
        rules.check(changed(**{field: 20}), 8)
    (line,) = problems(changed(finetune__batch_size=20, mesh__data=8), 8)
    assert line == "mesh: batches of 16, 20 images do not divide into 8 parts."
    (line,) = problems(changed(mesh__fsdp=3), 8)
    assert line.startswith("mesh: 8 devices do not divide into batches of 16, 16 images and 3")


def test_several_problems_are_reported_together():
    config = changed(data__name="bussi", data__image_size=230, pretrain__epochs=0, rounds__kind="x")
    lines = problems(config)
    named = {line.split()[0].rstrip(":") for line in lines}
    assert named == {"data.name", "data.image_size", "pretrain.epochs", "rounds.kind"}


@pytest.mark.parametrize(
    ("image_size", "patch_size"), [(224, 12), (250, 16), (230, 16), (230, 24), (100, 28)]
)
def test_following_the_advice_on_the_image_side_helps(image_size, patch_size):
    # The side has to be a multiple of 32 and of the patch: of their least common multiple. Advice
    # on each alone leads in circles: with patches of 24 from 224 to 216 and back.
    fields = {
        "data__store_size": 1000,
        "finetune__resize": 1000,
        "corruption__patch_size": patch_size,
    }
    (line,) = problems(changed(data__image_size=image_size, **fields))
    assert line.startswith(f"data.image_size is {image_size}")
    nearest = int(re.search(r"nearest is (\d+)", line)[1])
    rules.check(changed(data__image_size=nearest, **fields), 1)


def test_fields_that_are_missing_are_named():
    for fields in ({**changed().to_dict(), "data": 7}, {"seed": 0}):
        with pytest.raises(ConfigError, match=r"data\.dir is missing"):
            rules.check(ConfigDict(fields), num_devices=1)


@pytest.mark.parametrize("content", [[], {"a.b": 1}])
def test_a_config_json_that_is_no_config_is_damaged(tmp_path, content):
    write_json(tmp_path / "config.json", content)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged .*restore it"):
        configs.load_config(tmp_path / "config.json")


def test_a_config_json_without_later_fields_is_that_of_a_run_without_what_they_add(tmp_path):
    config = changed()
    earlier = config.to_dict()
    for section, fields in (("finetune", ("augment", "loss")), ("pretrain", ("weights",))):
        for field in fields:
            del earlier[section][field]
    write_json(tmp_path / "config.json", earlier)
    assert configs.flatten(configs.load_config(tmp_path / "config.json")) == configs.flatten(config)
    configs.require_same(earlier, config)
    with pytest.raises(ConfigError, match=r"finetune\.loss: 'cross_entropy' in .*, 'focal'"):
        configs.require_same(earlier, changed(finetune__loss="focal"))


# --- two runs on one workdir -------------------------------------------------------------------


def saved(config):
    """As config.json holds it."""
    return json.loads(json.dumps(config.to_dict()))


def test_each_changed_field_is_named_with_both_values():
    before = saved(changed())
    configs.require_same(before, changed())  # though tuples are lists in JSON
    before["decoder"] = {"dim": 512, "heads": 8}  # a field more and one less
    config = changed(pretrain__epochs=10, pretrain__betas=(0.8, 0.95), data__name="busi")
    with pytest.raises(ConfigError, match="--workdir") as caught:
        configs.require_same(before, config)
    assert [line.strip() for line in str(caught.value).split("\n")[1:]] == [
        "data.name: 'image_folder' in the workdir, 'busi' now",
        "decoder.depth: not set in the workdir, 1 now",
        "decoder.heads: 8 in the workdir, not set now",
        "pretrain.betas: [0.9, 0.95] in the workdir, [0.8, 0.95] now",
        "pretrain.epochs: 1000 in the workdir, 10 now",
    ]


@pytest.mark.parametrize(("image_size", "resize"), [(32, 34), (64, 67), (96, 101), (224, 236)])
def test_sides_that_are_resized_to_follow_the_image_size_unless_given(image_size, resize):
    config = default_config.get_config()
    config.data.image_size = image_size
    assert (config.evaluation.resize, config.finetune.resize) == (image_size, resize)  # section 4.2
    config.evaluation.resize, config.finetune.resize = 101, 236
    flat = configs.flatten(config)
    fields = ("data.image_size", "evaluation.resize", "finetune.resize")
    assert [flat[field] for field in fields] == [image_size, 101, 236]


def test_fields_that_change_no_number_may_differ_and_no_other():
    other = {str: "other", bool: None, int: 7, float: 0.123, tuple: (0.5, 0.6), list: [0.5, 0.6]}
    free = []
    for field, value in configs.flatten(default_config.get_config()).items():
        before = saved(changed())
        section, _, name = field.rpartition(".")
        (before[section] if section else before)[name] = other[type(value)]
        try:
            configs.require_same(before, changed())
        except ConfigError as error:
            assert f"{field}:" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            free.append(field)
    assert set(free) == {
        *("data.dir", "data.cache_dir", "data.title", "data.feeding", "mesh.data", "mesh.fsdp"),
        *("data.resident_gigabytes", "data.host_gigabytes", "checkpoint.save_seconds"),
        *("nonfinite.max_skipped", "evaluation.batch_size", "evaluation.report"),
        *("tensorboard.events", "tensorboard.panel_epochs", "pretrain.probe_epochs"),
    }


# --- no dead option ----------------------------------------------------------------------------


def test_every_field_is_read_by_the_package():
    """A field's name stands behind that of its section, or of a variable that is the section.

    Or a function takes all fields of the section as its keywords.
    """
    read, unpacked = set(), set()
    for path in (REPOSITORY / "egmae_jax").rglob("*.py"):
        if path.name not in ("rules.py", "default_config.py"):  # which check and set them all
            text = path.read_text(encoding="utf-8")
            read |= set(re.findall(r"\b(\w+)\.(?=(\w+)\b)", text))
            unpacked |= set(re.findall(r"\*\*config\.(\w+)", text))
    unread = [
        field
        for field in configs.flatten(default_config.get_config())
        if field.split(".")[0] not in unpacked
        and not {
            (base, field.split(".")[-1]) for base in ("config", "settings", field.split(".")[0])
        }
        & read
    ]
    assert unread == []
