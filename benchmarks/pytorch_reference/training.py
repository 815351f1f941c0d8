"""Optimizer, schedule, steps and input pipeline of the paper in PyTorch, in their best form.

On a GPU: channels last, bfloat16 autocast, `torch.compile`, fused AdamW, pinned memory and
TensorFloat-32 for what autocast leaves in float32. On a CPU: eager float32.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests import torch_reference


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Returns groups: weights of several axes decay; with `layer_decay`, timm's groups by layer."""
    if layer_decay != 1.0:
        torch_reference.timm()
        from timm.optim import param_groups_layer_decay

        return param_groups_layer_decay(model, weight_decay=weight_decay, layer_decay=layer_decay)
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Returns fused AdamW."""
    groups = parameter_groups(model, weight_decay, layer_decay)
    for group in groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def cosine(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Returns linear warm-up from a rate above 0, then half a cosine; stepped every batch."""
    schedulers = torch.optim.lr_scheduler
    cosine = schedulers.CosineAnnealingLR(optimizer, total_steps - warmup_steps)
    if not warmup_steps:
        return cosine
    warmup = schedulers.LinearLR(optimizer, 1 / warmup_steps, 1.0, max(warmup_steps - 1, 1))
    return schedulers.SequentialLR(optimizer, [warmup, cosine], [warmup_steps])


class Trainer:
    """A network in training.

    Args:
        model: in training mode, where it is to run.
        loss: (model, *batch) -> scalar.
        optimizer: of its parameters.
        scheduler: stepped after every batch.
        compiled: `torch.compile` for the loss and its gradients; a mode, or None for eager.
        autocast: computes in bfloat16 what autocast deems safe.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        *,
        compiled: str | None = None,
        autocast: bool = False,
    ):
        self.model, self._optimizer, self._scheduler = model, optimizer, scheduler
        self._loss = torch.compile(loss, mode=compiled) if compiled else loss
        self._device_type = next(model.parameters()).device.type
        self._autocast = autocast

    def step(self, *batch: Any) -> torch.Tensor:
        """Makes one step; returns the loss before it, without waiting for it."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocast):
            loss = self._loss(self.model, *batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        return loss.detach()


def make_fast() -> None:
    """Sets the options of the process for speed on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def loader(
    files: list[Path],
    labels: list[int],
    transform: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int,
    *,
    train: bool,
    workers: int,
) -> torch.utils.data.DataLoader:
    """Returns batches of uint8 [B, 3, H, W] and labels, to be normalised on the device.

    Args:
        files: images.
        labels: a class each.
        transform: torchvision's v2, uint8 [3, H, W] -> uint8 [3, size, size].
        batch_size: of a batch.
        train: shuffled, the last incomplete batch left out.
        workers: processes that decode and crop.
    """
    return torch.utils.data.DataLoader(
        _Images(files, labels, transform),
        batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class _Images(torch.utils.data.Dataset):
    def __init__(self, files, labels, transform):
        self._files, self._labels, self._transform = files, labels, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        torch_reference.torchvision()
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        with Image.open(self._files[index]) as image:
            pixels = pil_to_tensor(image.convert("RGB"))
        return self._transform(pixels), self._labels[index]


def batches(
    data: torch.utils.data.DataLoader, device: torch.device, epochs: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields every batch of every epoch, on the device; channels last on a GPU."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    for _ in range(epochs):
        for pixels, labels in data:
            pixels = pixels.to(device, non_blocking=True, memory_format=layout)
            yield pixels, labels.to(device, non_blocking=True)
