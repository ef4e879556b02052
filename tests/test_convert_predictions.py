"""JSON lines of predictions: every form a service writes, to one exact CSV."""

import json
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from yt8m.cli.main import run as command
from yt8m.errors import DataError, UserError
from yt8m.inference.json_predictions import convert, read_json_predictions
from yt8m.inference.submission import read_submission, validate

HEADER = "VideoId,LabelConfidencePairs\n"
PLAIN = {"video_id": "abcd", "class_indexes": [3, 11], "predictions": [0.5, 1e-05]}


def write_lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def converted(tmp_path, *values) -> str:
    """The CSV of the given lines, without its header."""
    output = tmp_path / "out.csv"
    convert([write_lines(tmp_path / "in.json", *values)], str(output))
    text = output.read_text()
    assert text.startswith(HEADER)
    return text[len(HEADER) :]


def test_the_command_writes_the_best_class_first_in_the_order_of_the_files(
    tmp_path, capsys
):
    for i in (10, 2, 1):
        write_lines(
            tmp_path / f"prediction.results-{i}",
            {"video_id": f"v{i}", "class_indexes": [7, 5, 6], "predictions": [1, 2, 2]},
        )
    output = tmp_path / "out.csv"
    status = command(
        "convert-predictions",
        [
            f"--json_prediction_files_pattern={tmp_path}/prediction.results-*",
            f"--csv_output_file={output}",
        ],
    )
    assert status == 0
    assert output.read_text() == HEADER + (
        "v1,5 2 6 2 7 1\nv2,5 2 6 2 7 1\nv10,5 2 6 2 7 1\n"
    )
    assert "3 videos of 3 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value",
    [
        PLAIN,
        {key: [value] for key, value in PLAIN.items()},
        {**PLAIN, "video_id": ["abcd"]},
        {**PLAIN, "class_indexes": [[3, 11]]},
        {"instance": {"b64": "AAAA"}, "prediction": PLAIN},
        {"key": "7", "prediction": {key: [value] for key, value in PLAIN.items()}},
        {"predictions": [PLAIN]},
        {**PLAIN, "predictions": [0.5, 0.00001], "more": None},
    ],
)
def test_every_form_of_a_line_gives_the_same_csv(tmp_path, value):
    assert converted(tmp_path, value) == "abcd,3 0.5 11 1e-05\n"


def test_one_class_alone_is_read_in_every_nesting(tmp_path):
    one = {"video_id": "a", "class_indexes": [2], "predictions": [0.25]}
    deep = {"video_id": "b", "class_indexes": [[2]], "predictions": [[0.25]]}
    bare = {"video_id": "c", "class_indexes": 2, "predictions": 0.25}
    assert converted(tmp_path, one, deep, bare) == "a,2 0.25\nb,2 0.25\nc,2 0.25\n"


def test_the_answers_to_one_request_are_taken_one_by_one(tmp_path):
    other = {**PLAIN, "video_id": "efgh", "class_indexes": [0, 3861]}
    text = converted(tmp_path, {"predictions": [PLAIN, other]}, {"predictions": []})
    assert text == "abcd,3 0.5 11 1e-05\nefgh,0 0.5 3861 1e-05\n"


def test_what_an_export_answers_becomes_a_valid_submission(tmp_path):
    """As TensorFlow Serving turns the outputs of `serve_examples` into JSON."""
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(size=(30, 50)), tf.float32)
    values, classes = (t.numpy() for t in tf.math.top_k(tf.sigmoid(logits), 20))
    rows = [
        {
            "video_id": f"v{i:03d}",
            "class_indexes": c.tolist(),
            "predictions": p.tolist(),
        }
        for i, (c, p) in enumerate(zip(classes, values, strict=True))
    ]
    path = write_lines(tmp_path / "in.json", {"predictions": rows[:12]}, *rows[12:])
    output = tmp_path / "out.csv.gz"
    assert convert([path], str(output)) == 30
    expected = [row["video_id"].encode() for row in rows]
    assert validate(str(output), num_classes=50, ids=expected).ok
    for i, (video_id, found, scores) in enumerate(read_submission(str(output))):
        assert video_id == expected[i]
        np.testing.assert_array_equal(found, classes[i])
        np.testing.assert_allclose(scores, values[i], rtol=1e-5)


