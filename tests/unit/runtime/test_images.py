"""What an image is known by."""

import pytest

from sandbox.runtime.images import agent_image_key, base_image_key, copies_files, libraries_image_key


def test_keys_are_stable_and_different():
    """A tag is the hash of content: the same on every call, another for every image."""
    keys = [base_image_key(), libraries_image_key(), agent_image_key()]

    assert keys == [base_image_key(), libraries_image_key(), agent_image_key()]
    assert len(set(keys)) == 3
    assert all(len(key) == 24 for key in keys)


@pytest.mark.parametrize(
    ("dockerfile", "copies"),
    [
        (b"FROM andon/agent\nRUN pip install x\n", False),
        (b"FROM andon/agent\nCOPY requirements.txt /tmp/\n", True),
        (b"from andon/agent\n  add a b\n", True),
        (b"FROM andon/agent\nRUN echo COPY me\n", False),
        (b"FROM andon/agent\nRUN echo \\\n  && COPY=1 true\n", False),
        (b"FROM a AS b\nFROM andon/agent\nCOPY --from=b /x /y\n", False),
        (b"FROM andon/agent\nCOPY --chown=1:1 a b\n", True),
        (b"FROM andon/agent\n# COPY a b\n", False),
        (b"FROM andon/agent\nONBUILD COPY a b\n", True),
    ],
)
def test_a_dockerfile_that_takes_files_is_built_each_time(dockerfile: bytes, copies: bool):
    """Its result depends on more than its own content."""
    assert copies_files(dockerfile) is copies
