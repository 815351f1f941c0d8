"""The usual PyTorch input pipeline: a DataLoader with torchvision's transforms in its workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests import torch_reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files(torch.utils.data.Dataset):
    """Random crops of image files, as torchvision makes them for training."""

    def __init__(
        self, files: list[Path], size: int, scale: tuple[float, float], ratio: tuple[float, float]
    ):
        self._files, self._crop = files, (size, scale, ratio)
        self._transform: Any = None  # made in the worker

    def _make_transform(self) -> Any:
        transforms = torch_reference.torchvision().transforms
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(*self._crop),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        self._transform = self._transform or self._make_transform()
        with Image.open(self._files[index]) as image:
            return self._transform(image.convert("RGB"))


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
        multiprocessing_context="spawn",
    )

    def run() -> None:
        for _ in loader:
            pass

    return run
