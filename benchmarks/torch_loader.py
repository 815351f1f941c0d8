"""The usual PyTorch input pipeline: a DataLoader with torchvision's transforms in its workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from egmae_jax.method.augment import MEAN, STD
from tests import torch_reference

FORMS = ("PIL", "tensors")


class Files(torch.utils.data.Dataset):
    """Data set of random crops of image files, as torchvision makes them for training.

    Args:
        files: paths.
        size: side of the crops.
        scale: of RandomResizedCrop.
        ratio: of RandomResizedCrop.
        grey: decodes to one channel, which becomes three at the end.
        form: 'PIL' crops Pillow's images, the older and commoner way; 'tensors' crops uint8
            tensors by transforms.v2, which torchvision recommends.
    """

    def __init__(
        self,
        files: list[Path],
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        *,
        grey: bool,
        form: str,
    ):
        self._files, self._crop, self._grey, self._form = files, (size, scale, ratio), grey, form
        self._transform: Any = None  # made in the worker

    def _make_transform(self) -> Any:
        v1 = torch_reference.torchvision().transforms
        from torchvision.transforms import v2

        if self._form == "PIL":
            crop, to_float = v1.RandomResizedCrop(*self._crop), [v1.ToTensor()]
        else:
            crop = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(*self._crop, antialias=True)])
            to_float = [v2.ToDtype(torch.float32, scale=True)]
        return v1.Compose(
            [
                crop,
                v1.RandomHorizontalFlip(),
                *to_float,
                v1.Lambda(lambda x: x.expand(3, -1, -1)),
                v1.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        self._transform = self._transform or self._make_transform()
        with Image.open(self._files[index]) as image:
            return self._transform(image.convert("L" if self._grey else "RGB"))


def batches(files: Files, batch_size: int, count: int, workers: int) -> Callable[[], None]:
    """Goes through `count` batches, from the first file read to the last batch received."""
    sampler = torch.utils.data.RandomSampler(files, num_samples=batch_size * count)
    loader = torch.utils.data.DataLoader(
        files,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=True,
        prefetch_factor=4,
        multiprocessing_context="spawn",  # forking a process that runs XLA's threads may hang
    )

    def run() -> None:
        for _ in loader:
            pass

    return run
