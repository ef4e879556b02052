"""Paths on other machines: buckets, web servers, and what is said without a plug-in.

Where tensorflow-io is installed (`make test-io`) shards are read over HTTP; elsewhere
the tests are of what is said about it.
"""

import contextlib
import http.server
import importlib.util
import pathlib
import re
import sys
import threading
import types

import numpy as np
import pytest
import tensorflow as tf

from cloud_storage import cloud_storage
from yt8m import remote, runs
from yt8m.cli import main
from yt8m.data.files import list_files
from yt8m.data.records import encode_video_record, write_records
from yt8m.errors import UserError
from yt8m.inference.submission import read_submission

RNG = np.random.default_rng(0)
HAS_TENSORFLOW_IO = importlib.util.find_spec("tensorflow_io") is not None
FEATURES = ["--feature_names=mean_rgb", "--feature_sizes=8", "--num_classes=5"]


def write_shards(folder: str) -> list[str]:
    """Three shards of 10 videos, train08 .. train10."""
    for shard in (8, 9, 10):
        write_records(
            f"{folder}/train{shard:02}.tfrecord",
            (
                encode_video_record(
                    f"v{shard}{i}", {"mean_rgb": RNG.normal(size=8)}, [i % 5]
                )
                for i in range(10)
            ),
        )
    return [f"v{shard}{i}" for shard in (8, 9, 10) for i in range(10)]


def command(name: str, *arguments: str) -> int:
    return main.run(name, list(arguments))


