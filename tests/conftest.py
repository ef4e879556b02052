"""What all tests share: quiet TensorFlow, four devices, real files if there are any."""

import logging
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402


def pytest_configure(config):
    # Four logical devices, for tests of replicas; must precede any use of a device.
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 4
    )


@pytest.fixture(autouse=True)
def propagated_logs():
    """Commands keep their log lines to themselves; `caplog` listens at the root."""
    logging.getLogger("yt8m").propagate = True


@pytest.fixture
def known_temporary_names(monkeypatch):
    """Files are written as NAME.tmp first, where a test can be before them."""
    monkeypatch.setattr("yt8m.whole_files.temporary_name", lambda path: f"{path}.tmp")


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder that YT8M_DATA names; tests of real files are left out without it."""
    folder = os.environ.get("YT8M_DATA")
    if not folder:
        pytest.skip("YT8M_DATA is not set")
    return pathlib.Path(folder)
