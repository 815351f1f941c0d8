"""Networks, corruption and steps of the paper in PyTorch, with timm's ConvNeXt.

Images are [B, 3, H, W]; entropies and masks [B, H/P, W/P].
"""

import torch
import torch.nn.functional as F
from torch import nn

from egmae_jax.augment import MEAN, STD
from tests import torch_reference

STRIDE = 32  # input pixels, along each side, per feature of the encoder's last stage


def create_classifier(name: str, num_classes: int, drop_path_rate: float = 0.0) -> nn.Module:
    """timm's model with random weights."""
    return torch_reference.timm().create_model(
        name, num_classes=num_classes, drop_path_rate=drop_path_rate
    )


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 with ImageNet's mean and standard deviation."""
    shape = (1, 3, 1, 1)
    mean = torch.tensor(MEAN, device=pixels.device).view(shape)
    std = torch.tensor(STD, device=pixels.device).view(shape)
    return (pixels.float() / 255 - mean) / std


def patch_entropy(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Shannon entropy in nats of every patch of uint8 images, averaged over the channels."""
    p = patch_size
    batch, channels, height, width = pixels.shape
    patches = pixels.reshape(batch, channels, height // p, p, width // p, p)
    values = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, p * p).long()
    counts = torch.zeros(len(values), 256, device=pixels.device)
    counts.scatter_add_(1, values, torch.ones_like(values, dtype=counts.dtype))
    probabilities = counts / (p * p)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(1)
    return entropy.reshape(batch, height // p, width // p, channels).mean(-1)


def to_pixels(patch_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """[B, H/P, W/P] -> [B, 1, H, W]."""
    wide = patch_values.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    return wide[:, None]


def entropy_noise(
    images: torch.Tensor, entropy: torch.Tensor, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds noise of variance H to every patch (paper equation 4); the images and the mask."""
    noise = torch.randn_like(images)
    return images + to_pixels(entropy.sqrt(), patch_size) * noise, (entropy > 0).float()


def masked_mse(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, patch_size: int
) -> torch.Tensor:
    """Mean squared error over the pixels of masked patches (paper equation 7)."""
    weight = to_pixels(mask, patch_size)
    total = (weight * (prediction.float() - target).square()).sum()
    return total / (weight.sum() * target.shape[1]).clamp(min=1)


class MaskedAutoencoder(nn.Module):
    """timm's ConvNeXt and a decoder of ConvNeXt blocks (paper section 3.3)."""

    def __init__(self, name: str, decoder_dim: int, decoder_depth: int):
        super().__init__()
        self.encoder = create_classifier(name, num_classes=0)
        self.encoder.head = nn.Identity()
        block = torch_reference.timm().models.convnext.ConvNeXtBlock
        self.embed = nn.Conv2d(self.encoder.num_features, decoder_dim, 1)
        self.mask_embedding = nn.Parameter(0.02 * torch.randn(decoder_dim))
        self.blocks = nn.Sequential(*(block(decoder_dim) for _ in range(decoder_depth)))
        self.predict = nn.Conv2d(decoder_dim, 3 * STRIDE**2, 1)

    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Corrupted images and their mask -> reconstructed images."""
        features = self.encoder.forward_features(images)
        # `adaptive` shares are exact where patches and cells divide each other.
        share = F.adaptive_avg_pool2d(mask[:, None], features.shape[-2:])
        x = self.embed(features) + share * self.mask_embedding[:, None, None]
        return F.pixel_shuffle(self.predict(self.blocks(x)), STRIDE)


def adamw(model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float):
    """Fused AdamW; only weights with more than one axis decay."""
    decays = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def pretrain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, pixels: torch.Tensor, patch_size: int
) -> torch.Tensor:
    """One step on uint8 crops; the loss."""
    target = normalize(pixels)
    corrupted, mask = entropy_noise(target, patch_entropy(pixels, patch_size), patch_size)
    return _update(masked_mse(model(corrupted, mask), target, mask, patch_size), optimizer)


def finetune_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, pixels: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """One step on uint8 crops; the loss."""
    return _update(F.cross_entropy(model(normalize(pixels)).float(), labels), optimizer)


def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def predict(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> class probabilities [B, num_classes]."""
    return model(normalize(pixels)).softmax(-1)