def last_error(capsys) -> str:
    """The line with which a command refused."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train: ")
    return line


def predicted(path: str) -> list[str]:
    """The ids in a submission."""
    return [video_id.decode() for video_id, _, _ in read_submission(path)]


def train(pattern: str, directory: str, *more: str) -> int:
    return command(
        "train",
        "--model=LogisticModel",
        f"--train_data_pattern={pattern}",
        f"--train_dir={directory}",
        "--batch_size=6",
        *FEATURES,
        *more,
    )


@contextlib.contextmanager
def web_server(folder: pathlib.Path, ranges: bool = True):
    """Serves the files of `folder`; gives its URL and the ranges asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            path, status = folder / self.path.lstrip("/"), 200
            data = path.read_bytes() if path.is_file() else b""
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not path.is_file():
                status = 404
            elif wanted and ranges:
                asked.append(wanted[0])
                first, last = int(wanted[1]), int(wanted[2])
                status = 206 if first < len(data) else 416
                data = data[first : last + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            # A client that wants the size only does not wait for the rest.
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


# --- names of files ------------------------------------------------------------------


def test_a_range_of_numbers_stands_for_each_of_them(tmp_path):
    write_shards(str(tmp_path))
    (tmp_path / "train11.tfrecord").touch()
    files = list_files(f"{tmp_path}/t*{{08..10}}*,{tmp_path}/train09.tfrecord", "--x")
    assert [path[-11:-9] for path in files] == ["08", "09", "10"]
    files = list_files(f"{tmp_path}/train{{1..1}}{{0..1}}.tfrecord", "--x")
    assert [path[-11:-9] for path in files] == ["10", "11"]


def test_what_matches_nothing_is_named(tmp_path):
    write_shards(str(tmp_path))
    for part in ("train{08..11}.tfrecord", "train08.tfrecord,{dir}/train11.tfrecord"):
        pattern = f"{tmp_path}/{part}".replace("{dir}", str(tmp_path))
        with pytest.raises(UserError, match="there is no .*/train11.tfrecord"):
            list_files(pattern, "--x")
    with pytest.raises(UserError, match="the range {9..8} is empty"):
        list_files(f"{tmp_path}/train{{9..8}}", "--x")


def test_a_file_system_that_nobody_knows_is_named(capsys):
    assert train("abc://host/train*.tfrecord", "unused") == 1
    assert "knows no abc://" in last_error(capsys)


# --- Google Cloud Storage ------------------------------------------------------------


def test_a_run_and_its_predictions_live_in_a_bucket(monkeypatch, tmp_path, capsys):
    with cloud_storage() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        remote._gcs_problem.cache_clear()
        ids = write_shards("gs://bucket/data")
        data, run = "gs://bucket/data/train*.tfrecord", "gs://bucket/run"
        assert train(data, run, "--max_steps=2") == 0
        assert train(data, run, "--max_steps=3") == 0
        assert "Resuming from step 2" in capsys.readouterr().err
        assert runs.Checkpoints(run).latest().step == 3
        written = tf.io.gfile.glob(f"{run}/events/*/events*")
        assert written and tf.io.gfile.exists(f"{run}/metrics.csv")
        flags = [f"--train_dir={run}", f"--input_data_pattern={data}"]
        assert (
            command("eval", flags[0], "--run_once", f"--eval_data_pattern={data}") == 0
        )
        output, export = "gs://bucket/predictions.csv.gz", "gs://bucket/export"
        again = f"{tmp_path}/again.csv"
        assert command("inference", *flags, f"--output_file={output}") == 0
        assert predicted(output) == ids
        assert command("export", flags[0], f"--output_dir={export}") == 0
        exported = [flags[1], f"--saved_model={export}"]
        assert command("inference", *exported, f"--output_file={again}") == 0
        assert predicted(again) == ids


def test_shards_are_made_in_a_bucket_and_nothing_there_is_replaced(monkeypatch, capsys):
    with cloud_storage() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        remote._gcs_problem.cache_clear()
        write_records("gs://bucket/own/train0000.tfrecord", [b"somebody's"])
        sizes = ["--num_videos=6", "--num_classes=4", "--feature_sizes=32,32"]
        sizes += ["--kinds=static", "--max_frames=9", "--num_shards=1"]
        assert command("synthesize", "--output_dir=gs://bucket/own", *sizes) == 1
        assert "was not made by this command" in capsys.readouterr().err
        for level in ("frame", "video"):
            made = [f"--output_dir=gs://bucket/{level}", f"--level={level}"]
            for _ in range(2):  # its own it replaces
                assert command("synthesize", *made, *sizes) == 0
        assert tf.io.gfile.exists("gs://bucket/frame/classes.csv")
        data = "--input_data_pattern=gs://bucket/video/*.tfrecord"
        expand = ["expand", data, "--output_dir=gs://bucket/expanded"]
        assert command(*expand) == 0 and command(*expand) == 1
        assert "exists already" in capsys.readouterr().err
        data = "--input_data_pattern=gs://bucket/expanded/*.tfrecord"
        found = "gs://bucket/k/centroids.npz"
        clusters = ["clusters", data, "--clusters=2", f"--output_file={found}"]
        assert command(*clusters, "--feature_sizes=32,32") == 0
        statistics = ["statistics", data, f"--centroids={found}", "--num_workers=1"]
        assert command(*statistics, "--output_dir=gs://bucket/statistics") == 0
        (path,) = tf.io.gfile.glob("gs://bucket/statistics/*.tfrecord")
        assert len(list(tf.data.TFRecordDataset(path))) == 6


def test_a_bucket_out_of_reach_is_one_line_and_no_minutes(monkeypatch, capsys):
    remote._gcs_problem.cache_clear()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert train("gs://bucket/train*.tfrecord", "unused") == 1
    assert "Google Cloud Storage cannot be reached" in last_error(capsys)
    remote._gcs_problem.cache_clear()


# --- web servers ---------------------------------------------------------------------


def test_a_web_server_must_have_the_file_and_honour_ranges(tmp_path):
    (tmp_path / "full").write_bytes(b"abc")
    (tmp_path / "empty").touch()
    with web_server(tmp_path) as (url, asked):
        remote.check_url(f"{url}/full", "--x")
        remote.check_url(f"{url}/empty", "--x")
        assert asked == ["bytes=0-0"] * 2
        with pytest.raises(UserError, match=f"--x: {url}/none cannot be read: .*404"):
            remote.check_url(f"{url}/none", "--x")
    with pytest.raises(UserError, match=f"{url}/full cannot be read: .*refused"):
        remote.check_url(f"{url}/full", "--x")
    with (
        web_server(tmp_path, ranges=False) as (url, _),
        pytest.raises(UserError, match=f"{url}/full does not honour Range requests"),
    ):
        remote.check_url(f"{url}/full", "--x")


def test_wildcards_are_refused_for_web_servers():
    with pytest.raises(UserError, match="lists no files.*0000..0099"):
        remote.check_url("http://host/train*.tfrecord", "--x")


if HAS_TENSORFLOW_IO:

    def test_shards_are_trained_on_scored_and_predicted_over_http(tmp_path, capsys):
        ids = write_shards(str(tmp_path))
        run, output = f"{tmp_path}/run", f"{tmp_path}/predictions.csv"
        with web_server(tmp_path) as (url, asked):
            data = f"{url}/train{{08..10}}.tfrecord"
            validated = f"--eval_data_pattern={data}"
            assert train(data, run, "--num_epochs=2", validated) == 0
            assert runs.Checkpoints(run).latest().step == 10
            flags = [f"--train_dir={run}", f"--input_data_pattern={data}"]
            scored = [flags[0], "--run_once", validated]
            assert command("eval", *scored) == 0
            assert "30 videos" in capsys.readouterr().out
            assert command("inference", *flags, f"--output_file={output}") == 0
            assert predicted(output) == ids
            assert command("score", output, f"--labels={data}", FEATURES[2]) == 0
            assert len(asked) > 30
            missing = f"{url}/train08.tfrecord,{url}/train07.tfrecord"
            assert train(missing, f"{tmp_path}/other") == 1
            assert "train07.tfrecord cannot be read" in last_error(capsys)
        with web_server(tmp_path, ranges=False) as (url, _):
            assert train(f"{url}/train08.tfrecord", f"{tmp_path}/other") == 1
            assert "does not honour Range requests" in last_error(capsys)

    def test_the_file_systems_of_tensorflow_io_are_there_once_asked_for():
        remote.prepare("s3://bucket/a, az://account/b,hdfs://host/c", "--x")
        known = tf.io.gfile.get_registered_schemes()
        assert {"http", "https", "s3", "az", "hdfs"} <= set(known)

else:

    @pytest.mark.parametrize("scheme", ["http", "https", "s3", "az", "hdfs"])
    def test_without_tensorflow_io_the_error_says_what_to_install(scheme, capsys):
        assert train(f"{scheme}://host/train00.tfrecord", "unused") == 1
        error = last_error(capsys)
        assert f"--train_data_pattern={scheme}://host/train00.tfrecord" in error
        assert "is not installed" in error
        assert "pip install -e .[io]" in error and "TensorFlow 2.16" in error

    def test_a_tensorflow_io_that_does_not_load_is_told_apart(monkeypatch, capsys):
        # Its import succeeds, with warnings, and registers nothing.
        module = types.ModuleType("tensorflow_io")
        monkeypatch.setitem(sys.modules, "tensorflow_io", module)
        assert train("s3://bucket/train*.tfrecord", "unused") == 1
        error = last_error(capsys)
        assert f"does not load with TensorFlow {tf.__version__}" in error
        assert "pip install -e .[io]" in error
