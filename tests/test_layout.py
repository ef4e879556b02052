"""The structure: who may import whom, which file is where, and that the map is true."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# A file imports only from its own room or from a room of lower rank.
RANKS = {
    "yt8m.schema": 0,
    "yt8m.errors": 0,
    "yt8m.class_figures": 0,
    "yt8m.progress": 0,
    "yt8m.events": 0,
    "yt8m.config": 0,
    "yt8m.registry": 0,
    "yt8m.remote": 0,
    "yt8m.steps": 0,
    "yt8m.argument_types": 0,
    "yt8m.kernels": 0,
    "yt8m.user_code": 0,
    "yt8m.whole_files": 0,
    "yt8m.data": 1,
    "yt8m.layers": 1,
    "yt8m.losses": 1,
    "yt8m.metrics": 1,
    "yt8m.compression": 1,
    "yt8m.stored_weights": 2,
    "yt8m.model": 2,
    "yt8m.distribution": 2,
    "yt8m.cost": 3,
    "yt8m.model_check": 3,
    "frame_level_models": 3,
    "video_level_models": 3,
    "yt8m.runs": 4,
    "yt8m.evaluation": 5,
    "yt8m.inference": 5,
    "yt8m.export": 5,
    "yt8m.ensemble": 6,
    "yt8m.training": 7,
    "yt8m.cli": 8,
}
# The lowest rank is one room: its files may import one another.
GROUND = 0

FILES = [
    p
    for p in [*sorted((ROOT / "yt8m").rglob("*.py")), *sorted(ROOT.glob("*_models.py"))]
    if p.name != "__init__.py" or p.parent.name != "yt8m"
]


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def room_of(module: str) -> str | None:
    rooms = [r for r in RANKS if module == r or module.startswith(r + ".")]
    return max(rooms, key=len, default=None)


def imported_modules(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_imports_only_from_its_room_or_from_below(path):
    own = room_of(module_name(path))
    assert own, f"{path} is in no room; give it a rank"
    for module in imported_modules(path):
        room = room_of(module)
        if room and room != own and not RANKS[room] == RANKS[own] == GROUND:
            assert RANKS[room] < RANKS[own], f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_models_layers_and_losses_make_no_tensorflow_calls(path):
    if room_of(module_name(path)) in ("yt8m.layers", "yt8m.losses", "yt8m.model") or (
        path.name.endswith("_models.py")
    ):
        assert not {m for m in imported_modules(path) if m.startswith("tensorflow")}


def test_the_readme_maps_every_file_and_nothing_else():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Map of files") :]
    mapped = set(re.findall(r"^\| `([^`]+)`", table, re.M))
    present = {
        str(p.relative_to(ROOT))
        for folder in ("yt8m", "benchmarks")
        for p in (ROOT / folder).rglob("*.py")
        if p.name != "__init__.py"
    } | {p.name for p in ROOT.glob("*.py")}
    assert mapped >= present, f"not on the map: {sorted(present - mapped)}"
    for name in mapped:
        assert (ROOT / name).exists(), f"the map names {name}, which is not there"
