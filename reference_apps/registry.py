"""Versions of models, each published once and never changed, and the names that move from one to the next.

    <root>/<model>/<version>/weights.safetensors, metadata.json     written beside, forced to the disk, renamed
    <root>/<model>/aliases.json, history.jsonl                      champion → 2, and what it was before

    publish ──▶ version ◀── resolve ◀── "champion" of a stage ──▶ pinned ──▶ every process of the stack
                    └── load: is the digest that of the metadata? ──▶ a model on its device

What can be read is whole: a crash leaves a folder that begins with a dot, which the next publisher removes. Everything
that writes holds a lock of the model's folder. Not here: versions that are taken back or removed, and a registry over a
network; a folder that is mounted everywhere is one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from reference_apps.durable import locked, sync_folder, write_synced
from reference_apps.model_metadata import About, Metadata, described, digest_of
from reference_apps.registry_aliases import ALIASES, HISTORY, Aliases
from stages.arms import ARMS, model_of
from stages.problems import Problem, StageError, did_you_mean, shown
from stages.spec import Model, Stage, with_overrides

REGISTRY_ENV = "RUNG_REGISTRY"
WEIGHTS, METADATA = "weights.safetensors", "metadata.json"
LOCK_TIMEOUT_S = 30.0
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,63}")
_NO_VERSIONS = ("champion", "challenger", ALIASES, HISTORY)
_FIRST = "Make some with `rung models train --variants`."


@dataclass(frozen=True)
class Loaded:
    """A version whose weights were found to be those that were published."""

    weights: Path
    metadata: Metadata


@dataclass(frozen=True)
class Moved:
    """An alias that was moved: what it was (None for a new one), and what it is."""

    before: str | None
    now: str


class Registry:
    """The versions under one folder. Raises StageError, in words, for what is not there or not sound, and OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- what there is ----

    def models(self) -> list[str]:
        """The names of the models that have a version."""
        found = (path.name for path in self.root.iterdir()) if self.root.is_dir() else iter(())
        return sorted(name for name in found if self.versions(name))

    def versions(self, model: str) -> list[str]:
        """The versions of a model: numbers first, in their order, then names."""
        folder = self.root / model
        found = (path.name for path in folder.iterdir()) if folder.is_dir() else iter(())
        there = [name for name in found if _VERSION.fullmatch(name) and (folder / name / METADATA).is_file()]
        return sorted(there, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))

    def aliases(self, model: str) -> dict[str, str]:
        """Alias → version."""
        try:
            return Aliases(self.root / model).now()
        except ValueError as error:
            rule, got = "must say which version each alias is", " ".join(str(error).split())[:200]
            remedy = "Correct it, or remove it and set them again with `rung models alias`."
            raise self._error(model, ALIASES, rule, got, "Nobody knows what they are.", remedy) from None

    def resolve(self, model: str, name: str) -> str:
        """The version of that name, or the one that the alias of that name is."""
        version = self.aliases(model).get(name, name)
        if version not in self.versions(model):
            raise self._unknown(model, name, version)
        return version

    def metadata(self, model: str, name: str) -> Metadata:
        """What is known of a version, given by its name or an alias. Its weights are not looked at."""
        version = self.resolve(model, name)
        try:
            found = Metadata.model_validate_json((self.root / model / version / METADATA).read_bytes())
        except ValidationError as error:
            raise self._broken(model, f"{version}/{METADATA}", "must be what `rung models` wrote", error) from None
        if (found.model, found.version) != (model, version):
            said = ValueError(f"it is about version {found.version} of {found.model}")
            raise self._broken(model, f"{version}/{METADATA}", "must be about its own version", said)
        return found

    def load(self, model: str, name: str) -> Loaded:
        """A version, by its name or an alias, after its weights were read and compared with their digest."""
        metadata = self.metadata(model, name)
        weights = self.root / model / metadata.version / WEIGHTS
        try:
            digest = digest_of(weights.read_bytes())
        except OSError as error:
            raise self._broken(model, f"{metadata.version}/{WEIGHTS}", "must be readable", error) from None
        if digest != metadata.digest:
            rule = f"must have the digest {metadata.digest[:12]}… that its metadata say"
            other = ValueError(f"{digest[:12]}…")
            raise self._broken(model, f"{metadata.version}/{WEIGHTS}", rule, other)
        return Loaded(weights, metadata)

    def verify(self, model: str) -> dict[str, str]:
        """What is wrong with each version and alias of a model, in words; empty for what is sound."""
        folder = self.root / model
        beside = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else iter(())
        damaged = sorted(set(filter(_VERSION.fullmatch, beside)) - set(self.versions(model)))
        names = [*self.versions(model), *damaged, *self.aliases(model)]
        return {name: self._why_broken(model, name) for name in names}

    def previous(self, model: str, alias: str) -> str | None:
        """The version that a rollback of the alias would go back to; None where there is none."""
        was = Aliases(self.root / model).before(alias)
        return was[-1] if was else None

    # ---- what changes it ----

    def publish(self, about: About, weights: bytes, version: str | None = None) -> Metadata:
        """A new version out of the bytes of a safetensors file; without a name it has the next number.

        When this returns, the version is on the disk. Whoever reads meanwhile sees none of it, or all.
        """
        with self._writing(about.model) as folder:
            version = self._free(about.model, version)
            metadata = described(about, version, weights)
            fresh = folder / f".publishing-{secrets.token_hex(8)}"
            fresh.mkdir()
            for name, content in ((WEIGHTS, weights), (METADATA, f"{metadata.model_dump_json(indent=2)}\n".encode())):
                write_synced(fresh / name, content)
                (fresh / name).chmod(0o444)
            sync_folder(fresh)
            fresh.rename(folder / version)
            sync_folder(folder)
        return metadata

    def set_alias(self, model: str, alias: str, name: str) -> Moved:
        """From now on the alias is that version, which is checked first; `name` may be an alias, too."""
        with self._writing(model) as folder:
            if not _ALIAS.fullmatch(alias) or alias in self.versions(model):
                rule = "must be lower-case letters, digits and hyphens, beginning with a letter, and no version's name"
                raise self._error(model, "alias", rule, shown(alias), "It would not be found.", 'Use "champion".')
            version = self.load(model, name).metadata.version
            before = self.aliases(model).get(alias)
            if before != version:
                Aliases(folder).move(alias, version, "set")
        return Moved(before, version)

    def rollback(self, model: str, alias: str) -> Moved:
        """The alias is what it was before it was last set, if that version is sound."""
        with self._writing(model) as folder:
            before, version = self.aliases(model).get(alias), self.previous(model, alias)
            if before is None or version is None:
                was = "an alias that there is not" if before is None else f"{shown(alias)}, which is {before} as ever"
                rule, consequence = "must have been another version before", "There is nothing to go back to."
                remedy = f"Name a version with `rung models alias {alias} VERSION`."
                raise self._error(model, "alias", rule, was, consequence, remedy)
            self.load(model, version)
            Aliases(folder).move(alias, version, "rollback")
        return Moved(before, version)

    # ---- how ----

    @contextlib.contextmanager
    def _writing(self, model: str) -> Iterator[Path]:
        """The model's folder, which nobody else writes to now; what crashes left in it is gone."""
        folder = self.root / model
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.root)
        try:
            with locked(folder / ".lock", LOCK_TIMEOUT_S):
                for left in (*folder.glob(".publishing-*"), *folder.glob(".*.new")):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield folder
        except TimeoutError as error:
            rule, remedy = "must be free to be written to", "Try again, or end the process that holds the lock."
            raise self._error(model, ".lock", rule, str(error), "Nothing was changed.", remedy) from None

    def _free(self, model: str, version: str | None) -> str:
        """The name of a new version: the one that is wanted, if it is free, or the next number."""
        there = self.versions(model)
        if version is None:
            return str(max((int(name) for name in there if name.isdecimal()), default=0) + 1)
        if version in there:
            remedy = "Leave the version out for the next number, or give it another name."
            raise self._error(
                model, "version", "must be new", shown(version), "A version never changes once it is published.", remedy
            )
        if not _VERSION.fullmatch(version) or version in self.aliases(model) or version in _NO_VERSIONS:
            rule = "must be up to 64 letters, digits, dots, hyphens and underscores, and no alias"
            remedy = "Leave it out for the next number."
            raise self._error(model, "version", rule, shown(version), "Nobody could tell it from others.", remedy)
        return version

    def _why_broken(self, model: str, name: str) -> str:
        try:
            self.load(model, name)
        except StageError as error:
            return "; ".join(map(str, error.problems))
        return ""

    def _unknown(self, model: str, name: str, version: str) -> StageError:
        there = [*self.versions(model), *self.aliases(model)]
        remedy = did_you_mean(name, there, f"There are {', '.join(there)}." if there else _FIRST)
        rule = "must be a version or an alias of one in the registry"
        got = shown(name) if name == version else f"{shown(name)}, which is version {version}, which is not there"
        return self._error(model, "model.version", rule, got, "There are no such weights.", remedy)

    def _broken(self, model: str, file: str, rule: str, error: Exception) -> StageError:
        got = str(error.strerror) if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        consequence = "It was damaged or changed after it was published, and is not served."
        remedy = "Go back with `rung models rollback`, and publish it anew under another version."
        return self._error(model, file, rule, got, consequence, remedy)

    def _error(self, model: str, key: str, rule: str, got: str, consequence: str, remedy: str) -> StageError:
        return StageError(str(self.root / model), [Problem(key, rule, got, consequence, remedy)])


