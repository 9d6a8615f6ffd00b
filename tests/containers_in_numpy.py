"""Has containers compute `digits` in NumPy, as tests/in_numpy/sitecustomize.py has processes.

    DockerLauncher ── mount /in_numpy, PYTHONPATH ──▶ our image's Python ──▶ sitecustomize.py

Those that a supervisor of `rung up` starts, which is a process of its own, stay with PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reference_apps.launchers import docker_image

INSIDE = "/in_numpy"
RARELY_NS = 3_600_000_000_000  # the health check of the image starts a Python every ten seconds for nobody here


def containers_in_numpy(patch: pytest.MonkeyPatch, source: Path, folder: Path) -> None:
    """Until `patch` is undone; the containers' user reads the files of `source` in the new folder `folder`.

    Raises ImportError where the library of Docker is not installed.
    """
    from docker.types import Mount

    from reference_apps.launchers.docker import DockerLauncher
    from reference_apps.launchers.docker_files import StageFiles

    folder.chmod(0o755)
    for file in source.glob("*.py"):
        copy = folder / file.name
        copy.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        copy.chmod(0o644)
    start, mounts = DockerLauncher._start_container, StageFiles.mounts

    def started(self: DockerLauncher, member: Any, image: str, words: list[str], **more: Any) -> Any:
        if image == docker_image.IMAGE:
            more["environment"] = {"PYTHONPATH": INSIDE} | more.get("environment", {})
            more.setdefault("healthcheck", {"interval": RARELY_NS})
        return start(self, member, image, words, **more)

    def mounted(self: StageFiles, part: str) -> list[Any]:
        return [*mounts(self, part), Mount(INSIDE, str(folder), type="bind", read_only=True)]

    patch.setattr(DockerLauncher, "_start_container", started)
    patch.setattr(StageFiles, "mounts", mounted)
