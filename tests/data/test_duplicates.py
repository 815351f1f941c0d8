"""`pytest tests/data/test_duplicates.py -s` prints the figures in the docstring of `duplicates`."""

import csv
import functools
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import duplicates
from tests.conftest import SHARED_DATA, needs_shared_data
from tests.data.writers import encode

ISIC = "isic2018/ISIC2018_Task3_Training_Input"


def as_set(pairs):
    return {(int(i), int(j)) for i, j in pairs}


def describe(images):
    descriptors = np.stack([duplicates.descriptor(image) for image in images])
    return descriptors, [duplicates.pixel_hash(image) for image in images]


def find(images, **kwargs):
    """The pairs among Pillow images, as a set."""
    return as_set(duplicates.duplicate_pairs(*describe(images), **kwargs))


def picture(seed, size=(96, 80)):
    """Random smooth grey shapes, RGB."""
    coarse = np.random.default_rng(seed).integers(20, 236, (7, 7)).astype(np.uint8)
    return PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC).convert("RGB")


def encoded(image, file_format, **options):
    return PIL.Image.open(io.BytesIO(encode(image, file_format, **options)))


def behind_aperture(image, opening=0.98):
    """Grey image behind a round black aperture; an opening of 1 is as high as the image."""
    grey = np.asarray(image.convert("L"))
    height, width = grey.shape
    y, x = np.ogrid[:height, :width]
    radius = np.hypot(2 * y + 1 - height, 2 * x + 1 - width) / height
    return PIL.Image.fromarray(np.where(radius < opening, grey, 0).astype(np.uint8))


def raw_pairs(descriptors):
    """Pairs above .99, from the definition: no blocks, no frames, no mirror, float64."""
    correlation = np.corrcoef(descriptors.reshape(len(descriptors), -1).astype(float))
    return np.argwhere(np.triu(correlation > 0.99, k=1))


@functools.cache
def data_set(folder):
    """Files relative to `folder`, descriptors, hashes and pairs of a complete data set."""
    root = SHARED_DATA / folder
    files = sorted(f for f in root.rglob("*") if f.suffix in (".jpg", ".jpeg", ".png"))
    descriptors, hashes = described(files)
    start = time.perf_counter()
    pairs = duplicates.duplicate_pairs(descriptors, hashes)
    print(f"\n{len(files)} images compared in {time.perf_counter() - start:.1f} s")
    return [f.relative_to(root) for f in files], descriptors, hashes, pairs


def described(files, change=lambda image: image):
    def describe_one(file):
        with PIL.Image.open(file) as image:
            changed = change(image)
            return duplicates.descriptor(changed), duplicates.pixel_hash(changed)

    with ThreadPoolExecutor(2) as pool:
        descriptors, hashes = zip(*pool.map(describe_one, files), strict=True)
    return np.stack(descriptors), hashes


def largest_group(num_images, pairs):
    return np.bincount(duplicates.group_ids(num_images, pairs)).max()


def report(name, num_images, raw, pairs):
    mirrored = len(as_set(pairs) - as_set(raw))
    print(
        f"{name}: {num_images} images, {len(raw)} pairs r > .99, {len(pairs) - mirrored} by "
        f"rules 1 and 2, {mirrored} by rule 3, largest group {largest_group(num_images, pairs)} "
        f"({largest_group(num_images, raw)} by r > .99)"
    )


class TestDescriptor:
    def test_averages_over_the_source_pixels(self):
        checkers = np.indices((256, 256)).sum(axis=0) % 2 * 255
        thumbnail = duplicates.descriptor(PIL.Image.fromarray(checkers.astype(np.uint8)))
        np.testing.assert_allclose(thumbnail, 127.5, atol=2)


class TestPixelHash:
    def test_ignores_the_encoding(self):
        image = picture(0).convert("L")
        same = [encoded(image, "PNG"), encoded(image, "BMP"), image.convert("RGB")]
        assert {duplicates.pixel_hash(other) for other in same} == {duplicates.pixel_hash(image)}

    def test_sees_one_grey_level(self):
        image = picture(0)
        other = image.copy()
        r, g, b = image.getpixel((3, 4))
        other.putpixel((3, 4), (r, g, b + 1))
        assert duplicates.pixel_hash(image) != duplicates.pixel_hash(other)