# ---- a stage and the registry ----


def registry_root(model: Model | None = None) -> Path:
    """Where versions are: the stage's own folder, else $RUNG_REGISTRY, else `registry` in the runs folder."""
    from reference_apps.up import runs_folder

    given = model.registry if model is not None and model.registry else os.environ.get(REGISTRY_ENV)
    return (Path(given).expanduser() if given else runs_folder() / "registry").resolve()


def pinned(stage: Stage) -> Stage:
    """The stage with the very version that its alias is now: what both worlds are given. Twice is as good as once.

    Raises StageError where there is no such version or its weights are not those that were published, and where the
    stage is not sound with it: too slow for its rate, say.
    """
    if stage.split is not None:
        return _pinned_arms(stage)
    model = pinned_model(stage.model)
    if model == stage.model:
        return stage
    facts = model.known.model_dump(exclude_none=True)
    return with_overrides(
        stage, {"model.version": model.version, "model.registry": model.registry, "model.facts": facts}
    )


def _pinned_arms(stage: Stage) -> Stage:
    """The same of a stage with two versions of its model."""
    models = {arm: pinned_model(model_of(stage, arm)) for arm in ARMS}
    changes: dict[str, object] = {"model.registry": models["champion"].registry}
    for arm, model in models.items():
        changes |= {f"split.{arm}": model.version, f"split.{arm}_facts": model.known.model_dump(exclude_none=True)}
    if all(model == model_of(stage, arm) for arm, model in models.items()):
        return stage
    return with_overrides(stage, changes)


