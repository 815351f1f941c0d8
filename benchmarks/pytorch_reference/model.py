"""Networks, corruption and losses of the paper in PyTorch, with timm's ConvNeXt.

Images are [B, 3, H, W]; entropies and masks [B, H/P, W/P].
"""

import torch
import torch.nn.functional as F
from torch import nn

from egmae_jax.method.augment import MEAN, STD
from tests import torch_reference

STRIDE = 32  # input pixels, along each side, per feature of the encoder's last stage


def create_classifier(
    name: str, num_classes: int, drop_path_rate: float = 0.0, *, pretrained: bool = False
) -> nn.Module:
    """Creates timm's model, with random weights or those of its hub."""
    return torch_reference.timm().create_model(
        name, num_classes=num_classes, drop_path_rate=drop_path_rate, pretrained=pretrained
    )


def normalize(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Converts uint8 to floating point with ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(x, dtype=dtype, device=pixels.device) for x in (MEAN, STD))
    return (pixels.to(dtype) / 255 - mean[:, None, None]) / std[:, None, None]


def patch_entropy(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Returns the Shannon entropy of each patch of uint8 images in nats, averaged over channels."""
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
    """Repeats a value of each patch [B, H/P, W/P] for its pixels [B, 1, H, W]."""
    wide = patch_values.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    return wide[:, None]


def entropy_noise(
    images: torch.Tensor, entropy: torch.Tensor, noise: torch.Tensor, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds standard normal noise, scaled to each patch's variance H (paper equation 4).

    Returns:
        The corrupted images, and the mask of the patches that have any noise.
    """
    return images + to_pixels(entropy.sqrt(), patch_size) * noise, (entropy > 0).to(images.dtype)


def masked_mse(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, patch_size: int
) -> torch.Tensor:
    """Returns the mean squared error over the pixels of masked patches (paper equation 7)."""
    weight = to_pixels(mask, patch_size)
    total = (weight * (prediction.to(target.dtype) - target).square()).sum()
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
        """Reconstructs images from corrupted ones and the mask of their patches."""
        features = self.encoder.forward_features(images)
        # `adaptive` shares are exact where patches and cells divide each other.
        share = F.adaptive_avg_pool2d(mask[:, None], features.shape[-2:])
        x = self.embed(features) + share * self.mask_embedding[:, None, None]
        return F.pixel_shuffle(self.predict(self.blocks(x)), STRIDE)


def pretraining_loss(
    model: nn.Module, pixels: torch.Tensor, patch_size: int, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the loss of reconstructing corrupted uint8 crops; `noise` is drawn if None.

    Computed in the dtype of the noise, so that float64 noise and a float64 model give a reference
    for both frameworks.
    """
    target = normalize(pixels, torch.float32 if noise is None else noise.dtype)
    noise = torch.randn_like(target) if noise is None else noise
    entropy = patch_entropy(pixels, patch_size).to(target.dtype)
    corrupted, mask = entropy_noise(target, entropy, noise, patch_size)
    return masked_mse(model(corrupted, mask), target, mask, patch_size)


def classification_loss(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Returns the cross-entropy of uint8 crops (equations 8-10), in the parameters' dtype."""
    logits = model(normalize(pixels, next(model.parameters()).dtype))
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@torch.inference_mode()
def predict(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Returns class probabilities [B, num_classes] of images, uint8 [B, 3, H, W]."""
    return model(normalize(pixels)).float().softmax(-1)
