"""Model bundles: the same predictions from one file, and no harm from any other."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from test_export import make_batch, make_run
from yt8m import runs
from yt8m.config import FrameSelection
from yt8m.errors import DataError, UserError
from yt8m.inference import bundle
from yt8m.inference.bundle import read_bundle, write_bundle

USER_MODEL = """
import keras

from yt8m.model import VideoLevelModel
from yt8m.registry import register

with open({witness!r}, "a") as f:
    f.write(__file__ + "\\n")


@register(level="video", paper="none")
class {name}(VideoLevelModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(self.num_classes)

    def classify(self, video, training=False):
        return {{"logits": self.dense(video)}}
"""
WEIGHTS = ["state.data-00000-of-00001", "state.index"]
MEMBERS = ["checkpoint.json", "config.json", *WEIGHTS]


def contents(path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def logits(run) -> np.ndarray:
    return np.asarray(run.model(make_batch(run.model.level))["logits"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of a small model and its bundle, not to be changed."""
    folder = tmp_path_factory.mktemp("bundle")
    run = make_run(folder / "run", "MoeModel")
    write_bundle(run, str(folder / "model.tgz"))
    return run, folder / "model.tgz"


# --- there and back ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, precision",
    [
        ("NetVLADModel", "float32"),
        ("NetVLADModel", "bfloat16"),
        ("FrameLevelLogisticModel", "float32"),
        ("MoeModel", "float32"),
    ],
)
def test_an_unpacked_bundle_is_a_run_of_the_same_predictions(tmp_path, name, precision):
    selection = FrameSelection(count=3, skip_first=1) if "Moe" not in name else None
    run = make_run(tmp_path / "run", name, precision, frames=selection)
    write_bundle(run, str(tmp_path / "model.tgz"))
    directory = read_bundle(str(tmp_path / "model.tgz"), str(tmp_path / "new" / "run/"))
    assert directory == str(tmp_path / "new" / "run")
    read = runs.load_run(directory)
    assert read.config == run.config
    assert (read.checkpoint.step, read.checkpoint.examples) == (5, 50)
    np.testing.assert_array_equal(logits(read), logits(run))
    assert os.listdir(tmp_path / "new") == ["run"]
    assert sorted(os.listdir(tmp_path)) == ["model.tgz", "new", "run"]


def test_the_bundle_holds_the_weights_of_the_chosen_checkpoint_alone(tmp_path):
    run = make_run(tmp_path / "run", "MoeModel")
    checkpoints = runs.Checkpoints(str(tmp_path / "run"))
    before, optimizer = logits(run), keras.optimizers.Adam()
    optimizer.build(run.model.trainable_variables)
    for v in run.model.trainable_variables:
        v.assign(v * 2)
    gap = {"gap": 0.5}
    objects = {"model": run.model, "optimizer": optimizer}
    whole = checkpoints.save(objects, 9, 90, 10, gap)
    sizes = {}
    for which, step in (("5", 5), ("best", 9)):
        path = tmp_path / f"{which}.tgz"
        write_bundle(runs.load_run(str(tmp_path / "run"), which), str(path))
        members = contents(path)
        assert sorted(members) == MEMBERS
        record = json.loads(members["checkpoint.json"])
        assert record["step"] == step
        assert record["validation"] == (gap if step == 9 else None)
        sizes[which] = len(members[WEIGHTS[0]])
        read = runs.load_run(read_bundle(str(path), str(tmp_path / which)))
        assert np.array_equal(logits(read), before) == (step == 5)
    with_optimizer = os.path.getsize(os.path.join(whole.path, WEIGHTS[0]))
    assert sizes["5"] == sizes["best"]
    assert 2.5 * sizes["best"] < with_optimizer


def test_packing_again_gives_the_same_bytes(small, tmp_path):
    run, path = small
    write_bundle(run, str(tmp_path / "another_name.tgz"))
    assert (tmp_path / "another_name.tgz").read_bytes() == path.read_bytes()
    with tarfile.open(path) as tar:
        assert [m.name for m in tar] == MEMBERS
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {
            (0, 0, 0, "", 0o644)
        }


