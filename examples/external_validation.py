"""External validation: a finished run on images from elsewhere, less those that it has seen.

On the command line, with a report: egmae evaluate --workdir=W --images FOLDER --out=RESULTS

python examples/external_validation.py
"""

# %% A finished run. This one is short and starts from random weights, so it has learnt little.
import shutil
import tempfile
from pathlib import Path

from egmae_jax import experiment
from egmae_jax.data import phantoms, splits
from egmae_jax.deploy import external
from egmae_jax.run import default_config

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
size = {"height": 48, "width": 64}
phantoms.write(folder / "ours", images_per_class=20, seed=0, **size)
config = default_config.get_config()
config.data.name, config.data.dir = "image_folder", str(folder / "ours")
config.data.cache_dir = str(folder / "cache")
config.data.image_size, config.data.store_size = 32, 40
config.branches, config.imagenet.model = ("imagenet",), "squeezenet1_1"
config.imagenet.weights = "none"
config.finetune.epochs, config.rounds.count = 2, 1
config.evaluation.report = False
experiment.run(config, folder / "run")

# %% Images of another hospital, in one folder per class. It calls a class by another name, and has
# a training image of the run.
theirs = folder / "theirs"
phantoms.write(theirs, images_per_class=10, seed=1, **size)
(theirs / "malignant").rename(theirs / "cancer")
rows = splits.read(folder / "run" / "splits.json")
seen = next(row["file"] for row in rows if (row["split"], row["label"]) == ("train", "benign"))
shutil.copy(folder / "ours" / seen, theirs / "benign" / "seen.png")

# %% Every branch predicts them; nothing is fitted. The training image is left out and named.
results, predictions = external.evaluate(
    folder / "run", theirs, folder / "results", renamed=["cancer=malignant"]
)
print(results["dataset"]["account"])

# %% The probabilities, to be scored in another way: labels [N], probabilities [N, classes].
probabilities = predictions[0]["imagenet"].probabilities
print("probabilities", probabilities.shape, "of", ", ".join(results["dataset"]["classes"]))
temporary.cleanup()
