"""Finds near-duplicates, so that validation and test contain no copy of a training image.

Two images are duplicates if one of three rules holds:

1. exact: their RGB pixels are identical (`pixel_hash`), whatever their file names and formats;
2. near: their 32x32 grey thumbnails (`descriptor`) correlate above .99 and, inside the black frame,
   the square roots of the thumbnails correlate above .96;
3. mirrored: rule 2 holds after one of the two is flipped left to right.

The frame is the dark area that touches the border. A frame that all images share (endoscope,
microscope, slice on black) is enough to raise the correlation of whole thumbnails above .99, so the
areas inside the frame have to correlate, too. The square root compensates for changes of brightness
and gamma.

Number of pairs, measured by `pytest tests/data/test_duplicates.py -s`::

                    images  r > .99  rule 1, 2  rule 3  largest group
  BUSI ultrasound      780      133        133       0              4
  ISIC 2018          10015       89         89       0              3
  chest X-ray         1124        2          2       0              2
  brain MRI           7019     4226       4171    5282             38

BUSI: 7 pairs have different classes. ISIC: 88 pairs show one lesion according to the published
`lesion_id`, and the 89th is one photograph with changed colours. Chest X-ray: one pair is of one
patient according to the file names, the other by visual inspection. Brain MRI: there are 300 groups
of identical pixels, 189 of them in several folders; of the 1311 images in Testing, 983 have a copy
in Training (484 without rule 3).

The comparison inside the frame rejects 10 pairs of neighbouring brain slices (r inside at most .81)
and misses 80 pairs of copies with strongly changed contrast. With an artificial round aperture on
5008 ISIC images, r > .99 alone joins 2681 of them into one group, and the three rules 16.

Shifted or cropped copies are detected only as long as r > .99. A threshold of .97 detects 66 more
in BUSI, but then 22 of 154 pairs in ISIC 2018 are of different lesions.
"""

import hashlib
import itertools
from collections.abc import Hashable, Sequence

import numpy as np
import PIL.Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_SIZE = 32  # side of the thumbnail in pixels
_INSIDE_THRESHOLD = 0.96
_DARK = 16  # grey levels up to this one may be frame, because black is noisy in JPEG files
_FRAME_MARGIN = 2  # thumbnail pixels by which bicubic resizing blurs the edge of a frame
_ROWS = 512  # images per matrix product, which gives 20 MB of correlations for 10,000 images
_PAIRS = 1024  # pairs per batch of the comparison inside the frame, with arrays of 4 MB


def descriptor(image: PIL.Image.Image) -> np.ndarray:
    """Returns the grey thumbnail that `duplicate_pairs` compares, uint8 [32, 32].

    The aspect ratio is not kept.

    Args:
        image: image with 8 bits per channel, as returned by `images.decode`.
    """
    size, bicubic = (_SIZE, _SIZE), PIL.Image.Resampling.BICUBIC
    # With the gap, Pillow averages large images in blocks first, which is three times as fast and
    # changes the result by at most two grey levels.
    return np.asarray(image.convert("L").resize(size, bicubic, reducing_gap=3.0))


def pixel_hash(image: PIL.Image.Image) -> str:
    """Returns a hex digest of the size and RGB pixels of an image, independent of its file format.

    Args:
        image: image with 8 bits per channel, as returned by `images.decode`.
    """
    width, height = image.size
    digest = hashlib.blake2b(b"%dx%d:" % (width, height), digest_size=20)  # faster than SHA-256
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def duplicate_pairs(
    descriptors: np.ndarray, pixel_hashes: Sequence[str], *, threshold: float = 0.99
) -> np.ndarray:
    """Finds all pairs of images that are exact, near or mirrored duplicates.

    All pairs are compared: the time grows with N², and the memory by six kilobytes per image.
    10,000 images take 2 s on two cores, and the comparison inside the frame 0.5 s more for 100,000
    pairs above the threshold.

    Args:
        descriptors: uint8 [N, 32, 32] from `descriptor`. A constant thumbnail has no correlation,
            so its image can be part of exact pairs only.
        pixel_hashes: N strings from `pixel_hash`.
        threshold: correlation of whole thumbnails that near-duplicates must exceed, in (0, 1).

    Returns:
        int64 [M, 2], image indices i < j of each pair, sorted and without repetition.
    """
    exact = [pair for group in members(pixel_hashes) for pair in itertools.combinations(group, 2)]
    accepted = [np.array(exact, np.int64).reshape(-1, 2)]
    standardised = _standardise(descriptors)
    inside = _inside_frame(descriptors)
    for mirrored in (False, True):  # whether the first image of each pair is flipped

        def flat(x: np.ndarray, mirrored: bool = mirrored) -> np.ndarray:
            return (x[..., ::-1] if mirrored else x).reshape(len(x), -1)

        for start in range(0, len(descriptors), _ROWS):
            rows, columns = standardised[start : start + _ROWS], standardised[start:]
            correlation = flat(rows) @ columns.reshape(len(columns), -1).T
            candidates = start + np.argwhere(np.triu(correlation > threshold, k=1))
            for k in range(0, len(candidates), _PAIRS):
                pairs = candidates[k : k + _PAIRS]
                i, j = pairs.T
                r = _masked_correlation(
                    np.sqrt(flat(descriptors[i]), dtype=np.float32),
                    np.sqrt(descriptors[j].reshape(len(j), -1), dtype=np.float32),
                    flat(inside[i]) & inside[j].reshape(len(j), -1),
                )
                accepted.append(pairs[r > _INSIDE_THRESHOLD])
    return np.unique(np.concatenate(accepted), axis=0)