def test_the_list_of_segment_classes_travels_with_it(tmp_path):
    run = make_run(tmp_path / "run", "LogisticModel")
    (tmp_path / "run" / "segment_label_ids.csv").write_text("Index\n3\n1\n")
    write_bundle(run, str(tmp_path / "model.tgz"))
    directory = read_bundle(str(tmp_path / "model.tgz"), str(tmp_path / "new"))
    with open(os.path.join(directory, "segment_label_ids.csv")) as f:
        assert f.read() == "Index\n3\n1\n"


def test_a_remote_bundle_is_written_and_read(small, tmp_path):
    run, _ = small
    tf.io.gfile.makedirs("ram://bundles")
    write_bundle(run, "ram://bundles/model.tgz")
    read = runs.load_run(read_bundle("ram://bundles/model.tgz", str(tmp_path / "new")))
    np.testing.assert_array_equal(logits(read), logits(run))


def test_a_bundle_packed_again_with_times_and_owners_is_read(small, tmp_path):
    run, path = small
    again = str(tmp_path / "again.tgz")
    with tarfile.open(again, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        for name, content in reversed(contents(path).items()):
            (tmp_path / name).write_bytes(content)
            tar.add(tmp_path / name, name)
    read = runs.load_run(read_bundle(again, str(tmp_path / "new")))
    np.testing.assert_array_equal(logits(read), logits(run))


# --- code that travels ---------------------------------------------------------------


def test_a_users_model_travels_and_runs_where_its_file_is_gone(tmp_path, caplog):
    witness = tmp_path / "witness"
    module = tmp_path / "home" / "my-bundled_models.py"
    module.parent.mkdir()
    module.write_text(USER_MODEL.format(witness=str(witness), name="TestBundledModel"))
    run = make_run(tmp_path / "run", "TestBundledModel", module=str(module))
    write_bundle(run, str(tmp_path / "model.tgz"))
    members = contents(tmp_path / "model.tgz")
    assert members[module.name] == module.read_bytes()
    assert json.loads(members["config.json"])["model"]["module"] == module.name
    module.unlink()
    witness.unlink()

    directory = read_bundle(str(tmp_path / "model.tgz"), str(tmp_path / "new"))
    there = os.path.join(directory, module.name)
    assert f"brings Python code, which runs when its model is loaded: {there}" in (
        caplog.text
    )
    assert not witness.exists()  # unpacking runs nothing
    np.savez(tmp_path / "in.npz", **make_batch("video"))
    script = """
import sys
import numpy as np
from yt8m import runs
directory, folder = sys.argv[1:]
run = runs.load_run(directory)
batch = dict(np.load(folder + "/in.npz"))
np.save(folder + "/out.npy", run.model(batch)["logits"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, directory, str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert witness.read_text() == f"{there}\n"
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), logits(run), rtol=1e-5)


def test_a_bundle_without_code_says_nothing(small, tmp_path, caplog):
    read_bundle(str(small[1]), str(tmp_path / "new"))
    assert "code" not in caplog.text


def test_a_module_of_an_odd_name_is_refused_when_it_is_written(tmp_path):
    module = tmp_path / "my models.py"
    witness = str(tmp_path / "witness")
    module.write_text(USER_MODEL.format(witness=witness, name="TestOddBundleModel"))
    run = make_run(tmp_path / "run", "TestOddBundleModel", module=str(module))
    with pytest.raises(UserError, match="my models.py cannot go into a bundle"):
        write_bundle(run, str(tmp_path / "model.tgz"))
    assert not [p for p in os.listdir(tmp_path) if "tgz" in p]


# --- bundles made to do harm ---------------------------------------------------------


def pack(path, members, compress=gzip.compress, tail=b"") -> str:
    """Writes a tar of (TarInfo or name, content) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(compress(buffer.getvalue() + tail))
    return str(path)


def of_type(kind, name="state.index", link="/etc/passwd"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def refused(path, tmp_path) -> str:
    """The message with which a bundle is refused, leaving nothing behind."""
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        read_bundle(str(path), str(tmp_path / "new"))
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize(
    "name",
    [
        "/tmp/state.index",
        "../state.index",
        "sub/../../config.json",
        "sub/config.json",
        "./config.json",
        "..",
        "",
        "state.data-00000-of-00001.exe",
        "bundle.json",
        "inference_model.meta",
        ".hidden.py",
        "sub/my_models.py",
        "config.json\nx",
        "x" * 150,
    ],
)
def test_a_member_of_another_name_is_refused(small, tmp_path, name):
    members = [*contents(small[1]).items(), (name, b"harm")]
    message = refused(pack(tmp_path / "bad.tgz", members), tmp_path)
    assert "member" in message


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_a_member_that_is_no_plain_file_is_refused(small, tmp_path, kind):
    members = [item for item in contents(small[1]).items() if item[0] != "state.index"]
    bad = pack(tmp_path / "bad.tgz", [*members, (of_type(kind), b"")])
    message = refused(bad, tmp_path)
    assert "member 'state.index': not a plain file" in message


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_an_extended_header_is_refused_and_not_read_into_memory(tmp_path, kind):
    member = of_type(kind, name="config.json", link="")
    member.size = 1 << 40
    header = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "bad.tgz").write_bytes(gzip.compress(header + bytes(10_000)))
    assert "not a plain file" in refused(tmp_path / "bad.tgz", tmp_path)


def test_too_large_members_are_refused_before_they_are_unpacked(
    small, tmp_path, monkeypatch
):
    members = contents(small[1])
    for name, size in (
        ("config.json", 17 << 20),
        ("state.index", 17 << 30),
        ("state.index", -512),
    ):
        member = tarfile.TarInfo(name)
        member.size = size
        header = member.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "bad.tgz").write_bytes(gzip.compress(header + bytes(10_000)))
        message = refused(tmp_path / "bad.tgz", tmp_path)
        assert f"member {name!r}: a size of {size} bytes" in message
    total = sum(len(content) for content in members.values())
    (tmp_path / "bad.tgz").unlink()
    monkeypatch.setattr(bundle, "_MAX_BYTES", total - 1)
    assert "more than" in refused(small[1], tmp_path)
    monkeypatch.setattr(bundle, "_MAX_BYTES", total)
    read_bundle(str(small[1]), str(tmp_path / "new"))


