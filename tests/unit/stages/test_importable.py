"""Which changed files are imported to see what they declare, and by which Python."""

import pytest

from supervisor.stages.importable import importable, python_of


def test_modules_of_the_product_are_imported_once_each():
    """Tests, documentation and what is no module of Python are not; nor is what does its work when it is imported."""
    paths = ["src/pkg/b.py", "a.py", "src/pkg/b.py", "pkg/types.pyi", "pkg/data.json", "my.module.py"]
    left_out = ["tests/helper.py", "pkg/test_a.py", "conftest.py", "docs/conf.py", "pkg/__main__.py", "setup.py", "manage.py"]

    assert importable([*paths, *left_out]) == ["a.py", "src/pkg/b.py"]


@pytest.mark.parametrize(
    ("tests", "python"),
    [
        ("pytest -q", "python"),
        ("python -m pytest -q", "python"),
        ("python3.12 -X dev -m pytest", "python3.12 -X dev"),
        ("python -m coverage run -m pytest", "python"),
        ("env A=1 python -m pytest", "env A=1 python"),
        ("uv run pytest -q", "uv run python"),
        ("uv run python -m pytest", "uv run python"),
        ("/opt/other/bin/pytest tests", "/opt/other/bin/python"),
        ("coverage run -m pytest", "python"),
        ("tox -e py311", "python"),
    ],
)
def test_the_python_is_the_one_the_tests_run_in(tests: str, python: str):
    """So that it finds the same packages; where the command does not say, it is found beside `pytest` in the sandbox."""
    assert python_of(tuple(tests.split())) == tuple(python.split())
