"""Inputs out of files, one by one: what `rung jobs put` and `rung jobs run` send.

    items.jsonl(.gz)  a line each: {"input": …}, or {"id": …, "input": …}
    items.npy         an array (n, *input_shape)
    input.json, input.png, input.npy (of one input's shape): one each, for `put`

A path is anything that fsspec opens: a file, memory://, s3://bucket/key where s3fs is installed, and so on.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import orjson

from reference_apps.decoding import BadInputError, Decodes, decode

_RAW, _JSON, _PNG = "application/octet-stream", "application/json", "image/png"


class ItemsError(ValueError):
    """A file that inputs cannot be read from; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """One input as a client would send it. `wrong` says why it cannot be computed, empty where it can."""

    number: int  # in its file, from 0
    content_type: str
    shape: str
    body: bytes
    name: Any = None  # its id, where the file gives one
    wrong: str = ""


def items_of(path: str, model: Decodes) -> Iterator[Item]:
    """The inputs of a file, checked one by one. Raises ItemsError when it is no such file."""
    plain = path.removesuffix(".gz")
    try:
        if plain.endswith((".jsonl", ".ndjson")):
            yield from _lines(path, model)
        elif plain.endswith(".npy"):
            yield from _rows(path, model)
        else:
            raise ItemsError(
                f"{path}: must end with .jsonl (a line each) or .npy (an array of them), .gz after it. Nothing else "
                "says where an input ends. Convert it."
            )
    except (OSError, ImportError, EOFError, zlib.error) as error:
        raise ItemsError(f"{path}: must be readable, got {type(error).__name__}: {error}. There is no input.") from None


def item_of(path: str, model: Decodes) -> Item:
    """The one input of a file. Raises ItemsError."""
    try:
        with _opened(path) as file:
            if path.endswith(".npy"):
                return _checked(0, _RAW, _shape_of(model), _array(path, file).astype("<f4").tobytes(), model)
            kinds = {".png": _PNG, ".json": _JSON}
            kind = next((kind for ending, kind in kinds.items() if path.endswith(ending)), None)
            if kind is None:
                raise ItemsError(f"{path}: must end with .json, .png or .npy. Its content cannot be told. Rename it.")
            return _checked(0, kind, "", file.read(), model)
    except (OSError, ImportError) as error:
        raise ItemsError(f"{path}: must be readable, got {type(error).__name__}: {error}. There is no input.") from None


def file_system_of(path: str) -> tuple[Any, str]:
    """The file system of a path, and what the path is called there. Raises ItemsError where fsspec knows none."""
    try:
        fs, name = fsspec.core.url_to_fs(path)
    except ValueError as error:
        raise ItemsError(
            f"{path}: must be a path, or begin with a protocol that fsspec knows, as s3://, got another ({error}). "
            "Nothing can be read or written there. Correct it."
        ) from None
    return fs, name


def _opened(path: str, compression: str | None = None) -> Any:
    file_system_of(path)  # which tells in words what fsspec does not know
    return fsspec.open(path, "rb", compression=compression)


def _lines(path: str, model: Decodes) -> Iterator[Item]:
    with _opened(path, "infer") as file:
        number = 0
        for line in file:
            if not line.strip():
                continue
            name: Any = None
            try:
                told = orjson.loads(line)
                if isinstance(told, dict) and "id" in told:
                    name = told.pop("id")
                    line = orjson.dumps(told)
            except orjson.JSONDecodeError:
                pass  # told by the check
            yield _checked(number, _JSON, "", line.strip(), model, name)
            number += 1


def _rows(path: str, model: Decodes) -> Iterator[Item]:
    with _opened(path, "infer") as file:
        rows = _array(path, file)
    if rows.ndim != len(model.input_shape) + 1:
        raise ItemsError(
            f"{path}: must be an array (n, {_shape_of(model)}), got {rows.shape}. One row is one input. Reshape it."
        )
    for number, row in enumerate(rows):
        yield _checked(number, _RAW, "x".join(map(str, row.shape)), row.astype("<f4").tobytes(), model)


def _array(path: str, file: Any) -> np.ndarray:
    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile):
        found = None
    if not isinstance(found, np.ndarray):  # an .npz is several of them
        raise ItemsError(f"{path}: must be an array as numpy.save writes it. It cannot be read. Write it anew.")
    if found.dtype.kind not in "biuf":
        raise ItemsError(f"{path}: must hold numbers, got {found.dtype}. The model reads no other. Convert it.")
    return found


def _checked(number: int, kind: str, shape: str, body: bytes, model: Decodes, name: Any = None) -> Item:
    try:
        decode(model, kind, shape, body)
    except BadInputError as error:
        return Item(number, kind, shape, body, name, str(error))
    return Item(number, kind, shape, body, name)


def _shape_of(model: Decodes) -> str:
    return "x".join(map(str, model.input_shape))