def test_too_many_members_and_repeated_ones_are_refused(small, tmp_path):
    members = list(contents(small[1]).items())
    for name, _ in members:
        bad = pack(tmp_path / "bad.tgz", [*members, (name, b"again")])
        assert f"member {name!r}: there is one already" in refused(bad, tmp_path)
    many = [(f"state.data-{i:05d}-of-00099", b"") for i in range(70)]
    bad = pack(tmp_path / "bad.tgz", [*members, *many])
    assert "more than 64 members" in refused(bad, tmp_path)


@pytest.mark.parametrize(
    "named, brought, said",
    [
        ("/tmp/other_models.py", [], "brings none"),
        ("../other_models.py", [], "brings none"),
        ("one.py", ["two.py"], "brings two.py"),
        (None, ["two.py"], "brings two.py"),
        ("/etc/one.py", ["one.py"], "brings one.py"),
        ("one.py", ["one.py", "two.py"], "'two.py': there is one already"),
    ],
)
def test_only_the_module_in_the_bundle_may_be_named(
    small, tmp_path, named, brought, said
):
    members = contents(small[1])
    config = json.loads(members["config.json"])
    config["model"]["module"] = named
    members["config.json"] = json.dumps(config).encode()
    bad = pack(
        tmp_path / "bad.tgz", [*members.items(), *((n, b"raise 1") for n in brought)]
    )
    assert said in refused(bad, tmp_path)


# --- damaged bundles -----------------------------------------------------------------


@pytest.mark.parametrize("missing", ["checkpoint.json", "config.json", "state.index"])
def test_a_missing_member_is_named(small, tmp_path, missing):
    members = contents(small[1])
    del members[missing]
    bad = pack(tmp_path / "bad.tgz", members.items())
    assert f"no {missing}" in refused(bad, tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"[]"),
        ("config.json", b'{"model": 1, "data": 2, "training": 3}'),
        ("checkpoint.json", b"{"),
        ("checkpoint.json", b"\xff"),
        ("checkpoint.json", b"[1]"),
        ("checkpoint.json", b'{"step": 1}'),
        ("checkpoint.json", b'{"step": -1, "examples": 1, "batch_size": 1}'),
        ("checkpoint.json", b'{"step": "../1", "examples": 1, "batch_size": 1}'),
        ("checkpoint.json", b'{"step": 1, "examples": 1, "batch_size": 1, "x": 1}'),
        ("checkpoint.json", b'{"path": "/", "step": 1, "examples": 1}'),
    ],
)
def test_a_member_of_wrong_content_is_named(small, tmp_path, name, content):
    members = contents(small[1]) | {name: content}
    bad = pack(tmp_path / "bad.tgz", members.items())
    assert f"member {name!r}: " in refused(bad, tmp_path)


