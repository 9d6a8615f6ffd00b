"""The images that a stage's containers are made of: ours, built when its files have changed, and nginx's, pulled once.

files that .dockerignore lets through ──▶ digest ── as the label of rung:local? ──▶ there already, or built
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reference_apps.launchers.docker_engine import Engine, connect, in_words
from reference_apps.launchers.member import LaunchError
from stages.spec import Stage

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = "reference_apps/Dockerfile"
IMAGE = "rung:local"
PACKAGES = "rung-packages:local"  # the first part of the Dockerfile: named, so that it is kept for the next build
NGINX_IMAGE = "nginx:stable"
SOURCE = "rung.source"  # label: the digest of what the image was built from
# The longest that the engine may say nothing while it builds or pulls: packages are downloaded meanwhile.
_SILENCE_TIMEOUT_S = 1800
_LINES_SHOWN = 15


def prepare(engine: Engine, stage: Stage, say: Callable[[str], None]) -> None:
    """Makes sure of every image that the stage needs; `say` hears of each step. Raises LaunchError in words."""
    if stage.device.kind == "cuda":
        raise LaunchError(
            'device.kind: must be "cpu" or "emulated" in docker, got "cuda". The image has PyTorch for processors. '
            "Leave --on docker out to run processes."
        )
    ours(engine, say)
    if stage.gateway is not None and stage.gateway.engine == "nginx":
        nginx(engine, say)


def ours(engine: Engine, say: Callable[[str], None], root: Path = ROOT) -> str:
    """The id of the image of replicas and gateway, built from the files under `root` unless it was before.

    Raises LaunchError when there are none, or when the build fails, with its last lines.
    """
    from docker.errors import ImageNotFound

    if not (root / DOCKERFILE).is_file() or not (root / ".dockerignore").is_file():
        raise LaunchError(
            f"{root / DOCKERFILE}: must be there, with the whole project around it. The image is built from it. "
            "Use a checkout of the project (`git clone`, then `make setup`), or leave --on docker out."
        )
    source = digest(root)
    with in_words("docker: it was not told which image is there"), contextlib.suppress(ImageNotFound):
        image = engine.images.get(IMAGE)
        if image.labels.get(SOURCE) == source:
            return str(image.id)
    with in_words("docker: the image was not built"):
        _build(engine, root, PACKAGES, say, target="packages", labels={SOURCE: source})
        _build(engine, root, IMAGE, say, labels={SOURCE: source})
        built = str(engine.images.get(IMAGE).id)
    with contextlib.suppress(LaunchError), in_words("docker: images of before were not removed"):
        engine.images.prune(filters={"dangling": True, "label": SOURCE})  # those that nothing runs from
    return built


def nginx(engine: Engine, say: Callable[[str], None]) -> str:
    """The id of nginx's image, pulled if it is not there. Raises LaunchError when it cannot be."""
    from docker.errors import APIError, ImageNotFound
    from requests.exceptions import RequestException

    with in_words(f"docker: it was not told whether {NGINX_IMAGE} is there"), contextlib.suppress(ImageNotFound):
        return str(engine.images.get(NGINX_IMAGE).id)
    say(f"Pulling {NGINX_IMAGE}")
    try:
        return str(engine.images.pull(*NGINX_IMAGE.split(":")).id)
    except (APIError, RequestException) as error:
        told = getattr(error, "explanation", None) or error
        raise LaunchError(
            f"{NGINX_IMAGE}: the image must be there or be pulled, got: {told}. There is no gateway. "
            f"Try `docker pull {NGINX_IMAGE}`, or set gateway.engine=rung."
        ) from None


def digest(root: Path = ROOT) -> str:
    """What the image would be built from, as one number: every file that .dockerignore lets through.

    Wheels count by name and size, because reading gigabytes would take longer than starting the stage.
    """
    from docker.utils.build import exclude_paths

    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    total = hashlib.sha256()
    for name in sorted(exclude_paths(str(root), patterns, dockerfile=DOCKERFILE)):
        path = root / name
        if path.is_file():
            content = str(path.stat().st_size).encode() if path.suffix == ".whl" else path.read_bytes()
            total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def _build(engine: Engine, root: Path, tag: str, say: Callable[[str], None], **options: Any) -> None:
    """Builds what `tag` is to name, on this machine's own network, whose proxies and name servers are known to work."""
    said = engine.api.build(
        path=str(root),
        dockerfile=DOCKERFILE,
        tag=tag,
        network_mode="host",
        rm=True,
        forcerm=True,
        decode=True,
        timeout=_SILENCE_TIMEOUT_S,
        **options,
    )
    _listen(said, say)


def _listen(said: Iterable[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Passes the steps of a build on. Raises LaunchError with its last lines when it fails."""
    last: deque[str] = deque(maxlen=_LINES_SHOWN)
    for message in said:
        for line in str(message.get("stream", "")).splitlines():
            if line.startswith("Step "):
                say(f"Building the image: {line[5:].strip()}")
            if line.strip():
                last.append(line.rstrip())
        if "error" in message:
            shown = "\n".join(f"  | {line}" for line in last)
            raise LaunchError(
                f"docker: the image was not built: {message['error']}\nThe last lines:\n{shown}\n"
                f"See them all with `docker build --network host -f {DOCKERFILE} .` in {ROOT}. "
                "It needs python:3.11-slim from Docker Hub and packages from PyPI, the first time."
            )


def main() -> int:
    """Builds the image, and tells its steps: `python -m reference_apps.launchers.docker_image`."""
    try:
        with contextlib.closing(connect()) as engine:
            say(ours(engine, say))
    except LaunchError as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    """Progress for whoever waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
