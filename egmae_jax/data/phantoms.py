"""Synthetic B-mode breast ultrasound: a demo data set that needs no download and no patient.

An image is made as a scanner makes it, in three steps.

1. *Tissue.* `anatomy` draws echogenicity (mean backscattered intensity, in dB relative to
   fibroglandular tissue): skin, subcutaneous fat with Cooper ligaments, gland, pectoral muscle and
   isoechoic fat lobules, the classic pitfall. All of it is blind to the class. `add_mass` then
   draws a mass by the BI-RADS descriptors of shape, orientation, margin, echo pattern and posterior
   features [1, 2]; the last follow from Beer-Lambert's law, as a mass that absorbs less than its
   surroundings brightens what lies below it and one that absorbs more casts a shadow.
2. *Speckle.* `envelope` sums the echoes of many unresolved scatterers. They are circular complex
   Gaussian, so the detected amplitude follows Rayleigh's law, whose mean is sqrt(pi / (4 - pi)) =
   1.91 standard deviations whatever the brightness [3]. A scanner averages N views from different
   angles (spatial compounding), which multiplies that ratio by sqrt(N) [4].
3. *Display.* The amplitude is compressed to a dynamic range in dB and shown as 8-bit grey.

The ranges of the classes overlap, and gain, dynamic range, attenuation and anatomy are drawn
without regard to the class, so that no single measurement gives it away. This is a data set to try
the software on; it says nothing about performance on patients.

- [1] D'Orsi et al., ACR BI-RADS Atlas, 5th ed., American College of Radiology, 2013.
- [2] Stavros et al., Solid breast nodules, Radiology 196:123-134, 1995.
- [3] Wagner et al., Statistics of speckle in ultrasound B-scans, IEEE Trans. Sonics Ultrason.
  30(3):156-163, 1983.
- [4] Burckhardt, Speckle in ultrasound B-mode scans, IEEE Trans. Sonics Ultrason. 25(1):1-6, 1978.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from egmae_jax.core.errors import UserError

CLASSES = ("benign", "malignant", "normal")
VERSION = 1  # to be raised with every change that alters an image: stale folders are then refused
DEPTH_MM = 40.0  # depth shown, whatever the image's height; pixels are square
PULSE_PX = (0.7, 1.4)  # standard deviation of the point-spread function, (axial, lateral)

# The masses, by BI-RADS descriptors; each value is drawn uniformly between two limits. A lobule of
# fat, which any class may have, is an oval as bright as fat that changes nothing below it.
MASS_KINDS = ("lobule", "benign", "malignant")
MASS_LIMITS = {
    "half_width_mm": ((1.5, 5.0), (3.0, 9.0), (3.0, 7.0)),
    "height_to_width": ((0.4, 0.8), (0.4, 0.9), (0.8, 1.5)),  # orientation: > 1 is not parallel
    "lobulation": ((0.0, 0.08), (0.0, 0.12), (0.05, 0.25)),  # undulation, relative to the radius
    "spiculation": ((0.0, 0.0), (0.0, 0.1), (0.1, 0.7)),  # longest spike, relative to the radius
    "blur": ((0.04, 0.15), (0.03, 0.15), (0.08, 0.3)),  # width of the margin, likewise
    "level_db": ((-12.0, -5.0), (-32.0, -12.0), (-34.0, -14.0)),  # echogenicity of the inside
    "capsule_db": ((0.0, 6.0), (0.0, 7.0), (0.0, 1.0)),  # thin bright rim
    "halo_db": ((0.0, 0.0), (0.0, 2.0), (1.0, 7.0)),  # broad bright band around the mass
    "absorption_db_per_mm": ((-0.1, 0.1), (-1.2, 0.2), (-0.2, 1.5)),  # beyond the surroundings'
}


def envelope(rng: np.random.Generator, echogenicity: np.ndarray) -> np.ndarray:
    """Detected echo amplitude of fully developed speckle.

    Args:
        rng: source of randomness.
        echogenicity: mean intensity (linear, not dB), float [H, W].

    Returns:
        float [H, W], whose square is the echogenicity on average over a homogeneous region.
    """
    pads = [(int(4 * sigma + 1),) * 2 for sigma in PULSE_PX]  # keeps border effects outside
    weight = np.sqrt(np.pad(echogenicity, pads, mode="edge") / 2)  # half to each quadrature
    field = weight * rng.standard_normal((*weight.shape, 2)).view(complex)[..., 0]
    for axis, (sigma, (reach, _)) in enumerate(zip(PULSE_PX, pads, strict=True)):
        # A Gaussian is as good as band-limited; its unit energy keeps the mean intensity.
        pulse = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        field = ndimage.convolve1d(field, pulse / np.linalg.norm(pulse), axis, mode="constant")
    (top, _), (left, _) = pads
    return np.abs(field[top:-top, left:-left])


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float | tuple[float, float]
) -> np.ndarray:
    """Periodic Gaussian random field, mean 0, variance 1, smoothed by a Gaussian of `sigma` px."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    noise = np.fft.irfft2(ndimage.fourier_gaussian(spectrum, sigma, n=shape[-1]), shape)
    return (noise - noise.mean()) / noise.std()