def group_ids(
    num_images: int,
    pairs: np.ndarray,
    known_groups: Sequence[Hashable | None] | None = None,
) -> np.ndarray:
    """Numbers the groups of images that a split must keep in one part.

    Groups are connected components: if A is linked to B and B to C, then A, B and C are one group.

    Args:
        num_images: number of images N.
        pairs: int [M, 2] from `duplicate_pairs`, which links images.
        known_groups: patient or lesion of each image, None if unknown; images with equal values are
            linked, too. None: unknown for all images.

    Returns:
        int64 [N], group of each image, numbered in order of first appearance; an image without
        links is a group of its own.
    """
    known_groups = known_groups or [None] * num_images
    first: dict[Hashable, int] = {}
    known = [(first.setdefault(g, n), n) for n, g in enumerate(known_groups) if g is not None]
    edges = np.concatenate([pairs, np.array(known, np.int64).reshape(-1, 2)])
    graph = coo_array((np.ones(len(edges), bool), edges.T), shape=(num_images, num_images))
    _, labels = connected_components(graph, directed=False)
    # SciPy does not document the order of its labels, and saved splits depend on the numbers.
    _, first_image, component = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_image))[component]


def members(keys: Sequence[Hashable] | np.ndarray) -> list[np.ndarray]:
    """Returns the indices of each key that occurs more than once, sorted by key, then by index."""
    keys = np.asarray(keys)
    order = np.argsort(keys, kind="stable")
    _, starts = np.unique(keys[order], return_index=True)
    return [indices for indices in np.split(order, starts[1:]) if len(indices) > 1]


def _standardise(descriptors: np.ndarray) -> np.ndarray:
    """Standardises thumbnails so that their dot products are Pearson correlations.

    Args:
        descriptors: [N, 32, 32].

    Returns:
        float32 [N, 32, 32] of mean 0 and norm 1, or all zeros for a constant thumbnail.
    """
    x = descriptors.astype(np.float32)
    x -= x.mean(axis=(1, 2), keepdims=True)
    norm = np.linalg.norm(x, axis=(1, 2), keepdims=True)
    return np.divide(x, norm, out=x, where=norm > 0)


def _inside_frame(descriptors: np.ndarray) -> np.ndarray:
    """Finds the area inside the frame, bool [N, 32, 32].

    The frame is the dark area that touches the border, and a margin of 2 pixels around it.
    """
    neighbours = np.ones((1, 3, 3), bool)  # includes diagonals, but not the neighbouring images
    dark = descriptors <= _DARK
    border = np.ones(dark.shape[1:], bool)
    border[1:-1, 1:-1] = False
    frame = ndimage.binary_propagation(dark & border, neighbours, mask=dark)
    inside = ~ndimage.binary_dilation(frame, neighbours, iterations=_FRAME_MARGIN)
    # An entirely dark image is compared as a whole.
    return inside | ~inside.any(axis=(1, 2), keepdims=True)


def _masked_correlation(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Computes the Pearson correlation of each row of `x` and `y` where `mask` is True.

    Args:
        x: float32 [B, K].
        y: float32 [B, K].
        mask: bool [B, K].

    Returns:
        float32 [B]; 0 if a row of `x` or `y` is constant inside the mask.
    """
    mask = mask.astype(np.float32)
    count = np.maximum(mask.sum(axis=1, keepdims=True), 1)

    def centred(z: np.ndarray) -> np.ndarray:
        z = z * mask
        return z - z.sum(axis=1, keepdims=True) / count * mask

    def dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.einsum("bk,bk->b", u, v)

    x, y = centred(x), centred(y)
    norm = np.sqrt(dot(x, x) * dot(y, y))
    # A difference of one grey level in one pixel gives a norm of about 1e-3; less is rounding.
    return np.divide(dot(x, y), norm, out=np.zeros_like(norm), where=norm > 1e-4)
