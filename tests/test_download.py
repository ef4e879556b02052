"""Downloading from a server on this machine that also misbehaves."""

import collections
import email.utils
import errno
import fcntl
import hashlib
import http.server
import io
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import string
import threading
import time

import pytest

from yt8m.cli.main import run
from yt8m.data import download
from yt8m.data.download import (
    DATASET_URL,
    Downloader,
    Shard,
    number_letters,
    parse_plan,
    retry_delay,
    take_share,
)
from yt8m.errors import DataError, UserError

NAMES = ["trainaa.tfrecord", "trainaA.tfrecord", "trainzQ.tfrecord"]
FOLDER = "/2/frame/train"
PLAN = "/2/download_plans/frame_train.json"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# --- a server that can be told to misbehave ------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `contents`; the next answers for a path are those of `faults`, if any."""

    daemon_threads = True

    def __init__(self, names=NAMES, size=3000):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        rng = random.Random(0)
        self.files = {name: rng.randbytes(size + i) for i, name in enumerate(names)}
        plan = {"files": {name: md5(content) for name, content in self.files.items()}}
        self.contents = {f"{FOLDER}/{name}": c for name, c in self.files.items()}
        self.contents[PLAN] = json.dumps(plan).encode()
        self.faults = collections.defaultdict(list)  # for GET, by path
        self.always = {}  # the same, for every GET
        self.heads = True
        self.requests = []  # method, path, Range
        self.released = threading.Event()  # ends the silence of `stall`

    def fail(self, name, *faults):
        self.faults[f"{FOLDER}/{name}"] += faults

    def fail_always(self, name, fault):
        self.always[f"{FOLDER}/{name}"] = fault

    def ranges(self, name):
        """The Range headers of the GET requests for a file, in order."""
        path = f"{FOLDER}/{name}"
        return [r for m, p, r in self.requests if (m, p) == ("GET", path)]

    def handle_error(self, request, client_address):
        """Clients that hang up are what the tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.server.requests.append(("HEAD", self.path, None))
        if not self.server.heads:
            return self.send_error(405)
        content = self.server.contents.get(self.path)
        if content is None:
            return self.send_error(404)
        self.head(200, {"Content-Length": len(content)})

    def do_GET(self):
        self.server.requests.append(("GET", self.path, self.headers["Range"]))
        faults = self.server.faults[self.path]
        fault = self.server.always.get(self.path) or (faults.pop(0) if faults else good)
        content = self.server.contents.get(self.path)
        if content is None:
            return self.send_error(404)
        fault(self, content)

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def start(self, content):
        """Sends the headers for the range asked; returns the bytes to send."""
        asked = self.headers["Range"]
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if first >= len(content):
            self.head(416, {"Content-Range": f"bytes */{len(content)}"})
            return b""
        headers = {"Content-Length": len(content) - first}
        if asked:
            end = len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        self.head(206 if asked else 200, headers)
        return content[first:]


def good(handler, content):
    handler.wfile.write(handler.start(content))


def cut(count):
    """Hangs up after `count` bytes."""

    def fault(handler, content):
        handler.wfile.write(handler.start(content)[:count])

    return fault


def stall(count):
    """Falls silent after `count` bytes."""

    def fault(handler, content):
        handler.wfile.write(handler.start(content)[:count])
        handler.server.released.wait(30)

    return fault


def no_range(count=None):
    """Knows no Range: sends the file from its start, or the first `count` bytes."""

    def fault(handler, content):
        handler.head(200, {"Content-Length": len(content)})
        handler.wfile.write(content[:count])

    return fault


def content_range(text, content_of=lambda content: content):
    """Answers 206 with this Content-Range."""

    def fault(handler, content):
        body = content_of(content)
        headers = {"Content-Range": text} if text else {}
        handler.head(206, headers | {"Content-Length": len(body)})
        handler.wfile.write(body)

    return fault


def status(code, **headers):
    def fault(handler, content):
        handler.head(code, {k.replace("_", "-"): v for k, v in headers.items()})

    return fault


def corrupt(handler, content):
    handler.wfile.write(handler.start(bytes(len(content))))


def hang_up(handler, content):
    handler.close_connection = True


def endless(count):
    """Tells no length; hangs up after `count` bytes."""

    def fault(handler, content):
        handler.head(200, {})
        handler.wfile.write(content[:count])

    return fault


def chunked(count):
    """Sends chunks, and not the last ones after `count` bytes."""

    def fault(handler, content):
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        handler.head(200, {"Transfer-Encoding": "chunked"})
        pieces = [content[i : i + 700] for i in range(0, len(content), 700)] + [b""]
        for piece in pieces[:count]:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    return fault


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def downloader(server, **settings) -> Downloader:
    quick = {"first_delay": 1e-3, "longest_delay": 1e-2, "retries": 3, "timeout": 10}
    return Downloader("2/frame/train", server.url, server.url, **(quick | settings))


def fetch(server, output_dir, **settings):
    """Downloads everything through the Python interface."""
    made = downloader(server, **settings)
    return made.download(made.read_plan(), str(output_dir))


def command(server, *arguments, partition="2/frame/train") -> int:
    common = [f"--partition={partition}", f"--base_url={server.url}", "--retries=0"]
    return run("download", [*common, *arguments])


def assert_complete(server, output_dir, but=()):
    """Every file is there under its number, whole, and nothing else is."""
    expected = {number_letters(n): c for n, c in server.files.items() if n not in but}
    found = {p.name: p.read_bytes() for p in pathlib.Path(output_dir).iterdir()}
    assert found == expected


# --- plans, names, shares ------------------------------------------------------------


def test_two_letters_become_their_number_in_base_62():
    letters = string.ascii_lowercase + string.ascii_uppercase + string.digits
    pairs = itertools.product(letters, repeat=2)
    for i, (first, second) in enumerate(pairs):
        assert number_letters(f"test{first}{second}.tfrecord") == f"test{i:04}.tfrecord"
    assert i == 3843
    assert number_letters("trainaA.tfrecord") == "train0026.tfrecord"
    assert number_letters("validate0d.tfrecord") == "validate3227.tfrecord"


def test_real_shards_bear_the_number_of_the_letters_that_end_their_ids(real_data):
    import tensorflow as tf

    for number in ("0000", "0013", "0105", "3227"):
        path = real_data / "video" / "validate" / f"validate{number}.tfrecord"
        record = next(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        example = tf.train.Example.FromString(record)
        letters = example.features.feature["id"].bytes_list.value[0].decode()[-2:]
        assert number_letters(f"validate{letters}.tfrecord") == path.name


def test_names_of_2017_stay_as_they_are():
    names = ["train-0.tfrecord", "train--.tfrecord", "trainaa.tfrecord"]
    plan = {"files": dict.fromkeys(names, "0" * 32)}
    shards = parse_plan(json.dumps(plan).encode(), "plan")
    assert [s.file_name for s in shards] == sorted(names)
    assert all(s.name == s.file_name for s in shards)


def test_a_share_is_chosen_by_the_md5_of_the_name():
    # From md5sum: 3a5c...39c9 is 37 modulo 100, 07a2...b211 is 61.
    shards = [Shard(name, name, "0" * 32) for name in NAMES[:2]]
    assert take_share(shards, 38, 100) == shards[:1]
    assert take_share(shards, 62, 100) == shards[1:]
    shards = [Shard(f"train{i}.tfrecord", "", "") for i in range(50)]
    for count in (1, 3, 50):
        shares = [take_share(shards, i + 1, count) for i in range(count)]
        assert sorted(s.name for share in shares for s in share) == sorted(
            s.name for s in shards
        )
        for i, share in enumerate(shares):
            assert all(int(md5(s.name.encode()), 16) % count == i for s in share)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"<html>Log in</html>", "is not a download plan"),
        (b"\xff\xfe", "is not a download plan"),
        (b"[]", "is not a download plan"),
        (b"{}", "is not a download plan"),
        (b'{"files": ["trainaa.tfrecord"]}', "is not a download plan"),
        (b'{"files": {"trainaa.tfrecord": 5}}', "is not a download plan"),
        (b'{"files": {}}', "names no file"),
        (b'{"files": {"trainaa.tfrecord": "12"}}', "MD5 of trainaa.tfrecord is '12'"),
        (b'{"files": {"../aa.tfrecord": "%s"}}' % (b"0" * 32), "'../aa.tfrecord'"),
        (b'{"files": {"/tmp/aa": "%s"}}' % (b"0" * 32), "'/tmp/aa'"),
        (b'{"files": {"..": "%s"}}' % (b"0" * 32), "'..'"),
    ],
)
def test_what_is_no_plan_is_one_line_that_names_it(
    server, tmp_path, capsys, text, named
):
    with pytest.raises(DataError, match="plan.json"):
        parse_plan(text, "plan.json")
    server.contents[PLAN] = text
    assert command(server, f"--output_dir={tmp_path}") == 1
    error = capsys.readouterr().err
    assert named in error and PLAN in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_plan_is_one_line(server, tmp_path, capsys):
    arguments = [f"--output_dir={tmp_path}"]
    assert command(server, *arguments, partition="3/frame/train") == 1
    error = capsys.readouterr().err
    assert "--partition=3/frame/train" in error and "HTTP 404" in error
    assert f"{server.url}/3/download_plans/frame_train.json" in error
    assert error.count("\n") == 1


def test_a_plan_is_asked_for_again_if_it_fails_or_is_cut(server):
    server.faults[PLAN] += [status(503), hang_up, cut(20)]
    assert [s.name for s in downloader(server).read_plan()] == NAMES
    assert len(server.requests) == 4


def test_an_endless_plan_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "_MOST_PLAN_BYTES", 50)
    with pytest.raises(DataError, match="is not a download plan"):
        downloader(server).read_plan()


def test_partitions_and_mirrors_have_the_addresses_of_the_dataset():
    default = Downloader("2/frame/train")
    assert default.plan_url == DATASET_URL + PLAN
    assert default.file_url == "http://us.data.yt8m.org/2/frame/train"
    asia = download.MIRROR_URL.format(mirror="asia")
    old = Downloader("1/video_level/validate", file_url=asia)
    plans = "http://data.yt8m.org/1/download_plans"
    assert old.plan_url == f"{plans}/video_level_validate.json"
    assert old.file_url == "http://asia.data.yt8m.org/1/video_level/validate"


# --- the command ---------------------------------------------------------------------


def test_the_command_downloads_checks_and_then_skips(server, tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert command(server, f"--output_dir={folder}") == 0
    output = capsys.readouterr()
    assert "3 files, 3 downloaded, 0 there already, 0 failed; 0.0 MB" in output.out
    assert "files 3 of 3" in output.err
    assert_complete(server, folder)
    server.requests.clear()
    (folder / "train0026.tfrecord").write_bytes(b"not the file")
    assert command(server, f"--output_dir={folder}") == 0
    assert "1 downloaded, 2 there already" in capsys.readouterr().out
    assert_complete(server, folder)
    gets = [path for method, path, _ in server.requests if method == "GET"]
    assert gets == [PLAN, f"{FOLDER}/trainaA.tfrecord"]


def test_files_of_another_partition_are_not_overwritten(server, tmp_path, capsys):
    (tmp_path / "train0000.tfrecord").write_bytes(b"cut short")
    assert command(server, f"--output_dir={tmp_path}") == 0
    assert "train0000.tfrecord: its MD5 is not that" in capsys.readouterr().err
    assert_complete(server, tmp_path)
    others = {"train0000.tfrecord": b"a video", "train0026.tfrecord": b"another"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train1592.tfrecord").unlink()
    assert command(server, f"--output_dir={tmp_path}") == 1
    assert f"{tmp_path} holds 2 files of these names" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == others


def test_a_share_holds_its_files_only(server, tmp_path, capsys):
    shares = {name: int(md5(name.encode()), 16) % 10 + 1 for name in NAMES}
    assert len(set(shares.values())) > 1
    for share in shares.values():
        folder = tmp_path / str(share)
        arguments = [f"--shard={share},10", f"--output_dir={folder}"]
        assert command(server, *arguments) == 0
        assert_complete(server, folder, but=[n for n in NAMES if shares[n] != share])


def test_files_under_the_names_with_letters_are_taken_as_they_are(server, tmp_path):
    name = NAMES[1]
    (tmp_path / name).write_bytes(server.files[name])
    summary = fetch(server, tmp_path)
    assert (summary.downloaded, summary.skipped) == (2, 1)
    assert sorted(os.listdir(tmp_path)) == [
        *("train0000.tfrecord", "train1592.tfrecord"),
        name,
    ]


def test_a_dry_run_counts_files_and_bytes_and_writes_nothing(server, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert command(server, "--dry_run", f"--output_dir={folder}") == 0
    output = capsys.readouterr().out
    assert "2/frame/train: 3 files, 0.0 MB (9,003 bytes)." in output
    assert f"{folder} holds 0.0 MB" in output
    assert not folder.exists()
    assert {method for method, path, _ in server.requests if path != PLAN} == {"HEAD"}
    assert command(server, "--dry_run") == 0
    assert "holds" not in capsys.readouterr().out


def test_a_dry_run_says_how_much_is_there_already(server, tmp_path, capsys):
    names = [f"train{a}{b}.tfrecord" for a in "ab" for b in "xy"]
    for name in names:
        server.contents[f"{FOLDER}/{name}"] = bytes(400_000)
    plan = {"files": dict.fromkeys(names, md5(bytes(400_000)))}
    server.contents[PLAN] = json.dumps(plan).encode()
    (tmp_path / "train0023.tfrecord").write_bytes(bytes(400_000))  # ax
    (tmp_path / "trainay.tfrecord").write_bytes(bytes(400_000))
    (tmp_path / "train0085.tfrecord.part").write_bytes(bytes(100_000))  # bx
    (tmp_path / "train0086.tfrecord").write_bytes(bytes(399_999))  # by, not whole
    assert command(server, "--dry_run", f"--output_dir={tmp_path}") == 0
    output = capsys.readouterr().out
    assert "4 files, 1.6 MB (1,600,000 bytes)" in output
    assert "holds 0.9 MB of that" in output


def test_a_dry_run_says_that_sizes_are_unknown(server, capsys):
    server.heads = False
    assert command(server, "--dry_run") == 0
    assert "not tell the size of 3 of them" in capsys.readouterr().out


def test_files_of_unknown_size_are_downloaded(server, tmp_path):
    server.heads = False
    assert fetch(server, tmp_path).downloaded == 3
    assert_complete(server, tmp_path)


def test_the_bar_counts_what_comes_and_not_what_is_there(server, tmp_path, capsys):
    sizes = {2_000_000: NAMES[0], 3_300_000: NAMES[1], 4_000_000: NAMES[2]}
    contents = {name: random.Random(0).randbytes(n) for n, name in sizes.items()}
    server.files |= contents
    server.contents |= {f"{FOLDER}/{name}": c for name, c in contents.items()}
    plan = {"files": {name: md5(c) for name, c in contents.items()}}
    server.contents[PLAN] = json.dumps(plan).encode()
    (tmp_path / "train0000.tfrecord").write_bytes(contents[NAMES[0]])
    part = contents[NAMES[1]][:1_000_000]
    (tmp_path / "train0026.tfrecord.part").write_bytes(part)
    summary = fetch(server, tmp_path, num_workers=1)
    assert (summary.downloaded, summary.skipped) == (2, 1)
    assert summary.num_bytes == 6_300_000
    lines = capsys.readouterr().err.splitlines()
    assert "6 of 6 MB (100.0%)" in lines[-1] and "files 3 of 3" in lines[-1]
    assert_complete(server, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--partition"),
        (["--partition=2/frame/training"], "Did you mean 2/frame/train"),
        (["--partition=3/video/train"], "--partition=3/video/train is unknown"),
        (["--partition=2/frame/train"], "--output_dir"),
        (
            ["--partition=2/frame/train", "--output_dir=gs://mine/frame"],
            "--output_dir=gs://mine/frame must be local",
        ),
        *(
            (
                ["--partition=2/frame/train", "--output_dir=x", f"--shard={share}"],
                f"--shard={share} must be X,Y",
            )
            for share in ("0,10", "11,10", "5", "a,b", "1,2,3", "")
        ),
        (
            [
                *("--partition=2/frame/train", "--output_dir=x"),
                *("--mirror=eu", "--base_url=http://localhost"),
            ],
            "--mirror",
        ),
        (
            ["--partition=2/frame/train", "--output_dir=x", "--base_url=/mnt/copy"],
            "/mnt/copy must begin with http",
        ),
        (
            [
                *("--partition=2/frame/train", "--output_dir=x"),
                "--base_url=http://localhost:port",
            ],
            "localhost:port",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_flag(
    tmp_path, monkeypatch, capsys, arguments, named
):
    monkeypatch.chdir(tmp_path)
    assert run("download", arguments) == 1
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_mirror_is_one_line_with_the_known_ones(capsys):
    assert run("download", ["--partition=2/frame/train", "--mirror=mars"]) == 2
    assert "us|eu|asia" in capsys.readouterr().err


def test_a_share_without_files_is_one_line(server, tmp_path, capsys):
    taken = {int(md5(name.encode()), 16) % 9 + 1 for name in NAMES}
    free = next(i for i in range(1, 10) if i not in taken)
    assert command(server, f"--shard={free},9", f"--output_dir={tmp_path}") == 1
    assert f"--shard={free},9: none of the 3 files" in capsys.readouterr().err


# --- servers that misbehave ----------------------------------------------------------


def test_a_cut_file_goes_on_from_where_it_was_cut(server, tmp_path):
    server.fail(NAMES[0], cut(1000))
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-"]
    assert_complete(server, tmp_path)


def test_a_file_that_gets_further_is_tried_as_often_as_it_takes(server, tmp_path):
    server.fail(NAMES[0], *[cut(100)] * 20)
    assert fetch(server, tmp_path, retries=1).downloaded == 3
    assert server.ranges(NAMES[0])[-1] == "bytes=2000-"
    assert_complete(server, tmp_path)


def test_without_retries_one_cut_is_a_failure_and_leaves_the_part(
    server, tmp_path, capsys
):
    server.fail(NAMES[0], cut(1000))
    assert command(server, f"--output_dir={tmp_path}") == 1
    output = capsys.readouterr()
    assert "2 downloaded, 0 there already, 1 failed" in output.out
    assert f"{NAMES[0]}: the connection was cut 2,000 bytes before" in output.err
    part = tmp_path / "train0000.tfrecord.part"
    assert part.read_bytes() == server.files[NAMES[0]][:1000]
    assert command(server, f"--output_dir={tmp_path}") == 0
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-"]
    assert_complete(server, tmp_path)


def test_a_large_file_cut_anywhere_is_whole_in_the_end(server, tmp_path):
    content = random.Random(1).randbytes(2_000_000)
    server.files[NAMES[0]] = server.contents[f"{FOLDER}/{NAMES[0]}"] = content
    plan = {"files": {name: md5(c) for name, c in server.files.items()}}
    server.contents[PLAN] = json.dumps(plan).encode()
    server.fail(NAMES[0], cut(1), cut(300_000), cut(1_000_000))
    assert fetch(server, tmp_path).failed == {}
    assert server.ranges(NAMES[0])[-1] == "bytes=1300001-"
    assert_complete(server, tmp_path)


def test_a_server_without_range_sends_the_file_from_its_start(server, tmp_path):
    server.fail(NAMES[0], no_range(1000), no_range())
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-"]
    assert_complete(server, tmp_path)


def test_a_server_without_range_that_always_cuts_is_given_up(server, tmp_path):
    server.fail_always(NAMES[0], no_range(1000))
    summary = fetch(server, tmp_path, retries=2)
    assert list(summary.failed) == [NAMES[0]] and summary.downloaded == 2
    assert len(server.ranges(NAMES[0])) == 3


@pytest.mark.parametrize(
    "text",
    ["bytes 0-2999/3000", "bytes 999-2999/3000", "bytes */3000", "nonsense", None],
)
def test_a_wrong_content_range_starts_the_file_again(server, tmp_path, text):
    server.fail(NAMES[0], cut(1000), content_range(text))
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-", None]
    assert_complete(server, tmp_path)


def test_a_range_sent_in_pieces_is_gone_on_with(server, tmp_path):
    piece = content_range("bytes 1000-1499/3000", lambda content: content[1000:1500])
    server.fail(NAMES[0], cut(1000), piece)
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-", "bytes=1500-"]
    assert_complete(server, tmp_path)


def test_a_range_of_unknown_total_is_taken(server, tmp_path):
    rest = content_range("bytes 1000-2999/*", lambda content: content[1000:])
    server.fail(NAMES[0], cut(1000), rest)
    assert fetch(server, tmp_path).downloaded == 3
    assert_complete(server, tmp_path)


def test_a_part_longer_than_its_file_is_started_again(server, tmp_path):
    part = tmp_path / "train0000.tfrecord.part"
    part.write_bytes(bytes(5000))
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == ["bytes=5000-", None]
    assert_complete(server, tmp_path)


def test_a_part_of_another_file_is_started_again(server, tmp_path):
    part = tmp_path / "train0000.tfrecord.part"
    part.write_bytes(bytes(1000))
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == ["bytes=1000-", None]
    assert_complete(server, tmp_path)


def test_a_whole_part_is_renamed_without_a_request(server, tmp_path):
    part = tmp_path / "train0000.tfrecord.part"
    part.write_bytes(server.files[NAMES[0]])
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == []
    assert_complete(server, tmp_path)


def test_a_wrong_md5_is_fetched_again(server, tmp_path, caplog):
    server.fail(NAMES[0], corrupt)
    assert fetch(server, tmp_path).downloaded == 3
    assert f"{NAMES[0]}: its MD5 is" in caplog.text
    assert_complete(server, tmp_path)


def test_a_file_whose_md5_stays_wrong_is_named_and_not_kept(server, tmp_path, capsys):
    server.fail_always(NAMES[0], corrupt)
    assert fetch(server, tmp_path, retries=2).downloaded == 2
    assert server.ranges(NAMES[0]) == [None] * 3
    assert command(server, f"--output_dir={tmp_path}") == 1
    output = capsys.readouterr()
    assert f"{NAMES[0]}: its MD5 is {md5(bytes(3000))}, by the plan" in output.err
    assert "2 there already, 1 failed" in output.out
    assert_complete(server, tmp_path, but=NAMES[:1])


def test_a_file_that_is_not_there_is_named_and_asked_for_once(server, tmp_path, capsys):
    del server.contents[f"{FOLDER}/{NAMES[1]}"]
    assert command(server, f"--output_dir={tmp_path}", "--retries=5") == 1
    assert f"{NAMES[1]}: HTTP 404 Not Found" in capsys.readouterr().err
    assert server.ranges(NAMES[1]) == [None]
    assert_complete(server, tmp_path, but=NAMES[1:2])


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, tmp_path, code):
    server.fail(NAMES[0], *[status(code, Retry_After=1000)] * 3)
    assert fetch(server, tmp_path).downloaded == 3
    assert len(server.ranges(NAMES[0])) == 4
    assert_complete(server, tmp_path)


def test_a_server_that_stays_busy_is_given_up(server, tmp_path):
    server.fail_always(NAMES[0], status(503))
    summary = fetch(server, tmp_path)
    assert summary.failed == {NAMES[0]: "HTTP 503 Service Unavailable"}
    assert len(server.ranges(NAMES[0])) == 4
    assert_complete(server, tmp_path, but=NAMES[:1])


def test_a_silent_server_is_given_up_and_asked_again(server, tmp_path, caplog):
    server.fail(NAMES[0], stall(1000))
    assert fetch(server, tmp_path, timeout=0.5).downloaded == 3
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-"]
    assert "timed out" in caplog.text
    assert_complete(server, tmp_path)


def test_a_server_that_hangs_up_at_once_is_asked_again(server, tmp_path):
    server.fail(NAMES[0], hang_up, hang_up)
    assert fetch(server, tmp_path).downloaded == 3
    assert_complete(server, tmp_path)


@pytest.mark.parametrize("short, whole", [(1000, None), (0, None)])
def test_a_cut_is_found_by_the_md5_where_no_length_is_told(
    server, tmp_path, short, whole
):
    server.fail(NAMES[0], endless(short), endless(whole))
    assert fetch(server, tmp_path).downloaded == 3
    assert_complete(server, tmp_path)


def test_chunks_are_joined_and_a_missing_one_is_noticed(server, tmp_path):
    server.fail(NAMES[0], chunked(2), chunked(None))
    assert fetch(server, tmp_path).downloaded == 3
    assert server.ranges(NAMES[0]) == [None, "bytes=1400-"]
    assert_complete(server, tmp_path)


def test_a_server_that_is_not_there_is_one_line(server, tmp_path, capsys):
    class Gone:
        url = "http://127.0.0.1:9"

    assert command(Gone, f"--output_dir={tmp_path}") == 1
    error = capsys.readouterr().err
    assert "connection refused" in error and error.count("\n") == 1


def test_delays_double_and_vary_up_to_the_longest():
    for failures, most in ((1, 2.0), (2, 4.0), (4, 16.0), (9, 60.0), (5000, 60.0)):
        delays = {retry_delay(failures, first=2.0, longest=60.0) for _ in range(50)}
        assert max(delays) <= most and min(delays) >= min(most / 2, 60.0)
        assert len(delays) > 1 or most == 60.0
    assert retry_delay(1, retry_after=30.0) == 30.0
    assert retry_delay(1, retry_after=1e9, longest=45.0) == 45.0


def test_retry_after_is_seconds_or_a_date():
    assert download._seconds("120") == 120.0
    soon = email.utils.formatdate(time.time() + 1000, usegmt=True)
    assert 900 < download._seconds(soon) <= 1000
    for text in ("", "soon", "-5", "1e3", "Thu, 01 Jan 1970 00:00:00 GMT", "9" * 400):
        assert download._seconds(text) == 0.0


def test_what_the_server_asks_is_waited_for(server, tmp_path, monkeypatch):
    server.fail(NAMES[0], status(503, Retry_After=7))
    asked = []

    def delay(failures, retry_after, first, longest):
        asked.append((failures, retry_after, first, longest))
        return 0.0

    monkeypatch.setattr(download, "retry_delay", delay)
    assert fetch(server, tmp_path).downloaded == 3
    assert asked == [(1, 7.0, 1e-3, 1e-2)]


# --- the disk, other processes, Ctrl-C -----------------------------------------------


def test_a_file_that_another_process_holds_is_left_to_it(server, tmp_path, capsys):
    part = tmp_path / "train0000.tfrecord.part"
    with open(part, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"theirs")
        other.flush()
        assert command(server, f"--output_dir={tmp_path}") == 1
        error = capsys.readouterr().err
        assert f"{NAMES[0]}: another process is downloading it" in error
        assert part.read_bytes() == b"theirs"
    part.unlink()
    assert_complete(server, tmp_path, but=NAMES[:1])


def test_a_part_renamed_before_it_was_locked_is_not_written_to(
    server, tmp_path, monkeypatch
):
    part, path = tmp_path / "train0000.tfrecord.part", tmp_path / "train0000.tfrecord"
    part.write_bytes(b"theirs")
    theirs = tmp_path / "theirs"
    lock = fcntl.flock

    def late(file, operation):
        if file.name == str(part) and not theirs.exists():
            part.rename(theirs)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert fetch(server, tmp_path, num_workers=1).downloaded == 3
    assert theirs.read_bytes() == b"theirs"
    theirs.unlink()
    assert path.read_bytes() == server.files[NAMES[0]]
    assert_complete(server, tmp_path)


def test_a_file_system_without_locks_will_do(server, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert fetch(server, tmp_path).downloaded == 3
    assert_complete(server, tmp_path)


def test_a_full_disk_is_one_line_that_names_the_file(
    server, tmp_path, monkeypatch, capsys
):
    class Full(io.BufferedRandom):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        download, "open", lambda path, mode: Full(io.FileIO(path, mode)), raising=False
    )
    assert command(server, f"--output_dir={tmp_path}", "--num_workers=1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path}/train0000.tfrecord.part: No space left on device" in error
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_said_before_anything_is_downloaded(
    server, tmp_path, monkeypatch, capsys
):
    usage = shutil.disk_usage(tmp_path)
    part = server.files[NAMES[0]][:1000]
    (tmp_path / "train0000.tfrecord.part").write_bytes(part)
    arguments = [f"--output_dir={tmp_path}"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8002))
    assert command(server, *arguments) == 1
    assert f"{tmp_path} has 0.0 MB free" in capsys.readouterr().err
    assert server.ranges(NAMES[0]) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8003))
    assert command(server, *arguments) == 0
    assert_complete(server, tmp_path)


@pytest.mark.parametrize("folder", ["file", "file/folder"])
def test_a_directory_that_cannot_be_written_is_one_line(
    server, tmp_path, capsys, folder
):
    (tmp_path / "file").write_bytes(b"")
    assert command(server, f"--output_dir={tmp_path / folder}") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / folder) in error and error.count("\n") == 1


def test_one_unwritable_file_ends_the_download(server, tmp_path):
    (tmp_path / "train0000.tfrecord.part").mkdir()
    with pytest.raises(UserError, match="train0000.tfrecord.part: Is a directory"):
        fetch(server, tmp_path, num_workers=1)


def test_ctrl_c_leaves_parts_that_are_gone_on_with(
    server, tmp_path, monkeypatch, capsys
):
    taken, stopped = threading.Event(), threading.Event()
    append, pool = download._Part.append, download.ThreadPoolExecutor

    def watched_append(part, data):
        append(part, data)
        taken.set()

    class WatchedPool(pool):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait, cancel_futures=cancel_futures)
            if cancel_futures:
                stopped.set()

    def interrupt(handler, content):
        handler.wfile.write(handler.start(content)[:1000])
        taken.wait(30)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        stopped.wait(30)
        handler.wfile.write(content[1000:])

    server.fail(NAMES[0], interrupt)
    arguments = [f"--output_dir={tmp_path}", "--num_workers=1"]
    with monkeypatch.context() as patch:
        patch.setattr(download._Part, "append", watched_append)
        patch.setattr(download, "ThreadPoolExecutor", WatchedPool)
        assert command(server, *arguments) == 130
    error = capsys.readouterr().err
    assert "goes on from there" in error and "Traceback" not in error
    assert "files 0 of 3" in error and "100.0%" not in error
    part = tmp_path / "train0000.tfrecord.part"
    assert part.read_bytes() == server.files[NAMES[0]][:1000]
    assert os.listdir(tmp_path) == [part.name]
    assert command(server, *arguments) == 0
    assert server.ranges(NAMES[0]) == [None, "bytes=1000-"]
    assert_complete(server, tmp_path)
