"""The verbs for versions of models: list, show, publish, train, alias, rollback, verify.

    train, publish ──▶ registry ──▶ list, show, verify
    alias, rollback ──▶ which version an alias is; `rung restart STAGE --rolling` has a stage that is up serve it

They work on the registry's folder, whatever is up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stages.terminal import Exit, JsonOption, err, fail, out, print_json, teaching

if TYPE_CHECKING:
    from reference_apps.model_metadata import Metadata
    from reference_apps.registry import Moved, Registry

models = typer.Typer(help="Publish versions of models, and say which one is the champion.", no_args_is_help=True)
app = typer.Typer()
app.add_typer(models, name="models")

Name = Literal["digits", "resnet50", "xor"]
ModelOption = Annotated[Name, typer.Option("--model", help="Whose versions.")]
RegistryOption = Annotated[
    Path | None,
    typer.Option("--registry", metavar="FOLDER", help="Instead of $RUNG_REGISTRY, or of the one in the runs folder."),
]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="champion, challenger, or one of your own.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A version, or an alias of one.")]
VersionOption = Annotated[str | None, typer.Option(help="Its name; without it, the next number.")]


@models.command("list")
def list_(registry: RegistryOption = None, json_: JsonOption = False) -> None:
    """List the versions of every model, and which of them the aliases are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    with _opened(registry) as opened:
        rows = [_row(opened, model, version) for model in opened.models() for version in opened.versions(model)]
    if json_:
        print_json({"registry": str(opened.root), "versions": rows})
        return
    if not rows:
        out.print(f"No versions in {opened.root}. Make some with `rung models train --variants`.", highlight=False)
        return
    table = Table("model", "version", "aliases", "accuracy", "published", "note", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for row in rows:
        accuracy = row["metrics"].get("accuracy")
        shown = "-" if accuracy is None else f"{accuracy:.2%}"
        published = row["created_at"][:19].replace("T", " ")
        table.add_row(row["model"], row["version"], ", ".join(row["aliases"]), shown, published, row["note"])
    out.print(table)
    out.print(f"Registry: {opened.root}", highlight=False)


@models.command()
def show(
    version: VersionArgument, model: ModelOption = "digits", registry: RegistryOption = None, json_: JsonOption = False
) -> None:
    """Show what is known of a version: data, metrics, code, digest."""
    with _opened(registry) as opened:
        row = _row(opened, model, opened.metadata(model, version).version)
    if json_:
        print_json(row)
        return
    for key, value in row.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        out.print(f"{key}: {', '.join(value) if isinstance(value, list) else value}", highlight=False, markup=False)


@models.command()
def publish(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Holds weights.safetensors, and metadata.json if you have any; or a .safetensors file.",
        ),
    ],
    version: VersionOption = None,
    model: Annotated[Name | None, typer.Option("--model", help="Of which model, if no metadata say so.")] = None,
    registry: RegistryOption = None,
    json_: JsonOption = False,
) -> None:
    """Publish weights as a new version, once they were found to fit the model."""
    from reference_apps.models.publishing import checked, read_source

    with _opened(registry) as opened, err.status(f"Checking {source} …"):
        about, weights = read_source(source, model)
        published = opened.publish(checked(about, weights), weights, version)
    _tell_published(opened, [published], [], json_)


@models.command()
def train(
    version: VersionOption = None,
    images: Annotated[int | None, typer.Option(min=10, help="Digits to train on; all 1438 without it.")] = None,
    epochs: Annotated[int, typer.Option(min=1, max=1000, help="Passes over them.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the initial weights and of the order of the digits.")] = 1,
    note: Annotated[str, typer.Option(help="What to say of it.")] = "",
    variants: Annotated[
        bool, typer.Option("--variants", help="Five versions for A/B tests: 1, 2, worse, slower and crashing.")
    ] = False,
    registry: RegistryOption = None,
    json_: JsonOption = False,
) -> None:
    """Train digits and publish what comes of it; with --variants, the versions that stages of A/B tests ask for."""
    from reference_apps.models.digits import NO_SCIKIT_LEARN, bundled_digits
    from reference_apps.models.variants import VARIANTS, Recipe, Trained, as_published, make

    try:
        split = bundled_digits()
    except ModuleNotFoundError:
        fail(NO_SCIKIT_LEARN, Exit.MISUSED)
    if variants and (version, images, epochs, seed, note) != (None, None, 40, 1, ""):
        fail("--variants: says itself how each version is trained. Leave the other options out.", Exit.MISUSED)
    recipes = VARIANTS if variants else (Recipe(version or "", note, images, epochs, seed),)
    made: dict[str, Trained] = {}
    published: list[Metadata] = []
    kept: list[str] = []
    with _opened(registry) as opened, err.status("Training …") as shown:
        there = opened.versions("digits") if variants else []
        for recipe in recipes:
            if recipe.version in there:
                made[recipe.version] = as_published(opened.load("digits", recipe.version))
                kept.append(recipe.version)
                continue
            shown.update(f"Training {f'version {recipe.version}' if recipe.version else 'digits'} …")
            trained = made[recipe.version] = make(recipe, split, made)
            published.append(opened.publish(trained.about, trained.weights, recipe.version or None))
        if variants:
            for alias, of in (("champion", "1"), ("challenger", "2")):
                if alias not in opened.aliases("digits"):
                    opened.set_alias("digits", alias, of)
    _tell_published(opened, published, kept, json_)