class TestDuplicatePairs:
    @pytest.mark.parametrize(
        "change",
        [
            lambda image: encoded(image, "PNG"),
            lambda image: encoded(image, "JPEG", quality=40),
            lambda image: image.resize((200, 170)),
            lambda image: image.point(lambda grey: min(255, round(1.08 * grey))),
            lambda image: image.point(lambda grey: round(0.05 * grey)),
            lambda image: image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
        ],
        ids=["png", "jpeg", "resized", "brighter", "nearly black", "mirrored"],
    )
    def test_finds_a_changed_copy(self, change):
        upside_down = picture(1).transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM)
        images = [picture(0), picture(1), change(picture(1)), picture(2), upside_down]
        assert find(images) == {(1, 2)}

    def test_a_common_frame_makes_no_duplicates(self):
        # The bright disc on black alone correlates above .99, whatever texture is in it.
        rng = np.random.default_rng(0)
        textures = [rng.integers(185, 216, (16, 16)).astype(np.uint8) for _ in range(4)]
        textures += [np.full((16, 16), grey, np.uint8) for grey in (180, 200)]
        images = [
            behind_aperture(PIL.Image.fromarray(texture).resize((64, 64)), 0.9)
            for texture in textures
        ]
        assert len(raw_pairs(describe(images)[0])) == 15
        assert find(images) == set()
        assert find([*images, encoded(images[2], "JPEG")]) == {(2, 6)}

    def test_threshold_is_the_correlation_of_thumbnails(self):
        image = picture(0)
        shifted = PIL.Image.fromarray(np.roll(np.asarray(image), 1, axis=1))
        thumbnails = [duplicates.descriptor(x).ravel() for x in (image, shifted)]
        r = np.corrcoef(thumbnails)[0, 1]
        assert 0.97 < r < 0.999
        assert find([image, shifted], threshold=r - 1e-4) == {(0, 1)}
        assert find([image, shifted], threshold=r + 1e-4) == set()

    def test_blocks_agree_with_one_product(self, monkeypatch):
        images = [picture(seed % 30) for seed in range(70)]
        whole = find(images)
        monkeypatch.setattr(duplicates, "_ROWS", 8)
        monkeypatch.setattr(duplicates, "_PAIRS", 3)
        assert find(images) == whole
        assert whole == {(i, j) for i in range(70) for j in range(i + 1, 70) if (j - i) % 30 == 0}

    def test_result_is_sorted_and_unique(self):
        # Symmetric: near, and near again when mirrored; identical: exact as well.
        half = np.asarray(picture(5, (40, 80)))
        image = PIL.Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
        pairs = duplicates.duplicate_pairs(
            np.stack([duplicates.descriptor(image)] * 3), [duplicates.pixel_hash(image)] * 3
        )
        assert pairs.dtype == np.int64
        assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]


class TestGroupIds:
    def test_chains_are_joined(self):
        pairs = np.array([[1, 4], [2, 3], [4, 5]])
        assert duplicates.group_ids(7, pairs).tolist() == [0, 1, 2, 2, 1, 1, 3]

    def test_a_pair_joins_known_groups(self):
        known = ["p1", "p2", "p1", "p2", None]
        assert duplicates.group_ids(5, np.array([[2, 3]]), known).tolist() == [0, 0, 0, 0, 1]


