"""Outputs that cannot be written are refused before anything is computed."""

import contextlib
import resource

import numpy as np
import pytest

from yt8m.cli import main
from yt8m.data.array_files import save_arrays
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import UserError

CSV = "VideoId,LabelConfidencePairs\nv0,1 0.5 2 0.25\nv1,1 0.5 2 0.25\n"
# The command, and the flag that names a file to write.
COMMANDS = {
    "count": ("count --input_data_pattern={shard}", "per_class"),
    "count segments": ("count --segments --input_data_pattern={shard}", "output_file"),
    "correlate": ("correlate --train_data_pattern={shard}", "output_file"),
    "score": ("score {csv} --labels={shard}", "output_file"),
    "score classes": ("score {csv} --labels={shard}", "per_class"),
    "normalization": (
        "normalization --feature_names=mean_rgb --feature_sizes=4 "
        "--input_data_pattern={shard}",
        "output_file",
    ),
    "clusters": (
        "clusters --feature_names=rgb --input_data_pattern={shard}",
        "output_file",
    ),
    "calibrate": ("calibrate --source={csv} --labels={shard}", "output_file"),
    "ensemble": ("ensemble --sources={csv}", "output_file"),
    "merge": ("merge --input_files={csv}", "output_file"),
    "convert-predictions": (
        "convert-predictions --json_prediction_files_pattern={csv}",
        "csv_output_file",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_said_first(tmp_path, capsys, name):
    paths = {"shard": f"{tmp_path}/shard", "csv": f"{tmp_path}/a.csv"}
    records = [
        encode_video_record(f"v{i}", {"mean_rgb": np.arange(4.0)}, [1])
        for i in range(2)
    ]
    write_records(paths["shard"], records)
    with open(paths["csv"], "w") as f:
        f.write(CSV)
    line, flag = COMMANDS[name]
    words = line.format(**paths).split()
    own = paths["shard" if "{shard}" in line and "{csv}" not in line else "csv"]
    cases = [
        (str(tmp_path), "is a folder: give the name of a file"),
        (f"{tmp_path}/new/", "is a folder: give the name of a file"),
        (f"{own}/below/x", "cannot be written"),
        (own, "also"),  # one of the inputs
    ]
    for path, said in cases:
        assert main.run(words[0], [*words[1:], f"--{flag}={path}"]) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert f"--{flag}={path}" in error and said in error
    assert {p.name for p in tmp_path.iterdir()} == {"shard", "a.csv"}


def test_a_missing_folder_is_made(tmp_path):
    shard, output = f"{tmp_path}/shard", tmp_path / "new" / "folder" / "x.csv"
    write_records(shard, [encode_video_record("v", {"mean_rgb": np.zeros(4)}, [1])])
    flags = [f"--input_data_pattern={shard}", f"--per_class={output}"]
    assert main.run("count", flags) == 0
    assert output.read_text().startswith("Index,Videos")


@contextlib.contextmanager
def full_disk(limit=1 << 12):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with full_disk(), pytest.raises(UserError, match="x.npz cannot be written: .*larg"):
        save_arrays(f"{tmp_path}/x.npz", values=np.zeros(10_000))
    record = encode_video_record("v", {"mean_rgb": np.zeros(1000)}, [1])
    with full_disk(), pytest.raises(UserError, match="shard cannot be written: .*larg"):
        write_records(f"{tmp_path}/shard", [record] * 1000)
    assert not list(tmp_path.iterdir())
