"""Synthetic B-mode breast ultrasound: a demo data set that needs no download and no patients.

An image is generated in three steps, as in a scanner.

1. *Tissue.* `anatomy` draws echogenicity (mean backscattered intensity, in dB relative to
   fibroglandular tissue): skin, subcutaneous fat with Cooper ligaments, gland, pectoral muscle and
   isoechoic fat lobules, a classic pitfall. All of it is independent of the class. `add_mass` then
   draws a mass by the BI-RADS descriptors of shape, orientation, margin, echo pattern and posterior
   features [1, 2]. The posterior features follow from the Beer-Lambert law: the area below a mass
   is brighter if the mass absorbs less than its surroundings, and shadowed if it absorbs more.
2. *Speckle.* `envelope` sums the echoes of many unresolved scatterers. They are circular complex
   Gaussian, so the detected amplitude is Rayleigh-distributed, with a mean of sqrt(pi / (4 - pi)) =
   1.91 standard deviations at any brightness [3]. A scanner averages N views from different angles
   (spatial compounding), which multiplies that ratio by sqrt(N) [4].
3. *Display.* The amplitude is compressed to a dynamic range in dB and stored as 8-bit grey. Outside
   the field of view, which is wider at depth as that of a curved probe, the image is black.

The ranges of the classes overlap, and gain, dynamic range, attenuation, field of view and anatomy
are independent of the class, so that no single measurement identifies it. The data set is meant for
trying out the software; results on it say nothing about performance on patients.

- [1] D'Orsi et al., ACR BI-RADS Atlas, 5th ed., American College of Radiology, 2013.
- [2] Stavros et al., Solid breast nodules, Radiology 196:123-134, 1995.
- [3] Wagner et al., Statistics of speckle in ultrasound B-scans, IEEE Trans. Sonics Ultrason.
  30(3):156-163, 1983.
- [4] Burckhardt, Speckle in ultrasound B-mode scans, IEEE Trans. Sonics Ultrason. 25(1):1-6, 1978.
"""

import collections
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from egmae_jax.core.errors import UserError
from egmae_jax.data.threads import read_ahead

logger = logging.getLogger(__name__)

CLASSES = ("benign", "malignant", "normal")
VERSION = 2  # increase it with every change of the images, so that old folders are rejected
DEPTH_MM = 40.0  # depth of the image, for any height in pixels; pixels are square
PULSE_PX = (0.7, 1.4)  # standard deviation of the point-spread function, (axial, lateral)

# BI-RADS descriptors of each kind of mass; each value is drawn uniformly between two limits. A
# lobule of fat, which any class may have, is as bright as fat and has no posterior features.
MASS_KINDS = ("lobule", "benign", "malignant")
MASS_LIMITS = {
    "half_width_mm": ((1.5, 5.0), (4.0, 9.5), (3.5, 7.5)),
    "height_to_width": ((0.4, 0.8), (0.4, 0.9), (0.8, 1.5)),  # orientation: > 1 is not parallel
    "lobulation": ((0.0, 0.08), (0.0, 0.12), (0.05, 0.25)),  # undulation, relative to the radius
    "spiculation": ((0.0, 0.0), (0.0, 0.1), (0.1, 0.7)),  # longest spike, relative to the radius
    "blur": ((0.04, 0.15), (0.03, 0.15), (0.08, 0.3)),  # width of the margin, relative to radius
    "level_db": ((-12.0, -5.0), (-34.0, -18.0), (-36.0, -18.0)),  # echogenicity of the inside
    "capsule_db": ((0.0, 6.0), (0.0, 7.0), (0.0, 1.0)),  # thin bright rim
    "halo_db": ((0.0, 0.0), (0.0, 2.0), (1.0, 7.0)),  # broad bright band around the mass
    "absorption_db_per_mm": ((-0.1, 0.1), (-1.5, -0.3), (0.3, 1.8)),  # minus the surroundings'
}


def envelope(rng: np.random.Generator, echogenicity: np.ndarray) -> np.ndarray:
    """Draws the detected echo amplitude of fully developed speckle.

    Args:
        rng: random number generator.
        echogenicity: mean intensity (linear, not dB), float [H, W].

    Returns:
        Amplitude, float [H, W]; its mean square over a homogeneous region is the echogenicity.
    """
    pads = [(int(4 * sigma + 1),) * 2 for sigma in PULSE_PX]  # for border effects, cropped below
    weight = np.sqrt(np.pad(echogenicity, pads, mode="edge") / 2)  # half for each quadrature
    field = weight * rng.standard_normal((*weight.shape, 2)).view(complex)[..., 0]
    for axis, (sigma, (reach, _)) in enumerate(zip(PULSE_PX, pads, strict=True)):
        # A Gaussian is practically band-limited; its unit energy keeps the mean intensity.
        pulse = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        field = ndimage.convolve1d(field, pulse / np.linalg.norm(pulse), axis, mode="constant")
    (top, _), (left, _) = pads
    return np.abs(field[top:-top, left:-left])


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float | tuple[float, float]
) -> np.ndarray:
    """Draws a periodic Gaussian random field of mean 0 and variance 1.

    Args:
        rng: random number generator.
        shape: height and width of the field in pixels.
        sigma: standard deviation in pixels of the Gaussian that smooths it, or one for each axis.

    Returns:
        float [height, width].
    """
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    noise = np.fft.irfft2(ndimage.fourier_gaussian(spectrum, sigma, n=shape[-1]), shape)
    return (noise - noise.mean()) / noise.std()


