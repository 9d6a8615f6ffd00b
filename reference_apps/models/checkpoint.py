"""Weights in a safetensors file, with what is known about them; checked before a network takes them.

    train ──▶ save_weights ──▶ weights/*.safetensors ──▶ load_weights ──▶ network
                                        └─ header: {"rung": "{accuracy, seed, sha256, …}"}

Files of others (torchvision's, saved with `safetensors.torch.save_file`) lack that header and load as well.
Not here: any format that can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from stages.problems import Problem, StageError

# safetensors writes the keys of a header in random order; under one key, equal facts make equal bytes.
HEADER_KEY = "rung"


def parameters_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_file(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file of tensors with `facts` (JSON values) and their digest; equal ones give equal bytes."""
    header = json.dumps({**facts, "sha256": parameters_digest(tensors)}, sort_keys=True)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {HEADER_KEY: header})


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Writes such a file."""
    # save_file would leave a file that its owner alone can read, whatever the umask says.
    path.write_bytes(weights_file(tensors, facts))


def read_facts(path: Path) -> dict[str, Any]:
    """What `save_weights` wrote about a file, empty for a file of others.

    Raises StageError for what is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        facts: dict[str, Any] = json.loads(header.get(HEADER_KEY, "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise _unreadable(path, error) from None
    return facts


def load_weights(net: nn.Module, path: Path, model: str, remedy: str) -> None:
    """Fills `net` from a file. Raises StageError, which tells every misfit at once and ends in `remedy`."""
    facts = read_facts(path)
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping: it has only keys())
    problems = list(_misfits(net.state_dict(), found, model, remedy))
    if not problems and facts.get("sha256", "") not in ("", parameters_digest(found)):
        problems.append(_altered(facts["sha256"], parameters_digest(found), remedy))
    if problems:
        raise StageError(str(path), problems)
    net.load_state_dict(found, strict=False)


def _misfits(
    wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], model: str, remedy: str
) -> Iterator[Problem]:
    # Batch norms count the batches they were trained on. Inference never reads that, and older files lack it.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    if missing:
        rule = f"missing, but a layer of {model} needs each"
        yield Problem(_named(missing), rule, None, "The layer would answer with random weights.", remedy)
    if unexpected:
        rule = f"in the file, but {model} has no such layer"
        yield Problem(_named(unexpected), rule, None, "The file seems to be for another model.", remedy)
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            rule = f"must have the shape {_shape(wanted[name])} in {model}"
            yield Problem(name, rule, _shape(tensor), "The layer cannot compute with it.", remedy)
        elif name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point():
            rule = f"must hold numbers of type {_dtype(wanted[name])} in {model}"
            yield Problem(name, rule, _dtype(tensor), "Read as such they would mean something else.", remedy)


def _named(names: Iterable[str]) -> str:
    """The first three names and how many more."""
    first, *rest = names
    shown, more = [first, *rest[:2]], len(rest[2:])
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "of a single number"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _altered(recorded: str, computed: str, remedy: str) -> Problem:
    return Problem(
        "sha256",
        f"must be {recorded[:12]}…, as the file's header says",
        f"{computed[:12]}…",
        "The weights were damaged or changed after they were saved, and the recorded accuracy is not theirs.",
        remedy,
    )


def _unreadable(path: Path, error: Exception) -> StageError:
    rule = "must be a readable safetensors file"
    consequence = "The model would have no weights."
    remedy = "Correct the path, or convert the file with safetensors.torch.save_file."
    return StageError(str(path), [Problem("model.weights", rule, str(error), consequence, remedy)])
