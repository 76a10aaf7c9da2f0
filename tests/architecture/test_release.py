"""One release number, wherever it is said."""

import tomllib
from pathlib import Path

from sandbox.contract.release import RELEASE


def test_the_release_is_the_distributions():
    """Heartbeats, spans and `andon version` agree."""
    assert tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"] == RELEASE
