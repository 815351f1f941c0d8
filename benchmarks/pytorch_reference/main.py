"""The recipe of the paper in PyTorch: pre-train, fine-tune two branches, average them.

python -m benchmarks.pytorch_reference.main --data=FOLDER [--model=convnext_tiny] [--imagenet] \
    [--pretrain_epochs=1000] [--finetune_epochs=15] [--batch=16] [--workers=4] [--seed=0]

FOLDER has one folder of images a class. A fifth of every class is tested on, at the last epoch;
images are split one by one, near-duplicates may therefore be on both sides.
`--imagenet` fetches timm's weights from the Hugging Face hub; else that branch starts at random.
"""

import argparse
import functools
import re
import time
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

from benchmarks.pytorch_reference import model as networks
from benchmarks.pytorch_reference import training
from egmae_jax.run import default_config
from tests import torch_reference


def main() -> None:
    """Runs the recipe and prints the scores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--imagenet", action="store_true")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--pretrain_epochs", type=int, default=1000)
    parser.add_argument("--finetune_epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    training.make_fast()
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    listed = (path for name in classes for path in sorted((arguments.data / name).iterdir()))
    files = [path for path in listed if not re.search(r"_mask(_\d+)?$", path.stem)]  # BUSI's
    labels = [classes.index(path.parent.name) for path in files]
    parts = train_test_split(
        files, labels, test_size=0.2, stratify=labels, random_state=arguments.seed
    )
    train_files, test_files, train_labels, test_labels = parts

    torch_reference.torchvision()
    from torchvision.transforms import v2

    config, size = default_config.get_config(), arguments.image_size
    resize = round(size * config.finetune.resize / config.data.image_size)
    whole = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    data = functools.partial(training.loader, batch_size=arguments.batch, workers=arguments.workers)
    pretraining = data(
        train_files,
        train_labels,
        v2.Compose(
            [
                v2.RandomResizedCrop(size, config.pretrain.crop_scale, antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        ),
        train=True,
    )
    finetuning = data(
        train_files,
        train_labels,
        v2.Compose(
            [v2.Resize(resize, antialias=True), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
        ),
        train=True,
    )
    test = data(test_files, test_labels, whole, train=False)

    def train(model, loss, batches, epochs, section):
        optimizer = training.adamw(
            model, section.learning_rate, section.betas, section.weight_decay
        )
        steps = epochs * len(batches)
        warmup = min(section.warmup_epochs * len(batches), steps - 1)
        trainer = training.Trainer(
            model,
            loss,
            optimizer,
            training.cosine(optimizer, steps, warmup),
            compiled="default" if device.type == "cuda" else None,
            autocast=device.type == "cuda",
        )
        started = time.perf_counter()
        for number, batch in enumerate(training.batches(batches, device, epochs), 1):
            value = trainer.step(*batch)
            if number % len(batches) == 0:
                rate = number * arguments.batch / (time.perf_counter() - started)
                epoch = number // len(batches)
                print(f"epoch {epoch}: loss {value.item():.4f}, {rate:.0f} images/s", flush=True)

    def place(model):
        return model.train().to(device, memory_format=torch.channels_last)

    autoencoder = place(
        networks.MaskedAutoencoder(arguments.model, config.decoder.dim, config.decoder.depth)
    )
    patch_size = config.corruption.patch_size
    train(
        autoencoder,
        lambda model, pixels, _: networks.pretraining_loss(model, pixels, patch_size),
        pretraining,
        arguments.pretrain_epochs,
        config.pretrain,
    )
    probabilities = []
    for branch in ("imagenet", "mae"):
        classifier = networks.create_classifier(
            arguments.model,
            len(classes),
            config.finetune.drop_path_rate,
            pretrained=arguments.imagenet and branch == "imagenet",
        )
        if branch == "mae":
            encoder = {k: v.cpu() for k, v in autoencoder.encoder.state_dict().items()}
            fresh = classifier.load_state_dict(encoder, strict=False)
            assert not fresh.unexpected_keys
            assert all("head." in k for k in fresh.missing_keys)
        train(
            place(classifier),
            networks.classification_loss,
            finetuning,
            arguments.finetune_epochs,
            config.finetune,
        )
        classifier.eval()
        probabilities.append(
            torch.cat([networks.predict(classifier, x) for x, _ in training.batches(test, device)])
        )
    probabilities.append(sum(probabilities) / 2)
    for branch, p in zip(("imagenet", "mae", "ensemble"), probabilities, strict=True):
        p = p.double().cpu().numpy()
        p /= p.sum(axis=1, keepdims=True)
        accuracy = accuracy_score(test_labels, p.argmax(1))
        scores = p[:, 1] if len(classes) == 2 else p
        auc = roc_auc_score(test_labels, scores, multi_class="ovr")
        print(f"{branch}: accuracy {accuracy:.4f}, AUC {auc:.4f}")


if __name__ == "__main__":
    main()