def identity(model: Model) -> str:
    """Name, version and digest of a version in the registry: what a decision about it is about. Raises StageError like
    `Registry.metadata`."""
    found = Registry(registry_root(model)).metadata(model.name, str(model.version))
    return f"{model.name}/{found.version}@{found.digest}"


def pinned_model(model: Model) -> Model:
    """The model with its alias resolved, its registry's folder named, and its facts out of the metadata.

    Facts that the stage gives stand. Raises StageError like `Registry.load`.
    """
    return model if model.version is None else with_weights(model).model_copy(update={"weights": None})


def with_weights(model: Model) -> Model:
    """The model as it is loaded: pinned, with the path of its weights. Raises StageError like `Registry.load`."""
    if model.version is None:
        return model
    root = registry_root(model)
    try:
        found = Registry(root).load(model.name, model.version)
    except OSError as error:
        rule, got = "must be a folder of versions that can be read", str(error.strerror or error)
        remedy = "Look at who may read it, or name another."
        problem = Problem("model.registry", rule, got, "There are no such weights.", remedy)
        raise StageError(str(root), [problem]) from None
    facts = model.facts or found.metadata.facts()
    exact = {"version": found.metadata.version, "registry": str(root), "facts": facts}
    return model.model_copy(update={**exact, "weights": str(found.weights)})
