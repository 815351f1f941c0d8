"""Find copies of one image, so that no copy of a training image is validated or tested on.

Two images are duplicates when one of three rules holds:

1. exact: their RGB pixels are identical (`pixel_hash`), whatever file name and encoding;
2. near: their 32x32 grey thumbnails (`descriptor`) correlate above .99 and, inside the black frame,
   the square roots of the thumbnails correlate above .96;
3. mirrored: rule 2 holds after one of the two is flipped left to right.

The frame is the dark area that touches the border. A frame common to all images (endoscope,
microscope, slice on black) lifts the correlation of whole thumbnails above .99 by itself, so what
is inside has to agree as well. The square root makes up for changed brightness and gamma.

Pairs found, measured by `pytest tests/data/test_duplicates.py -s`::

                    images  r > .99  rule 1, 2  rule 3  largest group
  BUSI ultrasound      780      133        133       0              4
  ISIC 2018          10015       89         89       0              3
  chest X-ray         1124        2          2       0              2
  brain MRI           7019     4226       4171    5282             38

BUSI: 7 pairs join two classes. ISIC: 88 pairs are of one lesion by the published `lesion_id`, and
the 89th is one photograph with its colours changed. Chest X-ray: one pair is of one patient by its
name, the other by eye. Brain MRI: 300 groups of identical pixels, 189 of which span folders; of the
1311 images in Testing, 983 have a copy in Training (484 without rule 3).

The comparison inside the frame keeps 10 pairs of neighbouring brain slices apart (r inside at most
.81) and costs 80 pairs of copies with strongly changed contrast. Behind an artificial round
aperture, r > .99 alone chains 2681 of 5008 ISIC images into one group; the three rules chain 16.

Copies that were shifted or cropped are found only while r > .99. A threshold of .97 finds 66 more
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
_DARK = 16  # grey levels of 255: black in JPEG files is noisy
_FRAME_MARGIN = 2  # thumbnail pixels: how far bicubic resizing smears the edge of a frame
_ROWS = 512  # images per matrix product: 20 MB of correlations for 10,000 images
_PAIRS = 1024  # pairs per batch inside the frame: 4 MB an array


def descriptor(image: PIL.Image.Image) -> np.ndarray:
    """Grey thumbnail that `duplicate_pairs` compares: uint8 [32, 32], aspect ratio not kept.

    Args:
        image: 8 bits a channel, as `images.decode` returns it.
    """
    size, bicubic = (_SIZE, _SIZE), PIL.Image.Resampling.BICUBIC
    # The gap lets Pillow average large images in blocks first: thrice as fast, two grey levels off.
    return np.asarray(image.convert("L").resize(size, bicubic, reducing_gap=3.0))


def pixel_hash(image: PIL.Image.Image) -> str:
    """Digest, in hex, of size and RGB pixels: the same however an image is stored.

    Args:
        image: 8 bits a channel, as `images.decode` returns it.
    """
    width, height = image.size
    digest = hashlib.blake2b(b"%dx%d:" % (width, height), digest_size=20)  # faster than SHA-256
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def duplicate_pairs(
    descriptors: np.ndarray, pixel_hashes: Sequence[str], *, threshold: float = 0.99
) -> np.ndarray:
    """Finds all pairs of images that are exact, near or mirrored duplicates, by the three rules.

    Every pair is compared: time grows with N², memory by six kilobytes an image. 10,000 images
    take 2 s on two cores, and 100,000 pairs above the threshold 0.5 s more, for the comparison
    inside the frame.

    Args:
        descriptors: uint8 [N, 32, 32] from `descriptor`. One that is constant has no correlation
            and takes part in exact pairs only.
        pixel_hashes: N strings from `pixel_hash`.
        threshold: lowest correlation of whole thumbnails, between 0 and 1, exclusive.

    Returns:
        int64 [M, 2] of image indices with i < j in each row, rows sorted and unique.
    """
    exact = [pair for same in members(pixel_hashes) for pair in itertools.combinations(same, 2)]
    accepted = [np.array(exact, np.int64).reshape(-1, 2)]
    unit = _unit(descriptors)
    inside = _inside_frame(descriptors)
    for mirrored in (False, True):  # the first image of each pair

        def flat(x: np.ndarray, mirrored: bool = mirrored) -> np.ndarray:
            return (x[..., ::-1] if mirrored else x).reshape(len(x), -1)

        for start in range(0, len(descriptors), _ROWS):
            rows, columns = unit[start : start + _ROWS], unit[start:]
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
    """Numbers the groups of images that a split must keep whole.

    Args:
        num_images: N.
        pairs: int [M, 2] from `duplicate_pairs`. Groups are the connected components: A with B and
            B with C puts A, B and C together.
        known_groups: patient or lesion of each image, None where unknown; images of one are joined
            too. None: all are unknown.

    Returns:
        int64 [N], group of each image, numbered in order of first appearance; an image without
        duplicate is a group of its own.
    """
    known_groups = known_groups or [None] * num_images
    first: dict[Hashable, int] = {}
    known = [(first.setdefault(g, n), n) for n, g in enumerate(known_groups) if g is not None]
    edges = np.concatenate([pairs, np.array(known, np.int64).reshape(-1, 2)])
    graph = coo_array((np.ones(len(edges), bool), edges.T), shape=(num_images, num_images))
    _, labels = connected_components(graph, directed=False)
    # SciPy does not document the order of its labels, and stored splits depend on it.
    _, first_image, component = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_image))[component]


def members(keys: Sequence[Hashable] | np.ndarray) -> list[np.ndarray]:
    """Indices of each key that two or more images share, in ascending order."""
    keys = np.asarray(keys)
    order = np.argsort(keys, kind="stable")
    _, starts = np.unique(keys[order], return_index=True)
    return [indices for indices in np.split(order, starts[1:]) if len(indices) > 1]


def _unit(descriptors: np.ndarray) -> np.ndarray:
    """float32 [N, 32, 32] whose dot products are Pearson correlations; zeros for a constant one."""
    x = descriptors.astype(np.float32)
    x -= x.mean(axis=(1, 2), keepdims=True)
    norm = np.linalg.norm(x, axis=(1, 2), keepdims=True)
    return np.divide(x, norm, out=x, where=norm > 0)


def _inside_frame(descriptors: np.ndarray) -> np.ndarray:
    """bool [N, 32, 32]: False in dark areas that touch the border, and up to 2 pixels from them."""
    neighbours = np.ones((1, 3, 3), bool)  # within one image, diagonals included
    dark = descriptors <= _DARK
    border = np.ones(dark.shape[1:], bool)
    border[1:-1, 1:-1] = False
    frame = ndimage.binary_propagation(dark & border, neighbours, mask=dark)
    inside = ~ndimage.binary_dilation(frame, neighbours, iterations=_FRAME_MARGIN)
    # An image that is dark all over has no frame; it is compared as a whole.
    return inside | ~inside.any(axis=(1, 2), keepdims=True)


def _masked_correlation(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float32 [B]: row-wise Pearson correlation where `mask`; about 0 if a row is constant there.

    Args:
        x, y: float32 [B, K].
        mask: bool [B, K].
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
    # One pixel that differs by one grey level makes 1e-3 of variation; less is rounding.
    return np.divide(dot(x, y), norm, out=np.zeros_like(norm), where=norm > 1e-4)
