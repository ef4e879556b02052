"""Stored predictions: what is written is found again by id, whole or not at all."""

import json
import os

import numpy as np
import pytest

from yt8m.data import predictions
from yt8m.data.predictions import (
    Predictions,
    PredictionsWriter,
    best_scores,
    decode_scores,
    encode_scores,
    hash_ids,
    merge_predictions,
)
from yt8m.errors import DataError, UserError


def probabilities_of(count: int, classes: int, seed: int = 0) -> np.ndarray:
    """Some near 0, some near 1, and ties."""
    values = np.random.default_rng(seed).normal(0, 6, (count, classes)).round(1)
    return (1 / (1 + np.exp(-values))).astype(np.float32)


def ids_of(count: int) -> list[bytes]:
    return [b"v" + bytes(str(i), "ascii") * (1 + i % 3) for i in range(count)]


def write(path, ids, probabilities, kept=None, size=7) -> str:
    writer = PredictionsWriter(str(path), probabilities.shape[1], kept, "the test")
    with writer:
        for start in range(0, len(ids), size):
            writer.write(ids[start : start + size], probabilities[start : start + size])
    assert writer.count == len(ids)
    return str(path)


def test_scores_are_as_fine_near_1_as_near_0():
    p = np.array([0, 1e-5, 0.25, 0.5, 0.75, 0.9, 1 - 1e-5, 1], np.float32)
    found = decode_scores(encode_scores(p))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, p, rtol=5e-3)
    np.testing.assert_allclose(1 - found, 1 - p, rtol=5e-3)
    assert decode_scores(encode_scores(np.array([-0.0, -1e-7, 1 + 1e-7]))).tolist() == [
        *(0, 0, 1)
    ]
    many = np.sort(probabilities_of(50, 40).ravel())
    assert (np.diff(decode_scores(encode_scores(many))) >= 0).all()


def test_the_hash_is_fnv_1a():
    # Published values of FNV-1a, 64 bits.
    expected = [0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8]
    assert hash_ids([b"", b"a", b"foobar"]).tolist() == expected
    assert len(set(hash_ids([b"a", b"a\0", b"a\0\0"]).tolist())) == 3
    assert hash_ids([]).shape == (0,)


def test_the_best_classes_are_those_of_a_sort_ties_by_class():
    p = probabilities_of(40, 30)
    scores = encode_scores(p)
    p = decode_scores(scores)
    for count in (1, 7, 30):
        classes, best = best_scores(scores, count)
        order = np.argsort(-p, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(classes, order)
        np.testing.assert_array_equal(
            decode_scores(best), np.take_along_axis(p, order, 1)
        )
    assert best_scores(encode_scores(np.full((1, 5), 0.7)), 2)[0].tolist() == [[0, 1]]


@pytest.mark.parametrize("kept", [None, 4, 12, 50])
def test_what_is_written_is_found_by_id_in_any_order(tmp_path, kept):
    ids, p = ids_of(31), probabilities_of(31, 12)
    found = Predictions(write(tmp_path / "a.predictions", ids, p, kept))
    stored = decode_scores(encode_scores(p))
    if kept == 4:
        worse = np.argsort(-stored, axis=1, kind="stable")[:, 4:]
        np.put_along_axis(stored, worse, 0, axis=1)
    assert (len(found), found.num_classes) == (31, 12)
    assert found.classes_per_video == (4 if kept == 4 else None)
    assert found.written_by == "the test"
    assert found.ids() == ids and found.ids(3, 6) == ids[3:6] and found.ids(40) == []
    order = np.random.default_rng(1).permutation(31)
    asked = [ids[i] for i in order]
    np.testing.assert_array_equal(found.rows(asked), order)
    np.testing.assert_array_equal(found.probabilities(order), stored[order])
    # As the reader gives ids: an array of objects; some are not there.
    others = np.array([b"v", b"none", ids[5], b"v5", b"", ids[30] + b"0"], object)
    assert found.rows(others).tolist() == [-1, -1, 5, -1, -1, -1]
    assert found.rows([]).shape == (0,)
    classes, scores = found.sparse(order)
    assert classes.shape == scores.shape == (31, 4 if kept == 4 else 12)
    np.testing.assert_array_equal(
        np.take_along_axis(stored[order], classes, axis=1), scores
    )
    assert (np.diff(scores, axis=1) <= 0).all()
    best = found.best(order, 3)
    np.testing.assert_array_equal(best[0], classes[:, :3])
    np.testing.assert_array_equal(best[1], scores[:, :3])
    blocks = list(found.blocks(10))
    assert [len(own) for own, _ in blocks] == [10, 10, 10, 1]
    assert sum((own for own, _ in blocks), []) == ids
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), stored)
    for rows in ([-1], [31]):
        with pytest.raises(IndexError, match="0 .. 30"):
            found.probabilities(rows)


def test_ids_of_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    real = predictions._hash
    monkeypatch.setattr(predictions, "_hash", lambda *a: real(*a) % np.uint64(3))
    ids, p = ids_of(20), probabilities_of(20, 3)
    found = Predictions(write(tmp_path / "a", ids, p))
    assert found.rows([*ids[::-1], b"none", b"v"]).tolist() == [
        *range(19, -1, -1),
        -1,
        -1,
    ]
    with pytest.raises(DataError, match="video v33 is predicted twice"):
        write(tmp_path / "b", [*ids[:9], b"v33", b"v33"], p[:11])


def test_sparse_and_dense_writes_agree(tmp_path):
    ids, p = ids_of(9), probabilities_of(9, 8)
    whole = Predictions(write(tmp_path / "whole", ids, p, 3))
    classes, scores = whole.sparse(np.arange(9))
    for kept in (3, None):
        path = str(tmp_path / f"again{kept}")
        with PredictionsWriter(path, 8, kept) as writer:
            writer.write_sparse(ids, classes, scores)
        np.testing.assert_array_equal(
            Predictions(path).probabilities(np.arange(9)),
            whole.probabilities(np.arange(9)),
        )


