"""Package metadata: dependencies, extras, the console command `yt8m`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "yt8m/__init__.py").read_text())[1]

setup(
    name="yt8m",
    version=VERSION,
    description="YouTube-8M video classification on TensorFlow 2 and Keras 3",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["yt8m", "yt8m.*"]),
    # The two registries stay at the top level, where users look and add models.
    py_modules=["frame_level_models", "video_level_models"],
    package_data={"yt8m": ["recipes/*.flags", "recipes/*.json"]},
    install_requires=[
        "tensorflow>=2.16,<2.22",
        "keras>=3.3",
        "numpy",
        "absl-py",
    ],
    extras_require={
        # tensorflow-io does not pin TensorFlow; its last release loads with 2.16 only.
        "io": ["tensorflow==2.16.*", "tensorflow-io==0.37.1"],
        "clusters": ["scikit-learn"],
        "ensemble": ["lightgbm"],
        # The plot of `python -m benchmarks.quality`.
        "plots": ["matplotlib"],
        "dev": ["pytest", "pytest-xdist", "ruff", "scikit-learn", "lightgbm"],
    },
    entry_points={"console_scripts": ["yt8m = yt8m.cli.main:main"]},
)
