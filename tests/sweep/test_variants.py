"""What a sweep varies: its config files, and variants that cannot be."""

import jax
import numpy as np
import pytest

from configs.sweeps import backbones as backbones_sweep
from configs.sweeps import budget as budget_sweep
from configs.sweeps import corruption as corruption_sweep
from configs.sweeps import epochs as epochs_sweep
from configs.sweeps import label_share as label_share_sweep
from egmae_jax import models
from egmae_jax.core.errors import ConfigError
from egmae_jax.models.init import abstract_variables, initial_variables
from egmae_jax.run import branches, rules
from egmae_jax.sweep import run, variants
from egmae_jax.training.state import count_parameters
from tests import tiny


def test_figure_2_is_five_pairs_of_epochs_of_the_recipe():
    sweep = variants.read(epochs_sweep.get_config("busi,cpu"))
    names = ["100/30", "100/45", "500/30", "500/45", "1000/15"]
    assert [variant.name for variant in sweep.variants] == names
    assert sweep.baseline == "1000/15"
    for variant in sweep.variants:
        config = variant.config
        assert f"{config.pretrain.epochs}/{config.finetune.epochs}" == variant.name
        assert (config.data.name, config.model.name) == ("busi", "convnext_atto")
        rules.check(config, 1)
    keys = [run.pretraining_changes(variant) for variant in sweep.variants]
    assert keys[0] == keys[1] != keys[2] == keys[3] != keys[4]
    (*_, scratch) = variants.read(epochs_sweep.get_config("busi,cpu,scratch=60")).variants
    rules.check(scratch.config, 1)
    assert (scratch.name, scratch.config.finetune.epochs) == ("0/60", 60)
    assert (scratch.config.branches, scratch.config.imagenet.weights) == (
        ("convnext_atto",),
        "none",
    )
    with pytest.raises(ConfigError, match=r"'scratch=' needs a whole number, such as scratch=60"):
        epochs_sweep.get_config("busi,cpu,scratch=")
    divided = variants.read(epochs_sweep.get_config("demo,divide=5"))
    names = ["20/6", "20/9", "100/6", "100/9", "200/3"]
    assert [variant.name for variant in divided.variants] == names


@pytest.mark.parametrize("words", ["busi", "busi,cpu", "skin_lesions"])
def test_backbones_are_the_papers_the_companions_and_others(words):
    sweep = variants.read(backbones_sweep.get_config(words))
    assert sweep.baseline == ("convnext_atto" if words.endswith("cpu") else "convnext_tiny")
    compared = {*backbones_sweep.CLASSIC, backbones_sweep.SWIN, backbones_sweep.ASFF}
    assert compared < {variant.name for variant in sweep.variants}
    assert len(backbones_sweep.CLASSIC) == 5
    for variant in sweep.variants:
        (branch,) = branches.from_config(variant.config)
        assert branch.model_name == variant.name
    rules.check(variant.config, 1)
    swin = abstract_variables(models.create(backbones_sweep.SWIN, 3))["params"]
    # Without a classifier for 1000 classes, but with one for three.
    assert (count_parameters(swin) + 1024 * 997 + 997) / 1e6 == pytest.approx(87.77, abs=0.01)


def test_corruptions_are_compared_with_the_same_network_from_random_weights():
    sweep = variants.read(corruption_sweep.get_config("isic2018,cpu"))
    kinds = {v.name: (v.config.corruption.kind, v.config.corruption.scale) for v in sweep.variants}
    assert kinds.pop("no_pretraining")
    assert kinds.pop("no_pretraining_longer")
    assert kinds == {
        "entropy_noise": ("entropy_noise", 1.0),
        "entropy_noise_0.18": ("entropy_noise", 0.18),
        "entropy_noise_0.05": ("entropy_noise", 0.05),
        "entropy_topk": ("entropy_topk", 1.0),
        "entropy_sampled": ("entropy_sampled", 1.0),
        "random_mask": ("random_mask", 1.0),
        **{
            f"{kind}{suffix}": (kind, scale)
            for kind in ("uniform_noise", "shuffled_entropy", "contrast_noise")
            for suffix, scale in (("", 1.0), ("_0.18", 0.18), ("_0.05", 0.05))
        },
    }
    longer, pretrained = sweep.variants[1:3]
    epochs = (pretrained.config.pretrain.epochs, pretrained.config.finetune.epochs)
    assert longer.config.finetune.epochs == sum(epochs)
    starts = []
    for variant in (sweep.variants[0], pretrained):
        rules.check(variant.config, 1)
        (branch,) = branches.from_config(variant.config)
        network = branches.classifier(branch, variant.config, num_classes=3)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        model = variant.config.model
        options = {"kernel_init": model.kernel_init, "layer_scale": model.layer_scale}
        starts.append(initial_variables(network, 0, image, **options))
        budget = ("epochs", "batch_size", "learning_rate", "layer_decay", "drop_path_rate")
        assert [variant.config.finetune[x] for x in budget] == [
            sweep.variants[3].config.finetune[x] for x in budget
        ]
    jax.tree.map(np.testing.assert_array_equal, *starts)


