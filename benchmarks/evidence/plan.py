"""The experiments of docs/results.md: sweeps on real images, at a size for two CPU cores."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from egmae_jax.sweep import variants
from egmae_jax.sweep.variants import Sweep


class DataSet(NamedTuple):
    """A folder of images and the recipe for it."""

    title: str
    recipe: str  # name of a file in configs
    folder: str  # below the folder of --data
    share: float = 1.0  # of the experiments' epochs: larger sets train for about as many steps
    fields: tuple[tuple[str, Any], ...] = ()  # config fields and their values
    published: tuple[str, int] = ("", 0)  # the paper's table: name of the data set, classes


class Contrast(NamedTuple):
    """A difference of AUC: the mean of some variants minus the mean of others."""

    title: str
    first: tuple[str, ...]  # names of variants; of runs with several branches, 'variant, branch'
    second: tuple[str, ...]


class Experiment(NamedTuple):
    """One sweep on each of several data sets, and what is compared."""

    title: str
    sweep: str  # name of a file in configs/sweeps
    words: str  # of the sweep, after the recipe; {names} are replaced by epochs and {weights}
    fields: dict[str, Any]  # config fields, beside SMALL and those of the data set
    datasets: tuple[str, ...]
    contrasts: tuple[Contrast, ...]  # their intervals hold together
    # Numbers of epochs on a data set of share 1, by the name in `words` that they replace.
    epochs: tuple[tuple[str, int], ...] = ()
    axis: str = ""  # what the number after the slash of a variant's name is

    @property
    def in_folds(self) -> bool:
        """Whether each round has test images and a pre-training of its own."""
        return self.fields.get("rounds.kind", SMALL["rounds.kind"]) == "folds"


DATA = {
    "busi": DataSet("BUSI", "busi", "busi", published=("busi", 3)),
    "endoscopy": DataSet(
        "HyperKvasir, five classes",
        "hyperkvasir",
        "hyperkvasir",
        0.5,
        (("data.classes", ("polyp", "normal-cecum", "bbps-2-3", "bbps-0-1", "impacted-stool")),),
    ),
    "covid": DataSet(
        "COVID-19 Radiography, three classes",
        "covid",
        "covid19_radiography",
        0.65,
        (("data.classes", ("COVID", "Normal", "Viral Pneumonia")),),
        ("covid", 2),
    ),
    "brain": DataSet("brain tumour MRI", "brain_tumor", "brain_tumor_mri"),
    "brisc": DataSet("BRISC 2025, a sample", "brisc2025", "brisc2025"),
    "isic": DataSet("ISIC 2018 at 200x150", "isic2018", "isic2018", 0.13),
    "lesions": DataSet(
        "ISIC 2018, benign or malignant",
        "skin_asff",
        "isic2018",
        fields=(("data.protocol", "grouped"),),
    ),
}

# Small images, no output but scores, and three folds, each with a pre-training, a seed and test
# images of its own.
SMALL = {
    "data.image_size": 64,
    "data.store_size": 80,
    "rounds.kind": "folds",
    "rounds.count": 3,
    "evaluation.report": False,
    "tensorboard.events": False,
    "tensorboard.panel_epochs": 0,
}


def _each(name: str, ends: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for end in ends)


_SCALES = ("", "_0.18", "_0.05")  # of noise: 1, .18, .05
_SHARES = ("/1", "/0.5", "/0.25", "/0.1", "/0.05")
_LEVELS = ("/0.1", "/0.2", "/0.3", "/0.4")  # of noise on the input
_KINDS = ("entropy_noise", "shuffled_entropy", "contrast_noise", "uniform_noise")
_ENTROPY = _each("entropy_noise", _SCALES)

EXPERIMENTS = {
    "controls": Experiment(
        "What the entropy does",
        "corruption",
        "cpu,{pretraining}/{finetuning}",
        {},
        ("busi", "endoscopy", "covid"),
        (
            Contrast(
                "entropy minus its permutation, three scales",
                _ENTROPY,
                _each("shuffled_entropy", _SCALES),
            ),
            Contrast(
                "entropy minus contrast, three scales", _ENTROPY, _each("contrast_noise", _SCALES)
            ),
            Contrast(
                "entropy minus uniform, three scales", _ENTROPY, _each("uniform_noise", _SCALES)
            ),
            Contrast(
                "masks sampled by entropy minus random masks",
                ("entropy_sampled",),
                ("random_mask",),
            ),
            Contrast(
                "all noises: scale .05 minus scale 1",
                tuple(f"{kind}_0.05" for kind in _KINDS),
                _KINDS,
            ),
            Contrast(
                "equation 4 minus no pre-training at equal passes",
                ("entropy_noise",),
                ("no_pretraining_longer",),
            ),
            Contrast(
                "entropy, scale .05, minus no pre-training at equal passes",
                ("entropy_noise_0.05",),
                ("no_pretraining_longer",),
            ),
        ),
        (("pretraining", 20), ("finetuning", 15)),
    ),
    "budget": Experiment(
        "Pre-training at equal passes over the images",
        "budget",
        "cpu,passes={passes}",
        {},
        ("busi", "endoscopy"),  # of COVID-19, a random start already reaches .96
        (
            Contrast("equation 4 minus no pre-training", ("entropy_noise",), ("scratch",)),
            Contrast("scale .05 minus no pre-training", ("entropy_noise_0.05",), ("scratch",)),
        ),
        (("passes", 60),),
    ),
    "labels": Experiment(
        "Few labels, many images",
        "label_share",
        "cpu,{pretraining}/{finetuning},weights={weights}",
        {"corruption.scale": 0.05, "imagenet.model": "tf_efficientnet_lite0"},
        ("endoscopy", "busi"),
        (
            Contrast("MAE minus random start", _each("mae", _SHARES), _each("scratch", _SHARES)),
            Contrast("ImageNet minus MAE", _each("imagenet", _SHARES), _each("mae", _SHARES)),
            Contrast(
                "ensemble minus ImageNet",
                _each("imagenet+mae", _SHARES),
                _each("imagenet", _SHARES),
            ),
        ),
        (("pretraining", 20), ("finetuning", 15)),
        "share of the labels",
    ),
    "imagenet": Experiment(
        "With a real ImageNet network, and what leakage is worth",
        "protocols",
        "cpu,{pretraining}/{finetuning}",
        {
            "imagenet.model": "tf_efficientnet_lite0",
            "imagenet.weights": "{weights}",
            "corruption.scale": 0.05,
            "finetune.learning_rate": 5e-4,
            "data.image_size": 160,
            "data.store_size": 192,
        },
        ("busi", "endoscopy", "covid", "isic"),
        (
            *(
                Contrast(f"{x} minus ImageNet, grouped", (f"grouped, {x}",), ("grouped, imagenet",))
                for x in ("mean", "weighted", "stacked")
            ),
            Contrast("image-level minus grouped, mean", ("image_level, mean",), ("grouped, mean",)),
        ),
        (("pretraining", 15), ("finetuning", 15)),
    ),
    "layers": Experiment(
        "Layers of low entropy, with noise on the input",
        "layer_selection",
        "squeezenet1_1,cpu",
        {"imagenet.weights": "{weights}"},
        ("brain",),
        tuple(
            Contrast(
                f"low entropy minus {other}, noise .1 to .4",
                _each("low_entropy", _LEVELS),
                _each(other, _LEVELS),
            )
            for other in ("random", "all")
        ),
        axis="noise, share of the pixel range",
    ),
    "asff": Experiment(
        "ASFF and classic CNNs",
        "asff",
        "cpu,weights={weights}",
        {},
        ("lesions",),
        (
            Contrast("ASFF minus its backbone", ("asff_resnet50",), ("resnet50",)),
            Contrast(
                "ASFF minus EfficientNet-Lite0 from ImageNet weights",
                ("asff_resnet50",),
                ("tf_efficientnet_lite0-imagenet",),
            ),
        ),
    ),
    "figure2": Experiment(
        "Figure 2 of the paper",
        "epochs",
        "cpu,scratch=60",
        # 2,725 epochs in all: at 32 pixels, a third of the time that they take at 64.
        {
            "rounds.kind": "seeds",
            "rounds.count": 5,
            "data.image_size": 32,
            "data.store_size": 40,
        },
        ("busi", "endoscopy", "covid"),
        tuple(
            Contrast(f"{x} minus 0/60", (x,), ("0/60",))
            for x in ("100/30", "100/45", "500/30", "500/45", "1000/15")
        ),
    ),
}


def read(experiment: Experiment, dataset: str, data: Path, weights: Path) -> Sweep:
    """Returns the variants of an experiment on a data set, whose folder is below `data`.

    Args:
        experiment: one of EXPERIMENTS.
        dataset: name in DATA.
        data: folder of the data sets.
        weights: folder of the ImageNet weights, for experiments that need them.
    """
    source = DATA[dataset]
    module = importlib.import_module(f"configs.sweeps.{experiment.sweep}")
    config = module.get_config(words_of(experiment, dataset, weights))
    fields = fields_of(experiment, dataset, weights) | {"data.dir": str(data / source.folder)}
    config.update_from_flattened_dict(fields)
    return variants.read(config, overrides=tuple(fields))


def words_of(experiment: Experiment, dataset: str, weights: Path) -> str:
    """Returns the words after the colon of --config."""
    share = DATA[dataset].share
    epochs = {name: round(count * share) for name, count in experiment.epochs}
    words = experiment.words.format(weights=weights, **epochs)
    return f"{DATA[dataset].recipe},{words}"


def fields_of(experiment: Experiment, dataset: str, weights: Path) -> dict[str, Any]:
    """Returns the config fields that differ from those of the sweep's file."""
    fields = SMALL | dict(DATA[dataset].fields) | experiment.fields
    return {k: str(weights) if x == "{weights}" else x for k, x in fields.items()}


def command(experiment: Experiment, dataset: str, out: str) -> str:
    """Returns the command that runs an experiment on a data set by itself."""
    source, weights = DATA[dataset], Path("weights")
    words = words_of(experiment, dataset, weights)
    fields = {"data.dir": f"data/{source.folder}"} | fields_of(experiment, dataset, weights)
    flags = [f"--config.{name}={_flag(value)}" for name, value in fields.items()]
    config = f"--config=configs/sweeps/{experiment.sweep}.py:{words}"
    return " ".join(["egmae sweep", config, *flags, f"--out={out}", "--all_on_test"])


def _flag(value: Any) -> str:
    return f'"{value}"' if isinstance(value, tuple) else str(value)
