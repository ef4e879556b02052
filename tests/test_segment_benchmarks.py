"""The benchmarks of segments run, and what they say they measure is what they do."""

import pathlib
import re

import numpy as np

from benchmarks import segment_inference, segment_scoring
from yt8m import runs
from yt8m.inference.windows import SegmentOptions, plan_segments

runs.load_registries()


def rows_of(printed: str) -> dict[str, list[str]]:
    lines = re.findall(r"^\| (.*) \|$", printed, re.M)
    return {name: cells for name, *cells in (line.split(" | ") for line in lines)}


def test_scoring_finds_the_score_that_the_file_was_made_with(capsys):
    segment_scoring.main(["--quick"])  # ends with an error if it does not
    out = capsys.readouterr().out
    rows = rows_of(out)
    for name in ("reading the segments", "`yt8m score-segments`"):
        seconds, memory = map(float, rows[name])
        assert seconds >= 0 and 0 < memory < 4  # rounded to tenths
    assert "Num classes: 10 | mAP@100000: 0." in out


def test_generated_submissions_hold_what_was_asked_for(tmp_path):
    path, ratings, score = segment_scoring.write_files(str(tmp_path), 200, 3, 50, 20)
    header, *lines = pathlib.Path(path).read_text().splitlines()
    assert header == "Class,Segments" and len(lines) == 3
    for number, line in enumerate(lines):
        label, _, segments = line.partition(",")
        assert int(label) == number and len(set(segments.split())) == 50
    cells = [line.split(",") for line in pathlib.Path(ratings).read_text().splitlines()]
    assert len({(name, c) for name, c, _ in cells}) == 60
    assert {value for *_, value in cells} == {"0.0", "1.0"}
    assert 0 < score < 1


def test_inference_is_measured_beside_the_model_on_the_same_windows(
    tmp_path, monkeypatch, capsys
):
    paths = segment_inference.write_shards(str(tmp_path), 2, 2)
    bench = segment_inference.Bench("FrameLevelLogisticModel", {}, paths, 20)
    windows = plan_segments(bench.num_frames, SegmentOptions()).windows
    cut = np.concatenate([chunk["num_frames"].numpy() for chunk in bench.precut])
    np.testing.assert_array_equal(cut, windows.lengths)
    some = {"every 5 s": SegmentOptions(), "shifted": SegmentOptions(shifts=(0, 1))}
    monkeypatch.setattr(segment_inference, "OPTIONS", some)
    segment_inference.measure(bench, "m", rounds=1)
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ["`m` alone", "every 5 s", "shifted"]
    count = f"{len(windows):,}"
    assert rows["every 5 s"][:3] == [count] * 3
    assert rows["shifted"][0] == count
    assert int(rows["shifted"][1].replace(",", "")) == 2 * len(windows)
