"""Options of segment inference, alone and together, against windows read one by one."""

import json
import os

import numpy as np
import pytest

from test_predict_segments import (
    CLASSES,
    SHARDS,
    VIDEOS,
    WANTED,
    make_segment_run,
)
from yt8m import runs
from yt8m.cli import main
from yt8m.data.predictions import PredictionsWriter
from yt8m.data.records import encode_frame_record, write_records
from yt8m.data.segments import write_class_ids
from yt8m.export import export
from yt8m.inference import predict as predict_module
from yt8m.inference.listing import merge_windows
from yt8m.model import forward

runs.load_registries()
VIDEO_P = {
    name: p
    for name, p in zip(
        VIDEOS,
        np.random.default_rng(2).uniform(0.01, 1, (len(VIDEOS), CLASSES)),
        strict=True,
    )
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, a run, its export, class ids, predictions of the videos, names."""
    folder = tmp_path_factory.mktemp("options")
    for shard in range(len(SHARDS)):
        own = [(i, v) for i, v in VIDEOS.items() if i.startswith(f"s{shard}")]
        write_records(
            str(folder / f"{shard}.tfrecord"),
            [encode_frame_record(i, v, [1]) for i, v in own],
        )
    run = make_segment_run(folder / "run", "FrameLevelLogisticModel")
    export(run, str(folder / "export"))
    write_class_ids(str(folder / "ids.csv"), WANTED)
    with PredictionsWriter(str(folder / "videos.predictions"), CLASSES) as writer:
        ids = [name.encode() for name in VIDEOS]
        writer.write(ids, np.array(list(VIDEO_P.values()), np.float32))
    (folder / "names.csv").write_text("Index,Name\n1,Game\n2,Music\n")
    (folder / "table.csv").write_text("Class,Other,Weight\n1,5,3\n2,1,-2\n")
    return folder


@pytest.fixture(scope="module")
def logits_of(folder):
    """Gives the logits [K] of a window of a video, computed alone and kept."""
    model, kept = runs.load_run(str(folder / "run")).model, {}

    def logits(video: str, start: int) -> np.ndarray:
        if (video, start) not in kept:
            window = {k: v[None, start : start + 5] for k, v in VIDEOS[video].items()}
            window["num_frames"] = np.array([window["rgb"].shape[1]], np.int32)
            found = forward(model, window)["logits"].numpy()[0]
            kept[video, start] = found[WANTED].astype(np.float64)
        return kept[video, start]

    return logits


def expected_scores(
    logits_of, stride=5, shifts=(0,), average="probabilities", drop=(0, 0), power=None,
    cutoff=0.0, table=False,
):  # fmt: skip
    """The score [K] of each segment that is ranked, in the order of the records."""
    scores = {}
    for video, features in VIDEOS.items():
        frames = len(features["rgb"])
        for start in range(0, frames, stride):
            if not drop[0] <= start // 5 < -(-frames // 5) - drop[1]:
                continue
            latest = max(start, frames - 5)
            windows = [min(max(start + s, 0), latest) for s in shifts]
            x = np.array([logits_of(video, window) for window in windows])
            if average == "probabilities":
                p = (1 / (1 + np.exp(-x))).mean(axis=0)
            else:
                p = 1 / (1 + np.exp(-x.mean(axis=0)))
            of_video = VIDEO_P[video][WANTED]
            before, p = p, p if power is None else p * of_video**power
            score = np.log(p / (1 - p))
            if table:  # classes 1, 2, 5
                score = score + [3 * before[2], -2 * before[0], 0]
            if power is not None:
                score[of_video < cutoff] = -np.inf
            scores[f"{video}:{start}"] = score
    return scores


def ranking_of(scores, most=None) -> str:
    lines = ["Class,Segments"]
    for column, label in enumerate(WANTED):
        listed = [s for s in scores if scores[s][column] > -np.inf]
        best = sorted(listed, key=lambda s: -scores[s][column])[:most]
        if best:
            lines.append(f"{label},{' '.join(best)}")
    return "\n".join(lines) + "\n"


def command(folder, output, *flags, model="--train_dir={}/run") -> int:
    return main.run(
        "inference",
        [
            "--segment_labels",
            f"--input_data_pattern={folder}/?.tfrecord",
            f"--segment_label_ids_file={folder}/ids.csv",
            f"--output_file={output}",
            "--batch_size=4",
            model.format(folder),
            *flags,
        ],
    )


PRIOR = "--video_predictions={}/videos.predictions"
CASES = {
    "stride": (["--segment_stride=2"], {"stride": 2}),
    "shifts": (["--segment_shifts=-2,-1,0,1,2"], {"shifts": (-2, -1, 0, 1, 2)}),
    "logits": (
        ["--segment_shifts=0,3", "--segment_average=logits"],
        {"shifts": (0, 3), "average": "logits"},
    ),
    "drop": (["--segment_drop_first=1", "--segment_drop_last=1"], {"drop": (1, 1)}),
    "prior": ([PRIOR], {"power": 1}),
    "power and cut-off": (
        [PRIOR, "--video_power=0.5", "--video_cutoff=0.4"],
        {"power": 0.5, "cutoff": 0.4},
    ),
    "relevance": (["--class_relevance={}/table.csv"], {"table": True}),
    "all": (
        [
            "--segment_stride=1",
            "--segment_shifts=-2,0,2",
            "--segment_drop_first=1",
            PRIOR,
            "--video_cutoff=0.3",
            "--class_relevance={}/table.csv",
        ],
        {
            "stride": 1, "shifts": (-2, 0, 2), "drop": (1, 0), "power": 1,
            "cutoff": 0.3, "table": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_option_ranks_what_windows_read_alone_say(
    folder, logits_of, tmp_path, monkeypatch, case
):
    flags, options = CASES[case]
    flags = [flag.format(folder) for flag in flags]
    monkeypatch.setattr(predict_module, "_WINDOWS_AT_ONCE", 7)
    assert command(folder, tmp_path / "s.csv", *flags) == 0
    scores = expected_scores(logits_of, **options)
    text = (tmp_path / "s.csv").read_text()
    assert text == ranking_of(scores)
    assert text != ranking_of(expected_scores(logits_of))


def test_all_options_work_with_parts_merged_with_exports_and_with_few_segments(
    folder, logits_of, tmp_path
):
    flags = [flag.format(folder) for flag in CASES["all"][0]]
    scores = expected_scores(logits_of, **CASES["all"][1])
    for i in range(2):
        part = ["--num_shards=2", f"--shard_index={i}"]
        assert command(folder, tmp_path / "part.csv", *flags, *part) == 0
    assert main.run(
        "merge",
        [f"--input_files={tmp_path}/part-*", f"--output_file={tmp_path}/merged.csv"],
    ) == 0  # fmt: skip
    assert (tmp_path / "merged.csv").read_text() == ranking_of(scores)
    saved = "--saved_model={}/export"
    few = [*flags, "--segment_max_pred=5"]
    assert command(folder, tmp_path / "saved.csv", *few, model=saved) == 0
    assert (tmp_path / "saved.csv").read_text() == ranking_of(scores, 5)


def test_a_function_sees_whole_videos_whatever_the_batches(
    folder, tmp_path, monkeypatch
):
    hook = tmp_path / "best_only.py"
    hook.write_text(
        "import numpy as np\n"
        "def class_relevance(c):\n"
        "    best = np.full((len(c.video_ids), len(c.classes)), -np.inf)\n"
        "    np.maximum.at(best, c.rows, c.scores)\n"
        "    return np.where(c.scores == best[c.rows], c.scores, -np.inf)\n"
    )
    monkeypatch.setattr(predict_module, "_WINDOWS_AT_ONCE", 2)
    assert command(folder, tmp_path / "s.csv", f"--class_relevance={hook}") == 0
    filled = sum(bool(len(v["rgb"])) for v in VIDEOS.values())
    for line in (tmp_path / "s.csv").read_text().splitlines()[1:]:
        videos = [s.rpartition(":")[0] for s in line.partition(",")[2].split()]
        assert len(videos) == len(set(videos)) == filled  # one segment of each


def test_the_timeline_is_that_of_the_scores_that_are_ranked(
    folder, logits_of, tmp_path
):
    flags, options = CASES["power and cut-off"]
    flags = [flag.format(folder) for flag in flags]
    names = [f"--vocabulary={folder}/names.csv", f"--names={tmp_path}/t.json"]
    names += ["--top_k=2", "--segment_shifts=0,1"]
    assert command(folder, tmp_path / "s.csv", *flags, *names) == 0
    scores = expected_scores(logits_of, **options, shifts=(0, 1))
    lines = [json.loads(line) for line in (tmp_path / "t.json").read_text().split("\n")
             if line]  # fmt: skip
    assert [line["video_id"] for line in lines] == list(VIDEOS)
    dropped = 0
    for line in lines:
        spans = line["segments"]
        assert spans == sorted(spans, key=lambda s: (s["start"], -s["score"]))
        found = {}
        for span in spans:
            for start in range(span["start"], span["end"], 5):
                found.setdefault(start, set()).add(span["class"])
        for start, classes in found.items():
            own = scores[f"{line['video_id']}:{start}"]
            best = sorted(range(3), key=lambda c: -own[c])[:2]
            assert classes == {int(WANTED[c]) for c in best if own[c] > -np.inf}
            dropped += len(classes) < 2
        for span in spans:
            starts = range(span["start"], span["end"], 5)
            column = WANTED.tolist().index(span["class"])
            own = [scores[f"{line['video_id']}:{start}"][column] for start in starts]
            p = 1 / (1 + np.exp(-max(own)))
            assert span["score"] == pytest.approx(p, rel=2e-3)
    assert dropped
    assert sorted(os.listdir(tmp_path)) == ["s.csv", "t.json"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--segment_shifts=0,x"], "--segment_shifts=0,x must be whole seconds"),
        (["--segment_shifts="], "--segment_shifts must name at least one shift"),
        (["--segment_average=logits"], "is given without --segment_shifts"),
        (["--video_power=2"], "--video_power is given without --video_predictions"),
        (["--video_cutoff=0.1"], "--video_cutoff is given without --video_pre"),
        (["--video_predictions=/none"], "/none holds no predictions"),
        (["--class_relevance=x.txt"], "must end in .csv or .py"),
        (["--nosegment_labels", "--segment_stride=1"], "without --segment_labels"),
        (["--nosegment_labels", "--class_relevance=x"], "without --segment_labels"),
    ],
)
def test_flags_that_cannot_be_are_one_clear_line(
    folder, tmp_path, capsys, flags, message
):
    assert command(folder, tmp_path / "s.csv", *flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert os.listdir(tmp_path) == []


def test_a_video_that_is_not_in_the_predictions_is_named(folder, tmp_path, capsys):
    with PredictionsWriter(str(tmp_path / "few.predictions"), CLASSES) as writer:
        writer.write([b"s0v0"], np.full((1, CLASSES), 0.5, np.float32))
    few = f"--video_predictions={tmp_path}/few.predictions"
    assert command(folder, tmp_path / "s.csv", few) == 1
    assert "few.predictions has no video s0v1" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["few.predictions"]


def test_overlapping_segments_of_a_class_become_one_span():
    windows = [
        (0, 5, [1, -1], [0.5, 0.0]),
        (2, 7, [1, 2], [0.75, 0.25]),
        (8, 13, [1, 2], [0.5, 0.125]),
        (10, 12, [2, -1], [0.5, 0.0]),
    ]
    assert merge_windows(windows) == [
        (0, 7, 1, 0.75),
        (2, 7, 2, 0.25),
        (8, 13, 1, 0.5),
        (8, 13, 2, 0.5),
    ]