def anatomy(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Echogenicity of a breast without a mass, dB, float [height, width]; row 0 is the skin."""
    mm = height / DEPTH_MM
    depth = np.arange(height)[:, None] / mm

    def texture(axial_mm: float, lateral_mm: float) -> np.ndarray:
        return smooth_noise(rng, (height, width), (axial_mm * mm, lateral_mm * mm))

    def below(interface_mm: float) -> np.ndarray:
        return np.clip((depth - interface_mm) * 2, 0, 1)

    def sheets(field: np.ndarray, thickness: float) -> np.ndarray:
        # The zero crossings of a random field are thin curved sheets, as ligaments and ducts are.
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
    glint = np.clip(texture(9, 4) + 0.5, 0, 1)  # a fascia is bright where it faces the beam
    for interface in (gland_top, muscle_top):
        tissue += rng.uniform(4, 14) * glint * np.exp(-(((depth - interface) / 0.4) ** 2))

    # Layers of one depth are bent together, as a probe presses them; then the skin goes on top.
    bend = rng.uniform(0.5, 1.5) * texture(6, 6)
    bend += rng.uniform(-0.12, 0.12) * (np.arange(width) - width / 2) / mm
    rows = np.arange(height)[:, None] + bend * mm * np.clip(depth / 6, 0, 1)
    columns = np.broadcast_to(np.arange(width), rows.shape)
    tissue = ndimage.map_coordinates(tissue, [rows, columns], order=1, mode="nearest")
    skin = below(rng.uniform(1, 2.5))
    tissue = skin * tissue + (1 - skin) * rng.uniform(-6, 0)
    tissue += 12 * np.exp(-((depth / 0.6) ** 2))

    # Attenuation that the time-gain compensation missed, and shadows of poor contact or ligaments.
    shadow = np.clip(texture(30, rng.uniform(1.5, 5)), 0, None)
    onset = np.clip(depth - rng.uniform(2, 15), 0, None)
    tissue -= onset * rng.uniform(0, 0.5) * shadow
    return tissue - rng.uniform(0, 35) * (depth / DEPTH_MM) ** rng.uniform(1, 3)


def add_mass(rng: np.random.Generator, tissue: np.ndarray, kind: str) -> np.ndarray:
    """Draws a mass of one of MASS_KINDS at a random place into `tissue`, dB, float [H, W]."""
    column = MASS_KINDS.index(kind)
    mass = {name: rng.uniform(*limits[column]) for name, limits in MASS_LIMITS.items()}
    height, width = tissue.shape
    mm = height / DEPTH_MM
    half_width = mass["half_width_mm"] * mm
    half_height = half_width * mass["height_to_width"]
    z = np.arange(height)[:, None] - rng.uniform(0.2, 0.6) * height
    x = np.arange(width) - rng.uniform(0.15, 0.85) * width
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
    path_mm = ndimage.gaussian_filter1d(np.cumsum(inside, axis=0) / mm, mm)  # beams have a width
    return tissue - mass["absorption_db_per_mm"] * path_mm


def phantom(rng: np.random.Generator, label: str, height: int, width: int) -> np.ndarray:
    """Draws one image of a class of CLASSES, uint8 [height, width]."""
    tissue = anatomy(rng, height, width)
    for kind in ["lobule"] * int(rng.integers(3)) + [label] * (label != "normal"):
        tissue = add_mass(rng, tissue, kind)
    echogenicity = 10 ** (tissue / 10)
    views = [envelope(rng, echogenicity) for _ in range(rng.integers(3, 7))]
    level = 20 * np.log10(np.mean(views, axis=0) + 1e-9)  # the constant only avoids log(0)
    dynamic_range = rng.uniform(50, 65)
    white = rng.uniform(18, 30)  # the level in dB that is shown as white: the operator's gain
    return np.clip(255 * (1 + (level - white) / dynamic_range), 0, 255).round().astype(np.uint8)


def write(
    folder: Path, *, images_per_class: int, seed: int, height: int = 128, width: int = 160
) -> None:
    """Writes `folder/{class}/{class} (k).png`, k from 1, grey: the names and layout of BUSI.

    An image depends on `seed`, its class, k, `height` and `width` alone, so a larger
    `images_per_class` adds images and changes none. The files are the same on every run (another
    version of NumPy or Pillow may change them). The folder appears when it is whole; one that was
    written with the same parameters is left as it is.

    Raises:
        UserError: the folder holds anything else.
    """
    wanted = {"version": VERSION, "images_per_class": images_per_class, "seed": seed}
    parameters = json.dumps(wanted | {"height": height, "width": width})
    if folder.exists() and any(folder.iterdir()):
        record = folder / "phantoms.json"
        written = record.read_text() if record.exists() else None
        if written != parameters:
            holds = f"phantoms of {written}" if written else "other files"
            raise UserError(
                f"{folder} (data.dir) holds {holds}; phantoms of {parameters} are to be written: "
                "remove the folder or name another."
            )
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        for index, label in enumerate(CLASSES):
            (whole / label).mkdir(parents=True)
            for k in range(1, images_per_class + 1):
                image = phantom(np.random.default_rng([seed, index, k]), label, height, width)
                Image.fromarray(image).save(whole / label / f"{label} ({k}).png")
        (whole / "phantoms.json").write_text(parameters)
        try:
            whole.rename(folder)
        except OSError:
            if not (folder / "phantoms.json").exists():  # else another process wrote it meanwhile
                raise
