"""Configs are checked before any work, and every field of them is read."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from egmae_jax.commands import arguments
from egmae_jax.run import branches, default_config, rules
from egmae_jax.run import config as configs
from egmae_jax.run.config import ConfigError

REPOSITORY = Path(__file__).parents[2]
CONFIG_FILES = sorted(
    path.stem for path in (REPOSITORY / "configs").glob("*.py") if path.stem != "__init__"
)
WITH_PRESETS = ("busi", "covid", "image_folder", "isic2018", "kvasir")


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


@pytest.mark.parametrize("name", WITH_PRESETS)
@pytest.mark.parametrize("preset", ["cpu", "1000/15", "100/30"])
def test_presets_pass(name, preset):
    rules.check(usable(name, preset), 1)


def test_epoch_presets_set_pretraining_and_fine_tuning_epochs():
    config = load("busi", "500/45")
    assert (config.pretrain.epochs, config.finetune.epochs) == (500, 45)
    assert configs.flatten(config).keys() == configs.flatten(default_config.get_config()).keys()


def test_the_cpu_preset_changes_fields_and_adds_none():
    config = load("busi", "cpu")
    assert config.model.name == "convnext_atto"
    assert configs.flatten(config).keys() == configs.flatten(default_config.get_config()).keys()


@pytest.mark.parametrize("preset", ["gpu", "1000", "1000/", "/15", "1000/15/3", "-1/15", "1.5/2"])
def test_an_unknown_preset_is_named_with_those_there_are(preset):
    with pytest.raises(ConfigError, match=f"no preset '{re.escape(preset)}'.*cpu.*1000/15"):
        load("busi", preset)


# The recipes of the companion systems and the words that change them.


def test_layer_selection_trains_the_sources_share_of_a_resnet():
    config = load("brain_tumor")
    assert config.branches == ("imagenet",)
    assert config.imagenet.model == "resnet18"
    assert (config.finetune.trainable, config.finetune.trainable_share) == ("low_entropy", 0.90)
    assert config.data.color == "grey"


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("resnet34", {"imagenet.model": "resnet34", "finetune.trainable_share": 0.82}),
        ("squeezenet1_0", {"imagenet.model": "squeezenet1_0", "finetune.trainable_share": 0.5}),
        ("random", {"finetune.trainable": "random", "finetune.trainable_share": 0.90}),
        ("resnet34,head", {"imagenet.model": "resnet34", "finetune.trainable": "head"}),
        ("all,noise=0.3", {"finetune.trainable": "all", "finetune.input_noise": 0.3}),
        ("cpu", {"data.image_size": 96, "finetune.epochs": 3, "imagenet.model": "resnet18"}),
        ("egmae", {"branches": ["imagenet", "mae"], "finetune.trainable": "all"}),
        ("egmae,head", {"branches": ["imagenet", "mae"], "finetune.trainable": "head"}),
        ("head,egmae", {"branches": ["imagenet", "mae"], "finetune.trainable": "head"}),
        ("cpu,egmae", {"model.name": "convnext_atto", "pretrain.epochs": 20}),
        ("random,resnet34", {"imagenet.model": "resnet34", "finetune.trainable": "random"}),
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
    [(None, 1, 224), ("compare", 6, 224), ("cpu", 1, 64), ("compare,cpu", 6, 64)],
)
def test_words_change_the_asff_recipe(words, count, image_size):
    config = usable("skin_asff", words)
    rules.check(config, 1)
    chosen = branches.of(config)
    assert chosen[0].model_name == "asff_resnet50"
    assert len(chosen) == count
    assert not any(branch.is_mae for branch in chosen)
    assert config.data.image_size == image_size


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("brain_tumor", "resnet19", r"no preset 'resnet19'\. Words: all, head, .*resnet18"),
        ("brain_tumor", "cpu,gpu", r"no preset 'gpu'\. Words: .*noise=<std>, cpu, egmae"),
        ("brain_tumor", "noise=much", r"'noise=much' needs a number, such as noise=0\.1"),
        ("brain_tumor", "noise", r"'noise' needs a number"),
        ("brain_tumor", "resnet34,egmae", r"resnet34, egmae exclude each other"),
        ("brain_tumor", "head,cpu,all", r"head, all exclude each other"),
        ("skin_asff", "compare,100/15", r"no preset '100/15'\. Words: compare, cpu"),
    ],
)
def test_an_unknown_word_is_named_with_those_there_are(name, words, message):
    with pytest.raises(ConfigError, match=message):
        load(name, words)


def test_branches_are_networks_by_their_own_name_or_by_the_papers():
    config = changed(branches=("imagenet", "mae", "resnet34"), imagenet__model="resnet18")
    assert branches.of(config) == (
        ("imagenet", "resnet18"),
        ("mae", "convnext_tiny"),
        ("resnet34", "resnet34"),
    )
    assert [branch.is_mae for branch in branches.of(config)] == [False, True, False]
    twin = branches.of(changed(model__name="convnext_nano"))
    assert twin == (("imagenet", "convnext_nano"), ("mae", "convnext_nano"))


def test_without_pretraining_or_a_convnext_their_demands_do_not_count():
    rules.check(changed(branches=("resnet18",), data__image_size=90, finetune__resize=90), 1)
    small = changed(branches=("squeezenet1_1",), data__image_size=31)
    assert any("networks need at least 32" in line for line in problems(small))
    odd = changed(branches=("convnext_tiny",), data__image_size=90)
    assert any("ConvNeXt's stride 32 must divide it" in line for line in problems(odd))


def test_a_field_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError, match="epoch"):
        default_config.get_config().pretrain.epoch = 3


# --- what does not -----------------------------------------------------------------------------

WRONG = [
    # data, model, choices
    ({"data__dir": ""}, r"data\.dir is empty.*--config\.data\.dir="),
    ({"data__name": "bussi"}, r"data\.name.*'bussi'.*'busi'"),
    ({"data__group_pattern": r"p\d+_"}, r"data\.group_pattern is .* it has no \(group\)"),
    ({"data__group_pattern": "(p"}, r"data\.group_pattern is '\(p': missing \)"),
    ({"data__classes": ("COVID",)}, r"data\.classes is \('COVID',\); it must name two or more"),
    ({"data__color": "bgr"}, r"data\.color is 'bgr'.*'rgb', 'grey'"),
    ({"data__on_conflict": "ask"}, r"data\.on_conflict is 'ask'.*'keep', 'drop'"),
    (
        {"data__protocol": "official", "rounds__kind": "folds"},
        r"rounds\.kind is 'folds'.*data\.protocol='official' excludes",
    ),
    ({"model__name": "convnext_tinny"}, r"model\.name.*'convnext_tinny'.*'convnext_tiny'"),
    ({"data__on_error": "ignore"}, r"data\.on_error is 'ignore'.*'raise', 'skip'"),
    ({"data__resize": "crop"}, r"data\.resize is 'crop'.*'shorter_side', 'squash', 'pad'"),
    (
        {"data__protocol": "patient"},
        r"data\.protocol is 'patient'.*'grouped', 'official', 'image_level'",
    ),
    ({"model__dtype": "float16"}, r"model\.dtype is 'float16'.*'float32', 'bfloat16'"),
    ({"entropy__color": "rgb"}, r"entropy\.color is 'rgb'.*'per_channel'.*'joint'.*'luma'"),
    ({"corruption__kind": "mask"}, r"corruption\.kind is 'mask'.*'entropy_noise'.*'random_mask'"),
    ({"rounds__kind": "fold"}, r"rounds\.kind is 'fold'.*'seeds', 'folds'"),
    # sizes
    ({"finetune__resize": 223}, r"finetune\.resize is 223, smaller than data\.image_size=224"),
    (
        {"evaluation__resize": 223},
        r"evaluation\.resize is 223, smaller than data\.image_size=224",
    ),
    ({"data__store_size": 223}, r"data\.store_size is 223, smaller than data\.image_size=224"),
    # shares and rates
    ({"data__test_share": 0.0}, r"data\.test_share is 0\.0.*between 0 and 1"),
    ({"data__validation_share": 0.0}, r"data\.validation_share is 0\.0.*between 0 and 1"),
    ({"data__test_share": 0.5, "data__validation_share": 0.5}, r"leave nothing to train on"),
    ({"data__near_duplicate_threshold": 1.0}, r"near_duplicate_threshold is 1\.0"),
    ({"corruption__mask_ratio": 1.2}, r"corruption\.mask_ratio is 1\.2.*between 0 and 1"),
    ({"finetune__drop_path_rate": 1.0}, r"finetune\.drop_path_rate is 1\.0"),
    ({"finetune__label_smoothing": -0.1}, r"finetune\.label_smoothing is -0\.1"),
    # pairs
    ({"pretrain__betas": (0.9, 1.0)}, r"pretrain\.betas is .*0\.9, 1\.0.*below 1"),
    ({"finetune__betas": (0.9, 0.99, 0.999)}, r"finetune\.betas.*two numbers"),
    ({"pretrain__crop_scale": (0.0, 1.0)}, r"pretrain\.crop_scale.*both positive"),
    ({"pretrain__crop_scale": (0.8, 0.2)}, r"pretrain\.crop_scale.*lowest, highest"),
    ({"pretrain__crop_scale": (0.2, 1.5)}, r"pretrain\.crop_scale.*no crop exceeds its image"),
    ({"pretrain__crop_ratio": (1.5, 0.5)}, r"pretrain\.crop_ratio.*lowest, highest"),
    ({"pretrain__crop_ratio": (1.0,)}, r"pretrain\.crop_ratio.*lowest, highest"),
    # the rest
    ({"pretrain__splits": ()}, r"pretrain\.splits is \(\).*train, validation, test"),
    ({"pretrain__splits": ("train", "val")}, r"pretrain\.splits.*train, validation, test"),
    (
        {"rounds__kind": "folds", "rounds__count": 2},
        r"rounds\.count is 2.*'folds' needs at least 3",
    ),
    ({"entropy__num_bins": 100}, r"entropy\.num_bins is 100.*divisor of 256"),
    ({"entropy__num_bins": 0}, r"entropy\.num_bins is 0"),
    ({"entropy__num_bins": 1}, r"entropy\.num_bins is 1: every entropy is 0"),
    ({"corruption__threshold": 6.0}, r"threshold is 6\.0: no patch would be masked.* = 5\.545"),
    # what is no number, or none to compute with
    ({"pretrain__betas": ("0.9", 0.95)}, r"pretrain\.betas holds '0\.9'.*two numbers"),
    ({"pretrain__crop_ratio": (True, 2.0)}, r"pretrain\.crop_ratio holds True.*two numbers"),
    ({"finetune__learning_rate": float("nan")}, r"finetune\.learning_rate is nan.*finite"),
    ({"pretrain__crop_scale": (0.2, float("inf"))}, r"pretrain\.crop_scale is inf.*finite"),
    ({"seed": 2**32 - 3}, r"seed is 4294967293; it must be below 2\*\*32"),
    ({"data__split_seed": 2**32}, r"data\.split_seed is 4294967296"),
    # branches, layers that train, fusion
    ({"branches": ()}, r"branches: there is none; the paper's are 'imagenet' and 'mae'"),
    ({"branches": ("mae", "mae")}, r"branches: \('mae', 'mae'\) names a branch twice"),
    ({"branches": ("mae", "resnet81")}, r"branches: .*'resnet81'. Did you mean 'resnet18'"),
    ({"imagenet__model": "squeezenet"}, r"branches: .*no model 'squeezenet'.*squeezenet1_0"),
    ({"model__name": "resnet18"}, r"branches: 'mae' pre-trains model\.name=resnet18; only a Conv"),
    ({"finetune__trainable": "half"}, r"trainable is 'half'.*'all', 'head', 'low_entropy', 'ran"),
    (
        {"finetune__trainable_share": 0.0},
        r"finetune\.trainable_share is 0\.0.*above 0 and at most 1",
    ),
    (
        {"finetune__trainable_share": 1.1},
        r"finetune\.trainable_share is 1\.1.*above 0 and at most 1",
    ),
    ({"fusion__kind": "median"}, r"fusion\.kind is 'median'.*'mean', 'weighted', 'stacked'"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_one_mistake_is_one_problem_that_names_field_value_and_what_would_do(fields, message):
    (line,) = problems(changed(**fields))
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("image_size", "patch_size", "message"),
    [
        (230, 16, r"is 230.*32.*nearest is 224"),
        (250, 16, r"is 250.*32.*nearest is 256"),
        (16, 16, r"is 16.*32.*nearest is 32"),
        (224, 64, r"is 224.*corruption\.patch_size=64.*nearest is (192|256)"),
    ],
)
def test_a_side_that_stride_or_patch_does_not_divide_is_refused_with_the_nearest_that_fits(
    image_size, patch_size, message
):
    config = changed(
        data__image_size=image_size, corruption__patch_size=patch_size, finetune__resize=300
    )
    lines = problems(config)
    assert all(line.startswith("data.image_size") for line in lines)
    assert any(re.search(message, line) for line in lines), lines


POSITIVE = (
    "corruption.scale",
    "corruption.patch_size",
    "data.image_size",
    "data.store_size",
    "decoder.dim",
    "evaluation.batch_size",
    "evaluation.bootstrap_resamples",
    "finetune.batch_size",
    "finetune.calibration_images",
    "finetune.epochs",
    "finetune.layer_decay",
    "finetune.learning_rate",
    "pretrain.batch_size",
    "pretrain.epochs",
    "pretrain.learning_rate",
    "rounds.count",
)
NOT_NEGATIVE = (
    "checkpoint.save_seconds",
    "corruption.threshold",
    "data.split_seed",
    "decoder.depth",
    "finetune.input_noise",
    "finetune.warmup_epochs",
    "finetune.weight_decay",
    "nonfinite.max_skipped",
    "pretrain.warmup_epochs",
    "pretrain.weight_decay",
    "seed",
)


@pytest.mark.parametrize("field", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_zero_and_negative_numbers_are_refused(field, value):
    kind = type(configs.flatten(default_config.get_config())[field])
    lines = problems(changed(**{field: kind(value)}))
    assert any(re.search(rf"^{field} is {value}(\.0)?; it must be positive", x) for x in lines)


@pytest.mark.parametrize("field", NOT_NEGATIVE)
def test_negative_numbers_are_refused_where_zero_is_right(field):
    kind = type(configs.flatten(default_config.get_config())[field])
    rules.check(changed(**{field: kind(0)}), 1)
    (line,) = problems(changed(**{field: kind(-1)}))
    assert re.search(rf"^{field} is -1(\.0)?; it must not be negative", line)


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
    ("image_size", "patch_size"),
    [(224, 12), (224, 24), (224, 48), (230, 16), (230, 24), (100, 14), (100, 28), (300, 28)],
)
def test_following_the_advice_on_the_image_side_helps(image_size, patch_size):
    # The side has to be a multiple of 32 and of the patch: of their least common multiple. Advice
    # on each alone leads in circles: with patches of 24 from 224 to 216 and back.
    fields = {
        "data__store_size": 1000,
        "finetune__resize": 1000,
        "corruption__patch_size": patch_size,
    }
    for line in problems(changed(data__image_size=image_size, **fields)):
        nearest = int(re.search(r"nearest is (\d+)", line)[1])
        rules.check(changed(data__image_size=nearest, **fields), 1)


def test_folds_that_leave_nothing_to_train_on_are_refused():
    # The test share of folds is 1 / rounds.count, whatever data.test_share says.
    config = changed(
        rounds__kind="folds", rounds__count=3, data__test_share=0.1, data__validation_share=0.7
    )
    assert any("validation_share" in line for line in problems(config))


# --- two runs on one workdir -------------------------------------------------------------------


def saved(config):
    """As config.json holds it."""
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_config_is_the_same_after_a_json_round_trip(name):
    config = load(name)
    assert isinstance(saved(config)["pretrain"]["betas"], list)
    configs.require_same(saved(config), config)


def test_each_changed_field_is_named_with_both_values():
    config = changed(pretrain__epochs=10, pretrain__betas=(0.8, 0.95), data__name="busi")
    with pytest.raises(ConfigError) as caught:
        configs.require_same(saved(changed()), config)
    message = str(caught.value)
    assert "--workdir" in message
    lines = [line.strip() for line in message.split("\n")[1:]]
    assert lines == [
        "data.name: 'image_folder' in the workdir, 'busi' now",
        "pretrain.betas: [0.9, 0.95] in the workdir, [0.8, 0.95] now",
        "pretrain.epochs: 1000 in the workdir, 10 now",
    ]


def test_fields_of_another_version_are_named_as_absent():
    before, config = saved(changed()), changed()
    del before["decoder"]["depth"]
    before["decoder"]["heads"] = 8
    with pytest.raises(ConfigError) as caught:
        configs.require_same(before, config)
    assert "decoder.depth: 'absent' in the workdir, 1 now" in str(caught.value)
    assert "decoder.heads: 8 in the workdir, 'absent' now" in str(caught.value)


def test_a_config_of_an_older_version_has_the_fields_that_were_added_since(tmp_path):
    old = changed().to_dict()
    del old["nonfinite"], old["tensorboard"]
    del old["evaluation"]["report"], old["evaluation"]["resize"]
    del old["data"]["intensity_range"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = configs.load(tmp_path / "config.json")
    assert configs.flatten(found) == configs.flatten(changed())
    configs.require_same(old, changed())
    with pytest.raises(configs.ConfigError, match="'type' in the workdir, 'dataset' now"):
        configs.require_same(old, changed(data__intensity_range="dataset"))


def test_a_run_of_an_older_version_was_evaluated_at_its_image_size():
    old = changed(data__image_size=96).to_dict()
    del old["evaluation"]["resize"]
    configs.require_same(old, changed(data__image_size=96))
    with pytest.raises(ConfigError, match=r"evaluation\.resize: 96 in the workdir, 101 now"):
        configs.require_same(old, changed(data__image_size=96, evaluation__resize=101))


def test_the_side_that_is_resized_to_follows_the_image_size_unless_it_is_given():
    config = default_config.get_config()
    assert config.evaluation.resize == 224  # section 4.2
    config.data.image_size = 96
    assert config.evaluation.resize == 96
    config.evaluation.resize = 101
    assert (config.data.image_size, config.evaluation.resize) == (96, 101)


def test_fields_that_change_no_number_may_differ():
    assert set(configs.FREE_FIELDS) == {
        "checkpoint.on_damage",
        "mesh.data",
        "mesh.fsdp",
        "data.dir",
        "data.cache_dir",
        "data.feeding",
        "data.resident_gigabytes",
        "data.host_gigabytes",
        "checkpoint.save_seconds",
        "nonfinite.max_skipped",
        "evaluation.batch_size",
        "evaluation.report",
        "tensorboard.events",
        "tensorboard.panel_epochs",
    }
    config = changed(
        data__dir="elsewhere",
        data__cache_dir="other",
        data__feeding="stream",
        data__resident_gigabytes=0.5,
        data__host_gigabytes=0.5,
        checkpoint__save_seconds=1.0,
        nonfinite__max_skipped=3,
        evaluation__batch_size=8,
        evaluation__report=False,
    )
    configs.require_same(saved(changed()), config)


def test_every_other_field_must_be_the_same():
    other = {str: "other", bool: None, int: 7, float: 0.123, tuple: (0.5, 0.6), list: [0.5, 0.6]}
    for field, value in configs.flatten(default_config.get_config()).items():
        if field in configs.FREE_FIELDS:
            continue
        before = saved(changed())
        section, _, name = field.rpartition(".")
        (before[section] if section else before)[name] = other[type(value)]
        with pytest.raises(ConfigError, match=f"{field}:"):
            configs.require_same(before, changed())


# --- flags -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "field", "nearest"),
    [
        ("--config.pretrain.epoch=2", "pretrain.epoch", "pretrain.epochs"),
        ("--config.finetune.lerning_rate=1", "finetune.lerning_rate", "finetune.learning_rate"),
        ("-config.data.image_sise", "data.image_sise", "data.image_size"),
        ("--config.sed=1", "sed", "seed"),
    ],
)
def test_a_flag_for_no_field_is_explained_by_the_nearest(flag, field, nearest):
    argv = ["main.py", "--config.seed=3", "--workdir=runs/x", flag]
    text = arguments.explain_unknown_field(argv, default_config.get_config())
    assert text == f"There is no config field {field!r}. Did you mean {nearest!r}?"


def test_flags_that_all_name_fields_explain_no_error():
    argv = ["main.py", "--config=configs/busi.py", "--config.seed=3"]
    assert arguments.explain_unknown_field(argv, default_config.get_config()) is None


def test_flatten_joins_names_by_dots():
    config = ConfigDict({"a": 1, "b": {"c": (2, 3), "d": {"e": "f"}}})
    expected = {"a": 1, "b.c": [2, 3], "b.d.e": "f"}
    assert configs.flatten(config) == expected
    assert configs.flatten(config.to_dict()) == expected


# --- no dead option ----------------------------------------------------------------------------


# How modules call the whole config.
WHOLE = ("self.config", "self._config", "run.config", "self.run.config", "self._run.config")


def fields_read(source):
    """The config fields that a module reads, found in its syntax.

    Followed are the expressions of WHOLE, and names that a function assigns a section to, such as
    `config = self.config.pretrain`.
    """
    read = set()

    def resolve(node, names):
        """'' for the whole config, 'pretrain', 'pretrain.epochs', or None for anything else."""
        if ast.unparse(node) in WHOLE:
            return ""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = resolve(node.value, names)
            return None if base is None else f"{base}.{node.attr}".lstrip(".")
        return None

    def assigned(node):
        """(name, value) pairs of an assignment, also of `a, b = c, d`."""
        (target,) = node.targets
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            return list(zip(target.elts, node.value.elts, strict=True))
        return [(target, node.value)]

    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        names = {"config": ""}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                for target, value in assigned(node):
                    found = resolve(value, {"config": ""})
                    if isinstance(target, ast.Name) and found is not None:
                        names[target.id] = found
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                read.add(resolve(node, names))
    return read - {None}


def test_the_search_for_read_fields_follows_sections():
    source = """
class A:
    def f(self):
        config = self.config.pretrain
        data, other = self._config.data, 3
        return config.epochs, lambda: data.dir, self.config.rounds.count, jax.config.x.y, other.z
def g(config):
    return config.seed + config.entropy.color
"""
    found = fields_read(source)
    assert {"pretrain.epochs", "data.dir", "rounds.count", "seed", "entropy.color"} <= found
    assert not {"x.y", "y", "z", "epochs", "finetune.epochs", "data.seed"} & found


def test_every_field_is_read_by_the_package():
    found = set()
    for path in (REPOSITORY / "egmae_jax").rglob("*.py"):
        if path.name not in ("config.py", "default_config.py"):  # which set and check them all
            found |= fields_read(path.read_text(encoding="utf-8"))
    fields = configs.flatten(default_config.get_config()).keys()
    assert not fields - found, "no module reads these fields"
