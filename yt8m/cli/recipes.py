"""Lists the recipes: published systems as flag files for `train.py --recipe=NAME`.

yt8m recipes
"""

from importlib import resources

from yt8m.cli import flags as shared
from yt8m.errors import UserError, near_matches

_FOLDER = resources.files("yt8m") / "recipes"


def define(flags: shared.FlagValues) -> None:
    pass


def run(flags: shared.FlagValues) -> int:
    for name in recipe_names():
        print(f"{name:24s} {recipe_title(name)}")
    return 0


def recipe_names() -> list[str]:
    return sorted(
        f.name.removesuffix(".flags")
        for f in _FOLDER.iterdir()
        if f.name.endswith(".flags")
    )


def _text(name: str) -> str:
    if name not in recipe_names():
        raise UserError(
            f"Unknown --recipe={name}. {near_matches(name, recipe_names())}"
        )
    return (_FOLDER / f"{name}.flags").read_text()


def recipe_title(name: str) -> str:
    """The first line of the recipe's header."""
    return _text(name).splitlines()[0].lstrip("# ")


def recipe_flags(name: str) -> list[str]:
    """The flags of a recipe, as they would stand on a command line."""
    lines = (line.strip() for line in _text(name).splitlines())
    return [line for line in lines if line and not line.startswith("#")]