def test_a_budget_gives_every_setting_the_same_passes_and_pretrains_once_for_all_rates():
    sweep = variants.read(budget_sweep.get_config("busi,cpu,passes=60"))
    assert sweep.tuned
    settings = {}
    for variant in sweep.variants:
        rules.check(variant.config, 1)
        start, _, setting = variant.name.partition("/")
        config, (branch,) = variant.config, branches.from_config(variant.config)
        if start == "scratch":
            assert (branch.model_name, config.imagenet.weights) == ("convnext_atto", "none")
            assert config.finetune.epochs in (60, 30, 15)
        else:
            assert config.pretrain.epochs + config.finetune.epochs == 60
        settings.setdefault(start, []).append(setting)
    assert {name: len(x) for name, x in settings.items()} == {
        "scratch": 9, "entropy_noise": 6, "entropy_noise_0.05": 6,
    }  # fmt: skip
    assert settings["entropy_noise"][0] == "30+30, 0.0005"
    pretrained = [run.pretraining_changes(variant) for variant in sweep.variants]
    assert len({str(x) for x in pretrained}) == 1 + 4  # None, and two lengths of two scales
    with pytest.raises(ConfigError, match=r"'passes=2' needs a number of epochs from 4"):
        budget_sweep.get_config("busi,cpu,passes=2")


def test_shares_of_labels_train_for_equal_steps_and_share_one_pretraining():
    sweep = variants.read(label_share_sweep.get_config("busi,cpu"))
    lines = ("scratch", "mae", "imagenet", "imagenet+mae")
    shares = label_share_sweep.SHARES
    assert [v.name for v in sweep.variants] == [f"{x}/{s:g}" for s in shares for x in lines]
    branches_of = {}
    for variant in sweep.variants:
        config, share = variant.config.finetune, variant.config.finetune.label_share
        rules.check(variant.config, 1)
        assert variant.name == f"{variant.name.split('/')[0]}/{share:g}"
        assert config.epochs * share == pytest.approx(15)
        assert config.warmup_epochs * share == pytest.approx(1)
        assert sweep.baseline_of(variant.name) == f"scratch/{share:g}"
        branches_of[variant.name.split("/")[0]] = tuple(variant.config.branches)
    assert branches_of == {
        "scratch": ("convnext_atto",),
        "mae": ("mae",),
        "imagenet": ("imagenet",),
        "imagenet+mae": ("imagenet", "mae"),
    }
    pretrained = [run.pretraining_changes(v) for v in sweep.variants if "mae" in v.name]
    assert pretrained == [{}] * 10


@pytest.mark.parametrize(
    "config",
    [
        label_share_sweep.get_config("busi,cpu,4/8,weights=none"),
        budget_sweep.get_config("busi,cpu"),
        epochs_sweep.get_config("busi,cpu,scratch=60"),
    ],
    ids=["label_share", "budget", "epochs"],
)
def test_all_lines_have_the_network_that_the_command_line_sets(config):
    config.model.name = "convnext_femto"
    sweep = variants.read(config, ("model.name",))
    for variant in sweep.variants:
        rules.check(variant.config, 1)
        (branch,) = branches.from_config(variant.config)
        assert branch.model_name == "convnext_femto"
    assert {branches.from_config(v.config)[0].is_mae for v in sweep.variants} == {True, False}


def test_shares_of_labels_take_weights_or_leave_imagenet_out():
    given = variants.read(label_share_sweep.get_config("busi,cpu,weights=some/file.npz"))
    weights = {v.name.split("/")[0]: v.config.imagenet.weights for v in given.variants}
    assert weights == dict.fromkeys(("mae", "imagenet", "imagenet+mae"), "some/file.npz") | {
        "scratch": "none"
    }
    without = variants.read(label_share_sweep.get_config("demo,weights=none"))
    assert {v.name.split("/")[0] for v in without.variants} == {"scratch", "mae"}


def test_an_axis_needs_variants_that_set_it_beside_the_baseline(data, cache):
    for changes, message in (
        ({"a/1": {"seed": 1}, "b/2": {"seed": 2}}, "no variant 'a/2'"),
        ({"a/1": {"finetune.epochs": 7}}, "'a/1' does not set the axis seed"),
    ):
        config = tiny.make_config(data, cache)
        attached = variants.attach(config, changes, baseline="a", axis="seed")
        with pytest.raises(ConfigError, match=message):
            variants.read(attached)


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (epochs_sweep, None, "needs a recipe after the colon"),
        (corruption_sweep, "bussi", "'bussi' is none of brain_tumor, brisc2025, busi"),
        (corruption_sweep, "brain_tumor", "no branch 'mae'"),
        (epochs_sweep, "busi,divide=0", "needs a whole number"),
        (epochs_sweep, "busi,divide=50", "makes equals"),
    ],
)
def test_words_that_name_no_sweep_are_refused(module, words, message):
    with pytest.raises(ConfigError, match=message):
        module.get_config(words)


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"a": {"seed": 1}, "b": {"seed": 1}}, (), "The variants 'a' and 'b' are the same"),
        ({"a/b": {"seed": 1}, "a_b": {"seed": 2}}, (), "are the same"),  # one folder
        ({"a": {"sed": 1}}, (), "there is no such field"),
        ({"b": {"seed": 1}}, (), "no variant 'a', which is named as its baseline"),
        ({"a": {"seed": 1}}, ("seed",), "--config.seed cannot be set"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(data, cache, changes, overrides, message):
    attached = variants.attach(tiny.make_config(data, cache), changes, baseline="a")
    with pytest.raises(ConfigError, match=message):
        variants.read(attached, overrides)


def test_a_recipe_is_no_sweep(data, cache):
    with pytest.raises(ConfigError, match="is not a sweep but a single recipe"):
        variants.read(tiny.make_config(data, cache))


def test_a_variant_of_another_image_size_is_evaluated_at_its_own(data, cache):
    changes = {"small": {"data.image_size": 32}, "large": {"data.image_size": 64}}
    attached = variants.attach(tiny.make_config(data, cache), changes, baseline="small")
    sweep = variants.read(attached)
    assert [v.config.evaluation.resize for v in sweep.variants] == [32, 64]
