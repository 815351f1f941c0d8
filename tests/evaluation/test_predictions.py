"""Files of predictions: what is read is what was saved."""

import io
import zipfile

import numpy as np
import pytest

from egmae_jax.core.files import DamagedFileError
from egmae_jax.evaluation.predictions import Predictions, load_predictions, save_predictions
from tests.evaluation.oracles import branch


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
    """No clock is in the file: it would be that of a zip archive's time stamps."""
    save_predictions(tmp_path / "p.npz", branch(0, np.arange(7) % 3))
    with zipfile.ZipFile(io.BytesIO((tmp_path / "p.npz").read_bytes())) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_predictions_without_groups_are_made_anew_by_evaluation(tmp_path):
    arrays = branch(0, np.arange(4) % 2)._asdict()
    del arrays["groups"]
    np.savez(tmp_path / "old.npz", **arrays)
    with pytest.raises(DamagedFileError, match=r"old\.npz is damaged .*groups.*--stage=evaluate"):
        load_predictions(tmp_path / "old.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"probabilities": np.ones(2)},
        {"probabilities": np.full((2, 2), np.nan)},
        {"probabilities": np.array([[{}, 1], [1, 1]], object)},
    ],
    ids=str,
)
def test_predictions_of_wrong_types_or_sizes_are_damaged(tmp_path, changes):
    np.savez(tmp_path / "p.npz", **{**branch(0, np.arange(2))._asdict(), **changes})
    with pytest.raises(DamagedFileError, match=r"p\.npz is damaged"):
        load_predictions(tmp_path / "p.npz")
