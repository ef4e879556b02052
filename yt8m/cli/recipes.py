"""Lists the recipes: published systems as flag files for `train.py --recipe=NAME`.

    yt8m recipes
    yt8m recipes --format=markdown
    yt8m recipes --show=willow_netvlad

--show prints one: its flags, source, published score, and what was left open there.
"""

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from absl import flags as absl_flags

from yt8m.cli import flags as shared
from yt8m.errors import UserError, near_matches

FORMATS = ("text", "markdown")
# Of a recipe's header, in their order, after the title in its first line.
KEYS = ("Source", "Command", "Published", "Measured on the dataset")

# Arguments of a model that are those of one of its parts.
_OF_PART = {
    "head": ("head_args", "num_mixtures"),
    "pooling": ("pooling_args",),
    "label_processing": ("label_processing_args",),
}
_FOLDER = resources.files("yt8m") / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A published system.

    Attributes:
        name: by which `--recipe` finds it.
        title: what it is, in one line.
        source: where it is described.
        command: that trains it.
        published: the scores that the source reports.
        measured: what was measured with it on the real dataset.
        remarks: what the source leaves open, and what was chosen.
        flags: as they would stand on a command line.
    """

    name: str
    title: str
    source: str
    command: str
    published: str
    measured: str
    remarks: str
    flags: list[str]

    @property
    def model(self) -> str:
        """The name of its model."""
        given = [f.partition("=")[2] for f in self.flags if f.startswith("--model=")]
        if not given:
            raise UserError(f"The recipe {self.name} names no --model.")
        return given[-1]


def define(flags: shared.FlagValues) -> None:
    output_format(flags)
    absl_flags.DEFINE_string(
        "show", None, "Prints the recipe of this name.", flag_values=flags
    )


def output_format(flags: shared.FlagValues) -> None:
    absl_flags.DEFINE_enum(
        "format", "text", FORMATS, "Form of the table.", flag_values=flags
    )


def run(flags: shared.FlagValues) -> int:
    from yt8m import registry, runs

    if flags.show:
        print(_text(flags.show), end="")
        return 0
    runs.load_registries(None)
    header = ["recipe", "model", "level", "published", "measured", "source"]
    rows = [
        [
            *(recipe.name, recipe.model, registry.get(recipe.model).level),
            *(recipe.published, recipe.measured, recipe.source),
        ]
        for recipe in map(read, recipe_names())
    ]
    print(table(header, rows, flags.format))
    print(f"\nWhole pipelines, `yt8m pipeline NAME`: {', '.join(pipeline_names())}.")
    return 0


def recipe_names() -> list[str]:
    return _names(".flags")


def pipeline_names() -> list[str]:
    """Those of the shipped files of `yt8m pipeline`."""
    return _names(".json")


def _names(ending: str) -> list[str]:
    names = (f.name for f in _FOLDER.iterdir())
    return sorted(n.removesuffix(ending) for n in names if n.endswith(ending))


def _text(name: str) -> str:
    if name not in recipe_names():
        raise UserError(
            f"Unknown --recipe={name}. {near_matches(name, recipe_names())}"
        )
    return (_FOLDER / f"{name}.flags").read_text()


def read(name: str) -> Recipe:
    """The recipe of this name.

    Its comments are the title, then what `KEYS` says, in this order; each goes on to
    the next, the last one to the first line that ends a sentence. The rest is remarks.

    Raises:
        UserError: there is none (near matches are listed), or its header is another.
    """
    lines = [line.strip() for line in _text(name).splitlines()]
    title, *header = [line.lstrip("# ") for line in lines if line.startswith("#")]
    pattern = r"\n".join(f"{key}: (.+?)" for key in KEYS)
    found = re.fullmatch(rf"{pattern}(?:(?<=\.)\n(.*))?", "\n".join(header), re.DOTALL)
    if not found:
        raise UserError(
            f"The recipe {name} must have the header {', '.join(KEYS)}, in this order."
        )
    values = [" ".join((value or "").split()) for value in found.groups()]
    return Recipe(
        name, title, *values, [x for x in lines if x and not x.startswith("#")]
    )


def recipe_title(name: str) -> str:
    """The first line of the recipe's header."""
    return read(name).title


def recipe_flags(name: str) -> list[str]:
    """The flags of a recipe, as they would stand on a command line."""
    return read(name).flags


def follow(
    flags: shared.FlagValues, define: Callable[[shared.FlagValues], None]
) -> None:
    """Gives flags that were not given the values that `--recipe` has for them.

    Those that hold several arguments, such as --model_args, follow it argument by
    argument, however either spells them. What the recipe says of its own model, head,
    pooling, label processing, loss or optimiser does not hold for another one.

    Args:
        flags: as given; changed. Without a recipe they stay as they are.
        define: of the flags.

    Raises:
        UserError: an unknown recipe, or arguments that cannot be read.
    """
    if "recipe" not in flags or flags.recipe is None:
        return
    recipe = absl_flags.FlagValues()
    define(recipe)
    recipe(["recipe", *recipe_flags(flags.recipe)])
    holders = {"model_args", "label_loss_args", "optimizer_args", *shared.SPELLINGS}
    same = {
        part: not shared.given(flags, part) or flags[part].value == recipe[part].value
        for part in ("model", "label_loss", "optimizer")
    }
    for name in recipe:
        given = shared.given(flags, name) or not shared.given(recipe, name)
        if not given and name not in holders:
            _set(flags, name, recipe[name].value)
    for part in ("label_loss", "optimizer"):
        name = f"{part}_args"
        if same[part] and shared.given(recipe, name):
            known, wanted = (
                shared.parse_arguments(f[name].value, f"--{name}")
                for f in (recipe, flags)
            )
            _set(flags, name, shared.format_arguments(known | wanted))
    if same["model"]:
        _follow_model_args(flags, recipe)


def _follow_model_args(flags: shared.FlagValues, recipe: shared.FlagValues) -> None:
    from yt8m import registry, runs

    known, wanted = map(shared.given_model_args, (recipe, flags))
    if wanted:
        runs.load_registries(None)
        defaults = registry.arguments(registry.get(recipe.model).cls)
        for part, own in _OF_PART.items():
            if part in wanted and wanted[part] != known.get(part, defaults.get(part)):
                known = {n: v for n, v in known.items() if n not in own}
    for name, value in wanted.items():
        both = isinstance(value, dict) and isinstance(known.get(name), dict)
        known[name] = known[name] | value if both else value
    for name in shared.SPELLINGS:
        flags[name].unparse()
    if known:
        _set(flags, "model_args", shared.format_arguments(known))


def _set(flags: shared.FlagValues, name: str, value: Any) -> None:
    flags[name].value = value
    flags[name].present = 1


def table(header: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    """A table in Markdown, or as text, which is cut to fit a screen."""
    if form == "markdown":
        cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        lines = [header, ["---"] * len(header), *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    rows = [[textwrap.shorten(c, 50, placeholder=" ...") for c in row] for row in rows]
    # The last column is not filled up.
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)][:-1]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)
        )
        for row in [header, *rows]
    )
