"""Writes the model card, README.md: the model's data, metrics, use and limitations.

The text is the template card.md. Names from outside, such as those of classes and data sets, are
escaped, so that they cannot contain markup.
"""

from collections.abc import Collection
from pathlib import Path

import jinja2

from egmae_jax import models
from egmae_jax.core.markup import markdown
from egmae_jax.deploy.export.system import System, View
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.bootstrap import Evidence, few_groups_warning
from egmae_jax.evaluation.metrics import TITLES
from egmae_jax.models.model import IMAGENET
from egmae_jax.run.saved_run import SavedRun


def render_card(run: SavedRun, system: System, round_index: int, files: Collection[str]) -> str:
    """Returns the model card of an exported classifier as Markdown.

    Args:
        run: run that has been evaluated.
        system: a branch or the ensemble.
        round_index: round of the run.
        files: names of the other files in the folder of the card.
    """
    results = run.results()
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "text": markdown,
        "figure": "{:.3f}".format,
        "title": lambda metric: TITLES.get(metric, metric),
        "file_name": lambda path: Path(path).name,
    }
    template = environment.from_string(Path(__file__).with_suffix(".md").read_text("utf-8"))
    row, classes = results["rounds"][round_index], results["dataset"]["classes"]
    evidence = Evidence(row["groups"], tuple(row["groups_by_class"][name] for name in classes))
    return template.render(
        run=run,
        results=results,
        dataset=results["dataset"],
        round=row,
        round_index=round_index,
        system=system,
        files=files,
        library=models.library(system.networks[0].branch.model_name),
        few_groups=few_groups_warning(evidence, [markdown(name) for name in classes]),
        limit=calibration.explain(row["calibration"][system.name]),
        view_code="\n".join(_view_code(system.view)),
        normalization=_describe_normalization(system),
    )


def _describe_normalization(system: System) -> str:
    """Returns how pixel values / 255 are normalised: 'ImageNet's mean and standard deviation'."""
    imagenet = "ImageNet's mean and standard deviation"
    others = []
    for network in system.networks:
        normalization = models.normalization(network.branch.model_name)
        if normalization != IMAGENET:
            mean, std = (", ".join(map(str, x)) for x in normalization)
            others.append((network.branch.name, f"mean ({mean}) and standard deviation ({std})"))
    if len(others) == len(system.networks) == 1:
        return others[0][1]
    return imagenet + "".join(f", for `{name}` with {words}" for name, words in others)


def _view_code(view: View) -> list[str]:
    """Returns lines of Python that load image.png and prepare it with Pillow for the networks."""
    grey = '.convert("L")' if view.color == "grey" else ""
    low, high = view.intensity.of_dataset.get("uint16", (0, 0))
    if view.intensity.rule == "type":
        read_16_bits = [
            'if image.mode.startswith("I;16"):  # use the high byte of 16-bit values',
            "    image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))",
        ]
    elif low < high:
        read_16_bits = [
            'if image.mode.startswith("I;16"):  # scale from the range of the data set',
            f"    fraction = (np.asarray(image, float) - {low:g}) / {high - low:g}",
            "    scaled = np.round(255 * np.clip(fraction, 0, 1))",
            "    image = PIL.Image.fromarray(scaled.astype(np.uint8))",
        ]
    else:  # the range that a file declares, which Pillow does not read; or no range
        read_16_bits = [
            'if image.mode.startswith("I;16"):',
            '    raise ValueError("scale 16-bit values to 8 bits first, as the model card says")',
        ]
    size, resized, bilinear = view.size, view.resized, "PIL.Image.Resampling.BILINEAR"
    resize = {
        "squash": [f"image = image.resize(({resized}, {resized}), {bilinear})"],
        "pad": [f"image = PIL.ImageOps.pad(image, ({resized}, {resized}), {bilinear})"],
        "shorter_side": [
            f"size = [{resized} * side // min(image.size) for side in image.size]",
            f"image = image.resize(size, {bilinear})",
        ],
    }[view.resize]
    crop = [
        f"left, top = (round((side - {size}) / 2) for side in image.size)",
        f"image = image.crop((left, top, left + {size}, top + {size}))",
    ]
    return [
        'image = PIL.ImageOps.exif_transpose(PIL.Image.open("image.png"))',
        *read_16_bits,
        f'image = image{grey}.convert("RGB")',
        *resize,
        *(crop if view.resize == "shorter_side" or resized != size else []),
    ]