@models.command()
def alias(
    alias: AliasArgument,
    version: VersionArgument,
    model: ModelOption = "digits",
    registry: RegistryOption = None,
    json_: JsonOption = False,
) -> None:
    """Have an alias be another version: `rung models alias champion challenger` promotes the challenger."""
    with _opened(registry) as opened:
        moved = opened.set_alias(model, alias, version)
    _tell_moved(model, alias, moved, json_)


@models.command()
def rollback(
    alias: AliasArgument, model: ModelOption = "digits", registry: RegistryOption = None, json_: JsonOption = False
) -> None:
    """Have an alias be what it was before; once more, and it goes back further."""
    with _opened(registry) as opened:
        moved = opened.rollback(model, alias)
    _tell_moved(model, alias, moved, json_)


@models.command()
def verify(registry: RegistryOption = None, json_: JsonOption = False) -> None:
    """Read the weights of every version and compare them with their digests."""
    with _opened(registry) as opened, err.status("Reading …"):
        there = opened.root.iterdir() if opened.root.is_dir() else ()
        folders = sorted(path.name for path in there if path.is_dir())
        found = {model: checked for model in folders if (checked := opened.verify(model))}
    wrong = {model: {name: why for name, why in names.items() if why} for model, names in found.items()}
    count = sum(map(len, wrong.values()))
    if json_:
        print_json({"registry": str(opened.root), "models": found, "broken": count})
    else:
        for model, names in found.items():
            for name, why in names.items():
                out.print(f"{model} {name}: {why or 'sound'}", highlight=False, markup=False)
    if count:
        fail(f"{count} of the versions and aliases in {opened.root} are broken.")


@contextmanager
def _opened(root: Path | None) -> Iterator[Registry]:
    """The registry; ends the command in words where it cannot do what is wanted of it."""
    from reference_apps.registry import Registry, registry_root

    opened = Registry(registry_root() if root is None else root.expanduser().resolve())
    try:
        with teaching():
            yield opened
    except OSError as error:
        fail(f"{opened.root}: {error.strerror or error}. Its versions cannot be read, or none can be added.")


def _row(registry: Registry, model: str, version: str) -> dict[str, Any]:
    """A version with its aliases and its folder; of a broken one, what is wrong with it."""
    from stages.problems import StageError

    aliases = sorted(alias for alias, of in registry.aliases(model).items() if of == version)
    where = {"aliases": aliases, "folder": str(registry.root / model / version)}
    try:
        return {**registry.metadata(model, version).model_dump(), **where}
    except StageError as error:
        why = "; ".join(map(str, error.problems))
        return {"model": model, "version": version, "created_at": "", "metrics": {}, "note": why, **where}


def _tell_published(registry: Registry, published: list[Metadata], kept: list[str], json_: bool) -> None:
    if json_:
        rows = [_row(registry, metadata.model, metadata.version) for metadata in published]
        print_json({"registry": str(registry.root), "published": rows, "kept": kept})
        return
    for version in kept:
        out.print(f"version {version}: is there already, and stays as it is", highlight=False)
    for metadata in published:
        accuracy = metadata.metrics.get("accuracy")
        told = "" if accuracy is None else f", {accuracy:.2%} right on data held out"
        out.print(f"{metadata.model} version {metadata.version}: published{told}", highlight=False)
    out.print(f"Registry: {registry.root}", highlight=False)


def _tell_moved(model: str, alias: str, moved: Moved, json_: bool) -> None:
    if json_:
        print_json({"model": model, "alias": alias, "before": moved.before, "version": moved.now})
        return
    was = "new" if moved.before is None else f"version {moved.before} before"
    what = f"is version {moved.now} already" if moved.before == moved.now else f"is version {moved.now} now ({was})"
    out.print(f"{alias} of {model} {what}.", highlight=False)
    if moved.before not in (None, moved.now):
        out.print("A stage that is up serves it after `rung restart STAGE --rolling`.", highlight=False)