def test_files_that_are_no_bundle_or_cut_short_are_named(small, tmp_path):
    whole = small[1].read_bytes()
    bad = tmp_path / "bad.tgz"
    for content in (
        b"",
        b"VideoId,LabelConfidencePairs\n",
        gzip.compress(b""),
        gzip.compress(b"hello"),
        gzip.compress(b"hello" * 1000),
        gzip.decompress(whole),  # not gzipped
        whole[:-5],
        whole[: len(whole) // 2],
        whole[:40],
        whole[:-8] + b"wrongcrc",
        gzip.compress(gzip.decompress(whole)[:-9000]),
    ):
        bad.write_bytes(content)
        refused(bad, tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bad.write_bytes(flipped)
    refused(bad, tmp_path)
    members = contents(small[1]).items()
    for tail in (b"more", bytes(2 << 20)):
        assert "goes on" in refused(pack(bad, members, tail=tail), tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.tgz cannot be read"):
        read_bundle(str(tmp_path / "absent.tgz"), str(tmp_path / "new"))
    assert os.listdir(tmp_path) == []


# --- the places ----------------------------------------------------------------------


def test_an_earlier_unpacked_bundle_is_replaced_and_an_empty_directory_filled(
    small, tmp_path
):
    run, path = small
    other = make_run(tmp_path / "other", "LogisticModel")
    write_bundle(other, str(tmp_path / "other.tgz"))
    target = tmp_path / "place" / "model"
    target.mkdir(parents=True)
    read_bundle(str(tmp_path / "other.tgz"), str(target))
    (target / "eval").mkdir()
    read = runs.load_run(read_bundle(str(path), str(target)))
    assert read.config == run.config
    assert sorted(os.listdir(target)) == ["bundle.json", "checkpoints", "config.json"]
    assert json.loads((target / "bundle.json").read_text()) == {"bundle": str(path)}
    assert os.listdir(tmp_path / "place") == ["model"]


def test_a_directory_of_something_else_is_refused_untouched(small, tmp_path):
    run, path = small
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for target in (other, other / "thesis.tex", run.directory):
        with pytest.raises(UserError, match="choose another directory"):
            read_bundle(str(path), str(target))
    assert os.listdir(other) == ["thesis.tex"]
    assert sorted(os.listdir(run.directory)) == ["checkpoints", "config.json"]


def test_a_bad_bundle_leaves_the_earlier_one(small, tmp_path):
    target = read_bundle(str(small[1]), str(tmp_path / "model"))
    bad = pack(tmp_path / "bad.tgz", [("config.json", b"{}")])
    with pytest.raises(DataError):
        read_bundle(bad, target)
    assert runs.load_run(target).config == small[0].config
    assert sorted(os.listdir(tmp_path)) == ["bad.tgz", "model"]


def test_places_that_cannot_be_written_are_named(small, tmp_path):
    run, path = small
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file/model.tgz cannot be written"):
        write_bundle(run, str(tmp_path / "file" / "model.tgz"))
    with pytest.raises(UserError, match=f"{tmp_path}/file/run"):
        read_bundle(str(path), str(tmp_path / "file" / "run"))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error, raised",
    [(OSError(28, "No space left"), UserError), (KeyboardInterrupt(), None)],
)
def test_a_failed_writing_leaves_an_earlier_bundle_and_nothing_else(
    small, tmp_path, monkeypatch, error, raised
):
    target = tmp_path / "model.tgz"
    target.write_bytes(b"earlier")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(raised or type(error)) as caught:
        write_bundle(small[0], str(target))
    if raised:
        assert f"{target} cannot be written: " in str(caught.value)
    assert os.listdir(tmp_path) == ["model.tgz"]
    assert target.read_bytes() == b"earlier"
