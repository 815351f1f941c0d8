"""Files of predictions: what is read is what was saved, whole and with its groups."""

import io
import zipfile

import numpy as np
import pytest

from egmae_jax.core.files import DamagedFileError
from egmae_jax.evaluation.predictions import (
    NoGroupsError,
    Predictions,
    load_predictions,
    save_predictions,
)
from tests.evaluation.test_scores import branch


def test_predictions_survive_saving_with_names_of_any_script(tmp_path):
    labels = np.arange(7) % 3
    ids = np.array(["benign (1).png", "médecin/ü.png", "超音波.png", "a", "b", "c", "d" * 300])
    predictions = branch(0, labels)._replace(ids=ids)
    path = tmp_path / "folder" / "predictions.npz"
    save_predictions(path, predictions)
    loaded = load_predictions(path)
    for name, before, after in zip(Predictions._fields, predictions, loaded, strict=True):
        assert after.dtype == before.dtype, name
        np.testing.assert_array_equal(after, before)
    assert [p.name for p in path.parent.iterdir()] == ["predictions.npz"]


def test_the_same_predictions_are_the_same_bytes(tmp_path):
    labels = np.arange(7) % 3
    for name in ("first.npz", "second.npz"):
        save_predictions(tmp_path / name, branch(0, labels))
    first = (tmp_path / "first.npz").read_bytes()
    assert first == (tmp_path / "second.npz").read_bytes()
    # No clock is in it: the two were written within the two seconds of a zip file's time stamp.
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_predictions_of_an_older_version_take_their_groups_from_the_split(tmp_path):
    saved = branch(0, np.arange(4) % 2)
    old = {name: array for name, array in saved._asdict().items() if name != "groups"}
    path = tmp_path / "old.npz"
    np.savez(path, **old)
    with pytest.raises(NoGroupsError, match=r"old\.npz is damaged .it holds no groups"):
        load_predictions(path)
    group_of = {"3.png": 8, "2.png": 9, "1.png": 8, "0.png": 7, "other.png": 1}
    assert load_predictions(path, group_of).groups.tolist() == [7, 8, 9, 8]
    del group_of["2.png"]
    with pytest.raises(DamagedFileError, match=r"splits\.json does not name '2\.png'"):
        load_predictions(path, group_of)
    save_predictions(path, saved)
    assert load_predictions(path, {}).groups.tolist() == [0, 0, 1, 1]  # its own
