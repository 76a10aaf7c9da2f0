"""Tests parted from the product: what tests may do with a product in another process, and what the product cannot do to them."""

import os
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sandbox.contract.job import Assignment, Check, CheckExit
from sandbox.contract.scope import WriteScope
from sandbox.inside.checks.runner import run_checks
from sandbox.inside.checks.sealing import product_paths
from sandbox.inside.paths import Paths, base_environment
from sandbox.inside.sealed.walls import landlock_abi

pytestmark = pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")

TESTS = WriteScope(patterns=("tests/**", "**/test_*.py", "conftest.py"))
CANARY = "test_that_must_fail"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.below(str(tmp_path))
    for directory in (found.workspace, found.out, found.tmp, found.home):
        directory.mkdir(parents=True)
    return found


def sealed_run(paths: Paths, product: str, tests: str, **more: str) -> tuple[dict[str, str], CheckExit]:
    """Run tests of a product sealed and return each test's end by name, without the canary, and how the command ended."""
    files = {"app.py": product, "tests/test_app.py": f"import pytest\nimport app\nfrom app import *\n{textwrap.dedent(tests)}", **more}
    for name, text in files.items():
        path = paths.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:asyncio", "-p", "no:cacheprovider")
    check = Check(name="tests", argv=argv, report="junit", is_tests=True, canary=True, tests_scope=TESTS, timeout_s=60)
    assignment = Assignment(
        job_id="0123456789-validate-1", stage="validate", round=1, attempt=1, kind="checks", checks=(check,), traceparent="", wall_s=60
    )
    environment = {**base_environment(paths), "PATH": os.environ["PATH"]}
    ended = run_checks(assignment, paths, environment, lambda line: None).exits[0]
    ends = {case.get("name", ""): _end(case) for case in ElementTree.parse(paths.out / "tests.xml").getroot().iter("testcase")}
    assert ends.pop(CANARY, "failed").startswith("failed")
    return ends, ended


def _end(case: ElementTree.Element) -> str:
    below = next(iter(case), None)
    return "passed" if below is None else f"failed: {below.get('message', '')}"


PRODUCT = '''
    import asyncio, dataclasses, os, subprocess, sys

    __all__ = ["Limit", "TooMany", "allow", "late", "numbers", "pack", "say", "spoil", "tick", "two"]
    TABLE = {"a": (1, 2.5), "b": {3}}

    class TooMany(ValueError):
        def __init__(self, text, retry_after): super().__init__(text); self.retry_after = retry_after

    class Limit:
        def __init__(self, most): self.most = most
        def allow(self, n): return n <= self.most
        def __enter__(self): return self
        def __exit__(self, *_): return False
        def __len__(self): return self.most
        def __getitem__(self, at): return at * 2

    def allow(n, *, most=100):
        if n > 1000: raise TooMany("too many", 60)
        return n <= most
    def late(n): return asyncio.sleep(0, n)
    def numbers(): yield 1; yield 2
    def pack(data): return bytes(data)
    def say(name): return os.environ.get(name)
    def spoil(items): items.append("more")
    def tick(clock): return clock() + clock()
    def two(): return Limit(2)
'''  # fmt: skip


def test_plain_tests_run_sealed_as_they_are(paths: Paths):
    """Functions, classes, constants, exceptions, context managers, iterators, awaitables, callbacks, the environment."""
    ends, ended = sealed_run(
        paths,
        PRODUCT,
        """
        import asyncio
        def test_call(): assert allow(100) is True and allow(5, most=4) is False
        def test_constant(): assert app.TABLE == {"a": (1, 2.5), "b": {3}}
        def test_object():
            limit = Limit(3)
            assert limit.allow(3) and not limit.allow(4) and limit.most == 3 and len(limit) == 3 and limit[4] == 8
        def test_with():
            with Limit(3) as limit: assert limit.most == 3
        def test_raises():
            with pytest.raises(TooMany, match="too many") as caught: allow(2000)
            assert caught.value.retry_after == 60 and isinstance(caught.value, ValueError)
        def test_raises_builtin():
            with pytest.raises(TypeError): allow()
        def test_iterate(): assert list(numbers()) == [1, 2]
        def test_bytes(): assert pack([1, 2]) == b"\\x01\\x02"
        def test_await():
            async def main(): return await late(3)
            assert asyncio.run(main()) == 3
        def test_changed_in_place():
            items = ["one"]
            spoil(items)
            assert items == ["one", "more"]
        def test_callback(): assert tick(lambda: 21) == 42
        def test_environment(monkeypatch):
            monkeypatch.setenv("WHO", "me")
            assert say("WHO") == "me"
        def test_reload():
            import importlib
            assert importlib.reload(app).allow(1)
        """,
    )

    assert {name: end for name, end in ends.items() if end != "passed"} == {}
    assert len(ends) == 13
    assert (ended.exit_code, ended.sealed, ended.why_not_sealed) == (0, True, "")
