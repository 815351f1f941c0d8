"""What a sweep varies: its config files, and variants that cannot be."""

import jax
import numpy as np
import pytest

from configs.sweeps import corruption as corruption_sweep
from configs.sweeps import epochs as epochs_sweep
from egmae_jax.core.errors import ConfigError
from egmae_jax.models.init import initial_variables
from egmae_jax.run import branches, rules
from egmae_jax.sweep import run, variants
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
    divided = variants.read(epochs_sweep.get_config("demo,divide=5"))
    names = ["20/6", "20/9", "100/6", "100/9", "200/3"]
    assert [variant.name for variant in divided.variants] == names


def test_corruptions_are_compared_with_the_same_network_from_random_weights():
    sweep = variants.read(corruption_sweep.get_config("isic2018,cpu"))
    kinds = {v.name: (v.config.corruption.kind, v.config.corruption.scale) for v in sweep.variants}
    assert kinds.pop("no_pretraining")
    assert kinds == {
        "entropy_noise": ("entropy_noise", 1.0),
        "entropy_noise_0.18": ("entropy_noise", 0.18),
        "entropy_noise_0.05": ("entropy_noise", 0.05),
        "entropy_topk": ("entropy_topk", 1.0),
        "entropy_sampled": ("entropy_sampled", 1.0),
        "random_mask": ("random_mask", 1.0),
        "uniform_noise": ("uniform_noise", 1.0),
    }
    starts = []
    for variant in (sweep.variants[0], sweep.variants[1]):
        rules.check(variant.config, 1)
        (branch,) = branches.from_config(variant.config)
        network = branches.classifier(branch, variant.config, num_classes=3)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        model = variant.config.model
        options = {"kernel_init": model.kernel_init, "layer_scale": model.layer_scale}
        starts.append(initial_variables(network, 0, image, **options))
        budget = ("epochs", "batch_size", "learning_rate", "layer_decay", "drop_path_rate")
        assert [variant.config.finetune[x] for x in budget] == [
            sweep.variants[2].config.finetune[x] for x in budget
        ]
    jax.tree.map(np.testing.assert_array_equal, *starts)


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (epochs_sweep, None, "needs a recipe after the colon"),
        (corruption_sweep, "bussi", "'bussi' is none of brain_tumor, busi"),
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
