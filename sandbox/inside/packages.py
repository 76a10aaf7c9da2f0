"""Lets tools and checks install packages: the way to the package routes, and a Python environment that can be written to.

The image is read-only, so pip installs into `/workspace/.venv`, which sees everything of the image's own environment and
is never part of a result (build litter, DECISIONS G2). Not: what may be installed (the gateway's rules).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sandbox.contract.job import Assignment
from sandbox.inside.loopback import forwarding
from sandbox.inside.paths import Paths

IMAGE_VENV = Path("/opt/venv")
VENV = ".venv"


@contextmanager
def installing(assignment: Assignment, paths: Paths, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Open the way while the context is open, if the stage may install packages; yields the environment of tools and checks."""
    if assignment.network == "none":
        yield dict(environment)
        return
    with forwarding(paths.gateway, assignment.packages_port):
        yield {**environment, **writable_venv(paths.workspace / VENV, IMAGE_VENV, environment.get("PATH", ""))}


def writable_venv(at: Path, image: Path, path: str) -> dict[str, str]:
    """Make an empty Python environment on top of the image's and return the variables that make it the one that is used.

    An image without an environment, or a repository that has one of its own, is left as it is: {}.
    """
    libraries = sorted((image / "lib").glob("python3.*"))
    if at.exists() or not libraries or not (image / "pyvenv.cfg").is_file():
        return {}
    packages = at / "lib" / libraries[-1].name / "site-packages"
    packages.mkdir(parents=True)
    (packages / "image.pth").write_text(f"{libraries[-1] / 'site-packages'}\n")
    (at / "pyvenv.cfg").write_bytes((image / "pyvenv.cfg").read_bytes())
    (at / ".gitignore").write_text("*\n")
    programs = at / "bin"
    programs.mkdir()
    for name in ("python", "python3", libraries[-1].name):
        (programs / name).symlink_to(os.path.realpath(image / "bin" / "python"))
    for name in ("pip", "pip3"):
        (programs / name).write_text(f'#!/bin/sh\nexec {programs / "python"} -m pip "$@"\n')
        (programs / name).chmod(0o755)
    # Programs of the image (pytest) run by its own interpreter, and find what was installed by this.
    return {"PATH": f"{programs}:{path}", "VIRTUAL_ENV": str(at), "PYTHONPATH": str(packages)}
