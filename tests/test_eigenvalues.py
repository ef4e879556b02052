"""Eigenvalues of the dataset's PCA from a web server: checked, and downloaded once."""

import http.server
import io
import os
import tarfile
import threading

import numpy as np
import pytest
from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.cli import train
from yt8m.data import eigenvalues
from yt8m.data.download import Client
from yt8m.errors import DataError, UserError

VALUES = np.geomspace(14.74, 0.0015, 2048).astype("float32")


def npy(values) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tgz(**files) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"yt8m_pca/{name}.npy")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `server.files`, and counts what it is asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.files.get(self.path)
            self.server.asked.append(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.files, served.asked = {}, []
        served.url = f"http://127.0.0.1:{served.server_port}"
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


@pytest.mark.parametrize(
    "content",
    [
        npy(VALUES[:, None]),  # as published
        npy(VALUES[:1024].astype("float64")),
        "\n".join(map(repr, VALUES.tolist())).encode(),
        ", ".join(map(repr, VALUES.tolist())).encode(),
        tgz(mean=npy(np.ones((2048, 1))), eigenvals=npy(VALUES[:, None])),
    ],
)
def test_the_first_1024_are_kept_whatever_the_form(server, content):
    server.files["/file"] = content
    path = eigenvalues.download(f"{server.url}/file")
    values = np.load(path)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, VALUES[:1024])
    assert path.endswith(".npy") and len(os.listdir(os.path.dirname(path))) == 1


def test_they_are_downloaded_once(server):
    server.files["/a.npy"] = npy(VALUES)
    server.files["/b.npy"] = npy(2 * VALUES)
    a, again, b = (eigenvalues.download(f"{server.url}/{n}.npy") for n in "aab")
    assert a == again != b
    assert server.asked == ["/a.npy", "/b.npy"]
    np.testing.assert_array_equal(np.load(b), 2 * VALUES[:1024])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (npy(VALUES[:1000]), "has 1,000 numbers; 1,024 eigenvalues are needed"),
        (npy(VALUES[::-1]), "holds no eigenvalues"),
        (npy(VALUES - 1), "holds no eigenvalues"),
        (npy(np.where(VALUES > 14, np.nan, VALUES)), "holds no eigenvalues"),
        (npy(np.array(["a"] * 2000)), "is neither .npy nor text"),
        (npy(np.array([{}])), "is neither .npy nor text"),
        (npy(VALUES)[:500], "is neither .npy nor text"),
        (b"<html>Not here</html>", "is neither .npy nor text"),
        (b"", "has 0 numbers"),
        (b"\xff\xfe\x00", "is neither .npy nor text"),
        (tgz(mean=npy(VALUES)), "it has no eigenvals.npy"),
        (tgz(eigenvals=npy(VALUES))[:300], "is neither .npy nor text"),
    ],
)
def test_anything_else_is_refused_and_not_kept(server, content, error):
    server.files["/file"] = content
    with pytest.raises(DataError, match=error) as refused:
        eigenvalues.download(f"{server.url}/file")
    assert f"{server.url}/file" in str(refused.value)
    assert not os.path.exists(eigenvalues._cache())


def test_a_server_that_has_none_is_named(server):
    with pytest.raises(UserError, match=r"/none.npy cannot be read: HTTP 404"):
        eigenvalues.download(f"{server.url}/none.npy")


def test_a_file_is_cut_at_the_most_that_is_read(server):
    server.files["/long"] = b"1" * 1000
    assert Client().read(f"{server.url}/long", 300) == b"1" * 300


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    server.files["/a.npy"] = npy(VALUES)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written: .*download .* yourself"):
        eigenvalues.download(f"{server.url}/a.npy")


def parsed(*arguments):
    flags = absl_flags.FlagValues()
    train.define(flags)
    flags(["train", *arguments])
    return flags


@pytest.mark.parametrize(
    "flag", ["--pca_eigenvalues={}", "--model_args=pca_eigenvalues={}"]
)
def test_the_flag_takes_a_url_and_the_model_gets_a_path(server, flag):
    server.files["/a.npy"] = npy(VALUES)
    url = f"{server.url}/a.npy"
    flags = parsed("--model=NeXtVLADModel", flag.format(url))
    assert shared.given_model_args(flags) == {"pca_eigenvalues": url}
    for _ in range(2):  # in training, and when the flag is given again
        assert shared.model_args(flags) == {
            "pca_eigenvalues": eigenvalues.download(url)
        }
    assert server.asked == ["/a.npy"]


def test_a_local_file_of_the_flag_is_taken_as_it_is():
    flags = parsed("--model=NeXtVLADModel", "--pca_eigenvalues=/some/file.txt")
    assert shared.model_args(flags) == {"pca_eigenvalues": "/some/file.txt"}


def test_the_branches_of_a_mixture_get_it_beside_their_other_arguments(server):
    server.files["/a.npy"] = npy(VALUES)
    flags = parsed(
        "--model=MixtureNeXtVLADModel",
        "--model_args=branches=2,branch_args={'clusters': 8}",
        f"--pca_eigenvalues={server.url}/a.npy",
    )
    path = eigenvalues.download(f"{server.url}/a.npy")
    assert shared.model_args(flags) == {
        "branches": 2,
        "branch_args": {"clusters": 8, "pca_eigenvalues": path},
    }


def test_the_flag_is_refused_for_other_models():
    flags = parsed("--model=NetVLADModel", "--pca_eigenvalues=/some/file.npy")
    with pytest.raises(UserError, match="a flag of NeXtVLADModel, MixtureNeXtVLADMod"):
        shared.model_args(flags)


def test_the_published_eigenvalues_are_read(real_data):
    content = (real_data / "extractor" / "eigenvals.npy").read_bytes()
    values = eigenvalues.parse(content, "eigenvals.npy")
    assert values.shape == (1024,)
    assert values[0] == pytest.approx(14.74, abs=0.01)