def test_lines_may_be_empty_end_in_crlf_and_the_last_may_lack_its_end(tmp_path):
    line = json.dumps(PLAIN)
    path = tmp_path / "in.json"
    path.write_bytes(f"\n{line}\r\n  \n{line}".encode())
    found = list(read_json_predictions(str(path)))
    assert [video_id for video_id, _, _ in found] == [b"abcd", b"abcd"]
    assert found[0][1].dtype == np.int32
    assert found[0][2].tolist() == [0.5, 1e-05]


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "not JSON"),
        ('{"predictions": [', "not JSON"),
        ("\u00e9{}", "not JSON"),
        ("[" * 100_000, "recursion"),
        ("17", "keys video_id"),
        ('"abcd"', "keys video_id"),
        ('{"video_id": "a", "predictions": [0.5]}', "class_indexes"),
        ('{"predictions": [0.5]}', "keys video_id"),
        ('{"prediction": [0.5, 0.25]}', "keys video_id"),
        ('{"instance": {}, "error": {"code": 3}}', "reports an error"),
        ('{"video_id": 5, "class_indexes": [1], "predictions": [1]}', "a text"),
        ('{"video_id": [], "class_indexes": [1], "predictions": [1]}', "a text"),
        ('{"video_id": "a", "class_indexes": [], "predictions": []}', "0 class"),
        ('{"video_id": "a", "class_indexes": [1, 2], "predictions": [1]}', "2 class"),
        ('{"video_id": "a", "class_indexes": [1.5], "predictions": [1]}', "whole"),
        ('{"video_id": "a", "class_indexes": [true], "predictions": [1]}', "whole"),
        ('{"video_id": "a", "class_indexes": [-1], "predictions": [1]}', "whole"),
        ('{"video_id": "a", "class_indexes": [1], "predictions": ["1"]}', "finite"),
        ('{"video_id": "a", "class_indexes": [1], "predictions": [NaN]}', "finite"),
        ('{"video_id": "\\ud800", "class_indexes": [1], "predictions": [1]}', "encode"),
    ],
)
def test_a_line_that_is_no_prediction_is_named_and_nothing_is_written(
    tmp_path, line, said
):
    path = tmp_path / "in.json"
    path.write_text(json.dumps(PLAIN) + "\n\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        convert([str(path)], str(tmp_path / "out.csv"))
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.json"]


def test_an_id_that_would_break_the_csv_is_refused(tmp_path):
    with pytest.raises(DataError, match="a,b"):
        converted(tmp_path, {**PLAIN, "video_id": "a,b"})
    assert not (tmp_path / "out.csv").exists()


def test_a_video_that_is_there_twice_is_named(tmp_path):
    text = json.dumps(PLAIN) + "\n"
    (tmp_path / "1.json").write_text(text)
    (tmp_path / "2.json").write_text(text)
    files = [str(tmp_path / name) for name in ("1.json", "2.json")]
    with pytest.raises(DataError, match=f"2.json: video {PLAIN['video_id']} is there"):
        convert(files, str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_missing_files_and_flags_are_named(tmp_path, capsys):
    output = f"--csv_output_file={tmp_path}/out.csv"
    pattern = f"--json_prediction_files_pattern={tmp_path}/*.json"
    assert command("convert-predictions", [output, pattern]) == 1
    assert f"No file matches {pattern}" in capsys.readouterr().err
    assert command("convert-predictions", [output]) == 1
    assert "--json_prediction_files_pattern" in capsys.readouterr().err
    assert command("convert-predictions", [pattern]) == 1
    assert "--csv_output_file" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        convert([str(tmp_path / "absent.json")], str(tmp_path / "out.csv"))


def test_a_file_far_larger_than_a_block_is_read_in_bounded_memory(tmp_path):
    path, count = tmp_path / "in.json", 3000
    padding = "x" * 5000
    with open(path, "w") as f:
        for i in range(count):
            f.write(json.dumps({**PLAIN, "video_id": f"v{i}", "more": padding}) + "\n")
    assert path.stat().st_size > 15_000_000
    tracemalloc.start()
    try:
        total = sum(1 for _ in read_json_predictions(str(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == count
    assert peak < 6_000_000


def test_a_line_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("yt8m.inference.json_predictions._MAX_LINE_BYTES", 100)
    monkeypatch.setattr("yt8m.inference.json_predictions._BLOCK_BYTES", 64)
    path = tmp_path / "in.json"
    path.write_text("\n" + "[" * 1000)
    with pytest.raises(DataError, match="line 2: longer than 100 bytes"):
        list(read_json_predictions(str(path)))