def test_a_video_that_comes_twice_is_named_and_nothing_is_left(tmp_path):
    p = probabilities_of(4, 3)
    with pytest.raises(DataError, match="a: video v0 is predicted twice"):
        write(tmp_path / "a", [b"v1", b"v0", b"v2", b"v0"], p, size=2)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1, 1e30])
def test_what_is_no_probability_is_refused_by_video(tmp_path, bad):
    p = probabilities_of(3, 3)
    p[1, 2] = bad
    with pytest.raises(DataError, match="scores of video v11 are not prob"):
        write(tmp_path / "a", ids_of(3), p)
    assert os.listdir(tmp_path) == []


def test_interrupted_predictions_leave_the_earlier_ones(tmp_path):
    path = write(tmp_path / "a", [b"x"], probabilities_of(1, 3))
    for error in (KeyboardInterrupt(), DataError("no")):
        with (
            pytest.raises(type(error)),
            PredictionsWriter(path, 3) as writer,
        ):
            writer.write([b"y"], probabilities_of(1, 3))
            raise error
        assert os.listdir(tmp_path) == ["a"]
        assert Predictions(path).ids() == [b"x"]
    write(path, [b"y", b"z"], probabilities_of(2, 5))
    assert os.listdir(tmp_path) == ["a"]
    assert Predictions(path).ids() == [b"y", b"z"]


def test_no_video_is_no_error(tmp_path):
    found = Predictions(write(tmp_path / "a", [], probabilities_of(0, 3), 2))
    assert len(found) == 0 and found.ids() == [] and list(found.blocks()) == []
    assert found.rows([b"a"]).tolist() == [-1]
    assert found.probabilities([]).shape == (0, 3)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("folder", "file"):
        with (
            pytest.raises(UserError, match="is no folder of predictions"),
            PredictionsWriter(str(tmp_path / name), 3),
        ):
            pass
    for arguments, said in (
        (("gs://bucket/a", 3), "local disk"),
        ((str(tmp_path / "a"), 70000), "1 to 65536 classes"),
        ((str(tmp_path / "a"), 3, 0), "At least one class"),
    ):
        with pytest.raises(UserError, match=said):
            PredictionsWriter(*arguments)
    with (
        pytest.raises(UserError, match="cannot be written: Not a dir"),
        PredictionsWriter(str(tmp_path / "file" / "a"), 3),
    ):
        pass
    with (
        pytest.raises(DataError, match="Video 1 of the predictions"),
        PredictionsWriter(str(tmp_path / "a"), 3) as writer,
    ):
        writer.write([b"a", b""], probabilities_of(2, 3))
    with (
        pytest.raises(ValueError, match=r"must be \[1, 3\]"),
        PredictionsWriter(str(tmp_path / "a"), 3) as writer,
    ):
        writer.write([b"a"], probabilities_of(2, 3))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_what_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path / "a", ids_of(9), probabilities_of(9, 8), 3)
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert (meta["version"], meta["count"], meta["classes_per_video"]) == (1, 9, 3)

    def refused(kind, said):
        with pytest.raises(kind, match=said):
            Predictions(path)

    for name in ("ids", "offsets.npy", "scores.npy", "classes.npy", "index.npy"):
        file = tmp_path / "a" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-3])
        refused(DataError, f"a/{name}.* cut short")
        file.unlink()
        refused(DataError, f"a/{name}.* cut short")
        file.write_bytes(whole)
    np.save(tmp_path / "a" / "scores.npy", np.zeros((9, 2), np.float16))
    refused(DataError, r"scores.npy is of float16 \[9, 2\], where meta.json says")
    for text, kind, said in (
        (json.dumps(meta | {"version": 2}), UserError, "version 2 of the format"),
        (json.dumps({"a": 1}), UserError, "is not of yt8m predictions"),
        ("{", DataError, "meta.json is damaged"),
        (json.dumps({**meta, "count": None}), DataError, "damaged: count=None"),
    ):
        (tmp_path / "a" / "meta.json").write_text(text)
        refused(kind, said)
    with pytest.raises(UserError, match="none holds no predictions: .*No such file"):
        Predictions(str(tmp_path / "none"))
    with pytest.raises(UserError, match="local disk"):
        Predictions("gs://bucket/a")


@pytest.mark.parametrize("kept", [None, 3])
def test_merged_predictions_are_those_of_all_parts(tmp_path, kept):
    ids, p = ids_of(20), probabilities_of(20, 6)
    parts = [write(tmp_path / f"part{i}", ids[i::3], p[i::3], kept) for i in (0, 1, 2)]
    done = []
    assert merge_predictions(parts, str(tmp_path / "all"), done.append) == 20
    assert sum(done) == 20
    whole = Predictions(write(tmp_path / "whole", ids, p, kept))
    found = Predictions(str(tmp_path / "all"))
    assert found.ids() == ids[0::3] + ids[1::3] + ids[2::3]
    assert found.written_by == "the test"
    np.testing.assert_array_equal(
        found.probabilities(found.rows(ids)), whole.probabilities(whole.rows(ids))
    )
    with pytest.raises(DataError, match="b: video v[0-9]+ is predicted twice"):
        merge_predictions([parts[0], parts[1], parts[0]], str(tmp_path / "b"))
    other = write(tmp_path / "other", [b"o"], probabilities_of(1, 6), 2)
    with pytest.raises(UserError, match="classes_per_video"):
        merge_predictions([parts[0], other], str(tmp_path / "b"))
    assert not os.path.exists(tmp_path / "b")