def anatomy(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws the echogenicity in dB of a breast without a mass, float [height, width].

    Row 0 is the skin.
    """
    mm = height / DEPTH_MM
    depth = np.arange(height)[:, None] / mm

    def texture(axial_mm: float, lateral_mm: float) -> np.ndarray:
        return smooth_noise(rng, (height, width), (axial_mm * mm, lateral_mm * mm))

    def below(interface_mm: float) -> np.ndarray:
        return np.clip((depth - interface_mm) * 2, 0, 1)

    def sheets(field: np.ndarray, thickness: float) -> np.ndarray:
        # Zero crossings of a random field are thin curved sheets, similar to ligaments and ducts.
        return np.exp(-((field / thickness) ** 2))

    fat = rng.uniform(-13, -7) + texture(0.5, 1) + 16 * sheets(texture(1.5, 12), 0.08)
    fine, ducts = texture(0.4, 2.5), sheets(texture(0.8, 5), 0.1)
    streaks = rng.uniform(1, 5) * fine + rng.uniform(1, 4) * texture(2, 4)
    streaks += rng.uniform(8, 20) * ducts - 4
    lobules = np.clip(3 * texture(1, 2) - rng.uniform(2.5, 8), 0, 1)
    gland = streaks + lobules * (rng.uniform(-16, -8) - streaks)
    muscle = rng.uniform(-16, -6) + 2 * fine + rng.uniform(8, 20) * sheets(texture(0.6, 7), 0.12)

    gland_top, muscle_top = rng.uniform(4, 14), rng.uniform(20, 36)
    tissue = fat + below(gland_top) * (gland - fat)
    tissue += below(muscle_top) * (muscle - tissue)
    glint = np.clip(texture(9, 4) + 0.5, 0, 1)  # fascia is bright where it faces the beam
    for interface in (gland_top, muscle_top):
        tissue += rng.uniform(4, 14) * glint * np.exp(-(((depth - interface) / 0.4) ** 2))

    # All layers are bent together, as by the pressure of a probe, and then covered by the skin.
    bend = rng.uniform(0.5, 1.5) * texture(6, 6)
    bend += rng.uniform(-0.12, 0.12) * (np.arange(width) - width / 2) / mm
    rows = np.arange(height)[:, None] + bend * mm * np.clip(depth / 6, 0, 1)
    columns = np.broadcast_to(np.arange(width), rows.shape)
    tissue = ndimage.map_coordinates(tissue, [rows, columns], order=1, mode="nearest")
    skin = below(rng.uniform(1, 2.5))
    tissue = skin * tissue + (1 - skin) * rng.uniform(-6, 0)
    tissue += 12 * np.exp(-((depth / 0.6) ** 2))

    # Shadows of poor contact or ligaments, and residual attenuation after time-gain compensation.
    shadow = np.clip(texture(30, rng.uniform(1.5, 5)), 0, None)
    onset = np.clip(depth - rng.uniform(2, 15), 0, None)
    tissue -= onset * rng.uniform(0, 0.5) * shadow
    return tissue - rng.uniform(0, 35) * (depth / DEPTH_MM) ** rng.uniform(1, 3)


def field_of_view(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws the part of the image that the probe sees, all of it or a trapezoid.

    Returns:
        bool [height, width].
    """
    if rng.random() < 0.4:
        return np.ones((height, width), bool)
    half_width = rng.uniform(0.26, 0.38) * width + rng.uniform(0, 0.35) * np.arange(height)
    return np.abs(np.arange(width) - width / 2) < half_width[:, None]


def add_mass(
    rng: np.random.Generator, tissue: np.ndarray, kind: str, visible: np.ndarray
) -> np.ndarray:
    """Returns tissue with a mass at a random position, in dB, float [H, W].

    Args:
        rng: random number generator.
        tissue: echogenicity in dB, float [H, W].
        kind: kind of the mass, one of MASS_KINDS.
        visible: the field of view, bool [H, W], which contains the centre of the mass.
    """
    index = MASS_KINDS.index(kind)
    mass = {name: rng.uniform(*limits[index]) for name, limits in MASS_LIMITS.items()}
    height, width = tissue.shape
    mm = height / DEPTH_MM
    half_width = mass["half_width_mm"] * mm
    half_height = half_width * mass["height_to_width"]
    inner = np.zeros_like(visible)
    inner[int(0.2 * height) : int(0.6 * height), int(0.15 * width) : int(0.85 * width)] = True
    row, column = rng.choice(np.argwhere(inner & visible))
    z = np.arange(height)[:, None] - row
    x = np.arange(width) - column
    tilt = rng.uniform(-0.3, 0.3)
    u = (np.cos(tilt) * x + np.sin(tilt) * z) / half_width
    v = (np.cos(tilt) * z - np.sin(tilt) * x) / half_height

    angle = np.linspace(-np.pi, np.pi, 361)
    outline = np.ones_like(angle)  # radius by angle, relative to the oval
    for order in range(2, 6):
        wave = np.cos(order * angle + rng.uniform(0, 2 * np.pi))
        outline += mass["lobulation"] * rng.normal() * wave / 2
    for direction in rng.uniform(0, 2 * np.pi, size=rng.integers(6, 14)):
        spike = np.exp(rng.uniform(20, 120) * (np.cos(angle - direction) - 1))
        outline += mass["spiculation"] * rng.uniform() * spike
    radius = np.interp(np.arctan2(v, u), angle, np.maximum(outline, 0.3))
    gap = np.hypot(u, v) / radius - 1  # 0 on the margin, -1 at the centre
    inside = 0.5 - 0.5 * np.tanh(gap / mass["blur"])

    echo = mass["level_db"] + rng.uniform(0.5, 3) * smooth_noise(rng, tissue.shape, 0.7 * mm)
    tissue = tissue + inside * (echo - tissue)
    tissue += mass["capsule_db"] * np.exp(-((gap / 0.1) ** 2))
    tissue += mass["halo_db"] * np.exp(-(((gap - 0.35) / 0.3) ** 2))
    path_mm = ndimage.gaussian_filter1d(np.cumsum(inside, axis=0) / mm, mm)  # beam 1 mm wide
    return tissue - mass["absorption_db_per_mm"] * path_mm


def phantom(rng: np.random.Generator, label: str, height: int, width: int) -> np.ndarray:
    """Draws one image of the class `label`, one of CLASSES, as uint8 [height, width]."""
    tissue, visible = anatomy(rng, height, width), field_of_view(rng, height, width)
    for kind in ["lobule"] * int(rng.integers(4)) + [label] * (label != "normal"):
        tissue = add_mass(rng, tissue, kind, visible)
    echogenicity = 10 ** (tissue / 10)
    views = [envelope(rng, echogenicity) for _ in range(rng.integers(1, 3))]
    level = 20 * np.log10(np.mean(views, axis=0) + 1e-9)  # the constant avoids log(0)
    dynamic_range = rng.uniform(45, 80)
    white = rng.uniform(12, 36)  # level in dB that is displayed as white, set by the gain
    grey = np.clip(255 * (1 + (level - white) / dynamic_range), 0, 255)
    return np.where(visible, grey, 0).round().astype(np.uint8)


def write(
    folder: Path, *, images_per_class: int, seed: int, height: int = 128, width: int = 160
) -> None:
    """Writes grey images `folder/{class}/{class} (k).png`, with the names and layout of BUSI.

    Each image depends only on `seed`, its class, its number k, `height` and `width`, so a larger
    `images_per_class` adds images and changes none. The images are reproducible with one version of
    NumPy and Pillow. The folder appears when it is complete. If it already contains images of the
    same parameters, nothing is written.

    Args:
        folder: folder to create.
        images_per_class: number of images of each class; k counts from 1.
        seed: seed of the random numbers.
        height: height of the images in pixels.
        width: width of the images in pixels.

    Raises:
        UserError: the folder contains anything else.
    """
    basic = {"version": VERSION, "images_per_class": images_per_class, "seed": seed}
    parameters = json.dumps(basic | {"height": height, "width": width})
    if folder.exists() and any(folder.iterdir()):
        record = folder / "phantoms.json"
        existing = record.read_text() if record.exists() else None
        if existing != parameters:
            content = f"phantoms with parameters {existing}" if existing else "other files"
            raise UserError(
                f"{folder} (data.dir) contains {content}, but phantoms with parameters "
                f"{parameters} were requested: remove the folder or choose another."
            )
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    count = len(CLASSES) * images_per_class
    logger.info("Generating %d phantoms in %s", count, folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        target = Path(scratch) / folder.name
        for label in CLASSES:
            (target / label).mkdir(parents=True)

        def draw(number: int) -> Path:
            index, k = divmod(number, images_per_class)
            label, rng = CLASSES[index], np.random.default_rng([seed, index, k + 1])
            path = target / label / f"{label} ({k + 1}).png"
            Image.fromarray(phantom(rng, label, height, width)).save(path)
            return path

        collections.deque(read_ahead(draw, 0, count), maxlen=0)
        (target / "phantoms.json").write_text(parameters)
        try:
            target.rename(folder)
        except OSError:
            if not (folder / "phantoms.json").exists():  # otherwise another process has written it
                raise
