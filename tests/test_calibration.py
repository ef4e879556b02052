"""Calibration: the slopes and shifts it finds, what it keeps and what it mends."""

import numpy as np
import pytest

from yt8m.cli.main import run as command
from yt8m.data.predictions import Predictions, PredictionsWriter
from yt8m.ensemble.calibration import Calibration, fit_calibration
from yt8m.inference.scoring import read_ground_truth, score_submission

CLASSES = 6


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def problem(seed=0, count=4000):
    """Probabilities that are too sure, each class in another way, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-2, 1.5, (count, CLASSES))
    labels = rng.random(true.shape) < sigmoid(true)
    slopes, shifts = np.linspace(0.5, 1.5, CLASSES), np.linspace(-1, 1, CLASSES)
    said = sigmoid((true - shifts) / slopes)
    return said.astype(np.float32), labels, slopes, shifts


def test_slopes_and_shifts_are_those_that_made_the_labels():
    said, labels, slopes, shifts = problem(count=40_000)
    found = fit_calibration([(said, labels)], CLASSES, strength=1e-3)
    np.testing.assert_allclose(found.slopes, slopes, atol=0.06)
    np.testing.assert_allclose(found.shifts, shifts, atol=0.12)
    calibrated = found(said)
    for label in range(CLASSES):  # of those that are said to be so likely, so many are
        sure = calibrated[:, label] > 0.5
        rate = calibrated[sure, label].mean()
        assert labels[sure, label].mean() == pytest.approx(rate, abs=0.02)


def test_the_fit_is_where_the_penalised_log_loss_is_least():
    said, labels, *_ = problem(count=300)
    found = fit_calibration([(said, labels)], CLASSES, strength=3.0)
    logits = np.log(said.astype(float)) - np.log1p(-said.astype(float))
    # The distance is from what fits all classes together.
    common = fit_calibration([(said.reshape(-1, 1), labels.reshape(-1, 1))], 1, 1e9)
    np.testing.assert_allclose([common.slopes[0], common.shifts[0]], [1, 0], atol=1e-5)
    common = fit_calibration([(said.reshape(-1, 1), labels.reshape(-1, 1))], 1, 3.0)

    def loss(label, slope, shift):
        z = slope * logits[:, label] + shift
        far = (slope - centre[0]) ** 2 + (shift - centre[1]) ** 2
        return (np.logaddexp(0, z) - labels[:, label] * z).sum() + 1.5 * far

    # One class alone is drawn to its own fit, so the common one is not quite as found.
    centre = (common.slopes[0], common.shifts[0])
    for label in range(CLASSES):
        own = (found.slopes[label], found.shifts[label])
        for step in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
            moved = np.add(own, step)
            assert loss(label, *own) < loss(label, *moved) + 0.02


def test_where_scores_say_the_opposite_the_base_rate_is_left():
    rng = np.random.default_rng(0)
    said = 1 / (1 + np.exp(-rng.normal([-2, -6], 2, (2000, 2)))).astype(np.float32)
    high = said[:, 1] > np.median(said[:, 1])
    truth = [said[:, 0], np.where(high, 0.4, 0.6)]
    labels = rng.random((2000, 2)) < np.stack(truth, axis=1)
    found = fit_calibration([(said, labels)], 2)
    assert found.slopes[1] == 0
    rate = labels[:, 1].mean()
    np.testing.assert_allclose(found(said)[:, 1], rate, atol=0.01)


def test_blocks_are_as_good_as_all_at_once_and_the_strength_counts():
    said, labels, *_ = problem()
    whole = fit_calibration([(said, labels)], CLASSES)
    parts = ((said[i : i + 777], labels[i : i + 777]) for i in range(0, 4000, 777))
    apart = fit_calibration(parts, CLASSES)
    np.testing.assert_allclose(apart.slopes, whole.slopes, rtol=1e-9)
    drawn = fit_calibration([(said, labels)], CLASSES, strength=1e6)
    assert np.ptp(drawn.slopes) < 0.01 < np.ptp(whole.slopes)
    with pytest.raises(ValueError, match="positive"):
        fit_calibration([(said, labels)], CLASSES, strength=0)


def test_rankings_of_a_class_stay_and_what_is_not_named_stays_so():
    said, labels, *_ = problem()
    said[::3, 2] = 0  # not named
    labels[:, 4] = ~labels[:, 4]  # wrong as it can be: no slope turns it around
    labels[:, 5] = False  # never right
    found = fit_calibration([(said, labels)], CLASSES)
    calibrated = found(said)
    assert calibrated.dtype == np.float32 and (calibrated[::3, 2] == 0).all()
    assert found.slopes[4] == 0 and (found.slopes >= 0).all()
    assert calibrated[:, 5].mean() < 0.01 < said[:, 5].mean()
    for label in range(4):
        order = np.argsort(said[:, label], kind="stable")
        assert (np.diff(calibrated[order, label]) >= 0).all()
    # The identity gives back what it was given, up to the ends of floats.
    same = Calibration(np.ones(CLASSES), np.zeros(CLASSES))(said)
    np.testing.assert_allclose(same, said, atol=1e-6)


def test_no_videos_change_nothing():
    found = fit_calibration([], CLASSES)
    np.testing.assert_allclose(found.slopes, 1)
    np.testing.assert_allclose(found.shifts, 0)


@pytest.fixture
def files(tmp_path):
    """Predictions of two halves of videos, and a table of all labels."""
    said, labels, *_ = problem()
    ids = [f"v{i:04}".encode() for i in range(len(said))]
    for name, own in (("fit", slice(0, 2000)), ("test", slice(2000, None))):
        with PredictionsWriter(str(tmp_path / f"{name}.predictions"), CLASSES) as w:
            w.write(ids[own], said[own])
    lines = (
        f"{video.decode()},{' '.join(map(str, np.flatnonzero(own)))}\n"
        for video, own in zip(ids, labels, strict=True)
    )
    (tmp_path / "labels.csv").write_text("".join(lines))
    return tmp_path


def calibrate(files, *flags) -> int:
    return command(
        "calibrate",
        [f"--labels={files}/labels.csv", f"--num_classes={CLASSES}", *flags],
    )


def test_the_command_learns_on_one_half_and_mends_the_other(files, capsys):
    fit, test = (f"{files}/{name}.predictions" for name in ("fit", "test"))
    out = f"{files}/out.predictions"
    flags = [f"--source={test}", f"--held_out_source={fit}"]
    assert calibrate(files, *flags, f"--output_file={out}") == 0
    said = capsys.readouterr().out
    before, after = (float(said.split(w)[0].split()[-1]) for w in (" before", " after"))
    assert after > before + 0.01 and "of the 2,000 videos" in said
    truth = read_ground_truth(f"{files}/labels.csv", CLASSES)
    scored = [score_submission(path, truth)["gap"] for path in (test, out)]
    assert scored[1] > scored[0] + 0.01
    stored = Predictions(out)
    assert stored.classes_per_video is None and len(stored) == 2000
    assert calibrate(files, *flags, f"--output_file={files}/out.csv", "--top_k=2") == 0
    lines = (files / "out.csv").read_text().splitlines()
    assert len(lines) == 2001 and len(lines[1].split(",")[1].split()) == 4


def test_out_of_fold_predictions_are_their_own_measure(files, capsys):
    fit, out = f"{files}/fit.predictions", f"{files}/own.predictions"
    assert calibrate(files, f"--source={fit}", f"--output_file={out}") == 0
    weak = f"{files}/weak.predictions"
    flags = [f"--source={fit}", f"--output_file={weak}", "--strength=1e6"]
    assert calibrate(files, *flags) == 0
    rows = np.arange(2000)
    assert not np.array_equal(
        *(Predictions(path).probabilities(rows) for path in (out, weak))
    )


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--output_file={f}/o.csv"], "Nothing to calibrate"),
        (["--source={f}/fit.predictions"], "No file to write"),
        (
            ["--source={f}/fit.predictions", "--output_file={f}/fit.predictions"],
            "is also an input, which it would replace",
        ),
        (
            ["--source={f}/fit.predictions", "--output_file={f}/o.csv", "--labels="],
            "Nothing to fit",
        ),
        (
            [
                *("--source={f}/fit.predictions", "--output_file={f}/o.csv"),
                "--labels={f}/few.csv",
            ],
            "video v0001, of which --labels knows nothing",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(files, capsys, flags, said):
    (files / "few.csv").write_text("v0000,1 2\n")
    assert calibrate(files, *(flag.format(f=files) for flag in flags)) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