@needs_shared_data
@pytest.mark.slow
class TestRealImages:
    def test_busi(self):
        files, descriptors, _, pairs = data_set("busi/Dataset_BUSI_with_GT")
        raw = raw_pairs(descriptors)
        report("BUSI", len(files), raw, pairs)
        assert pairs.tolist() == raw.tolist()
        assert len(pairs) == 133
        assert sum(files[i].parent != files[j].parent for i, j in pairs) == 7
        assert largest_group(len(files), pairs) == 4
        # Descriptors are Pillow's bicubic thumbnails up to rounding.
        for n in range(0, len(files), 97):
            image = PIL.Image.open(SHARED_DATA / "busi/Dataset_BUSI_with_GT" / files[n])
            expected = np.asarray(image.convert("L").resize((32, 32)), int)
            np.testing.assert_allclose(descriptors[n], expected, atol=2)

    def test_chest_x_rays_look_alike_but_are_not_merged(self):
        files, descriptors, _, pairs = data_set("covid_xray")
        report("chest X-ray", len(files), raw_pairs(descriptors), pairs)
        assert [(files[i].stem, files[j].stem) for i, j in pairs] == [
            ("E63574A7-4188-4C8D-8D17-9D67A18A1AFA", "F4341CE7-73C9-45C6-99C8-8567A5484B63"),
            ("00002658_001", "00002658_002"),
        ]

    def test_skin_lesions(self):
        files, descriptors, _, pairs = data_set(ISIC)
        report("ISIC 2018", len(files), raw_pairs(descriptors), pairs)
        with open(SHARED_DATA / "isic2018/HAM10000_metadata.csv", newline="") as stream:
            lesions = {row["image_id"]: row["lesion_id"] for row in csv.DictReader(stream)}
        names = [(files[i].stem, files[j].stem) for i, j in pairs]
        assert len(names) == 89
        # By eye one photograph, recoloured: the metadata are wrong about it.
        different = [pair for pair in names if lesions[pair[0]] != lesions[pair[1]]]
        assert different == [("ISIC_0025226", "ISIC_0030074")]
        assert largest_group(len(files), pairs) == 3

    def test_skin_lesions_behind_an_aperture_are_not_chained(self):
        files = sorted((SHARED_DATA / ISIC).glob("*.jpg"))[::2]
        descriptors, hashes = described(files, behind_aperture)
        raw, pairs = raw_pairs(descriptors), duplicates.duplicate_pairs(descriptors, hashes)
        report("ISIC 2018 behind an aperture", len(files), raw, pairs)
        assert largest_group(len(files), raw) > 0.4 * len(files)
        assert largest_group(len(files), pairs) < 0.01 * len(files)

    def test_brain_slices(self):
        files, descriptors, hashes, pairs = data_set("brain_tumor_mri")
        raw = raw_pairs(descriptors)
        report("brain MRI", len(files), raw, pairs)
        by_hash = {}
        for file, key in zip(files, hashes, strict=True):
            by_hash.setdefault(key, []).append(file)
        exact = [copies for copies in by_hash.values() if len(copies) > 1]
        assert len(exact) == 300
        assert sum(len(copies) - 1 for copies in exact) == 426
        assert sum(len({file.parent for file in copies}) > 1 for copies in exact) == 189
        for first, *rest in exact:
            pixels = [
                np.asarray(PIL.Image.open(SHARED_DATA / "brain_tumor_mri" / file).convert("RGB"))
                for file in (first, *rest)
            ]
            assert all((other == pixels[0]).all() for other in pixels[1:])

        # Neighbouring slices of one head are different pictures, though r > .99.
        number = {file.stem: n for n, file in enumerate(files)}
        for a, b in [("Tr-gl_0124", "Tr-gl_0125"), ("Tr-gl_0202", "Tr-gl_0203")]:
            assert (number[a], number[b]) in as_set(raw) - as_set(pairs)
        assert largest_group(len(files), pairs) == 38

        testing = np.array([file.parts[0] == "Testing" for file in files])
        for rules, kept in (("1 and 2", as_set(pairs) & as_set(raw)), ("1 to 3", as_set(pairs))):
            groups = duplicates.group_ids(len(files), np.array(sorted(kept)))
            leaked = np.isin(groups[testing], groups[~testing]).sum()
            print(
                f"  rules {rules}: {leaked} of {testing.sum()} in Testing have a copy in Training"
            )
        assert leaked == 983
        # By eye mirrored copies, labelled as meningioma and as pituitary tumour.
        assert sum(files[i].parts[1] != files[j].parts[1] for i, j in pairs) == 4
