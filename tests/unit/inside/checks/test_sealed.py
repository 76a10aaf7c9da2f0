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
    canaries = [ends.pop(name) for name in list(ends) if name.startswith(CANARY)]
    assert all(end.startswith("failed") for end in canaries)
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


BEYOND = """
    class Sub(str):
        def __eq__(self, other): return True
        __hash__ = str.__hash__
    class Box: pass
    def sub(): return Sub("no")
    def box(): return Box()
    def deep():
        found = []
        for _ in range(100): found = [found]
        return found
    def big(): return "x" * (17 << 20)
    def leave(): import os; os._exit(3)
    def noise():
        import os, stat
        for each in range(3, 100):
            try:
                if stat.S_ISSOCK(os.fstat(each).st_mode): os.write(each, b"junk" * 100)
            except OSError: pass
    def child(): import subprocess, sys; return subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout
    def peek(): return open(__file__.replace("app.py", "tests/test_app.py")).read()
    def write(where): open(where, "w").write("x")
    def kill(pid): import os; os.kill(pid, 9)
"""


def test_what_cannot_be_done_across_processes_fails_and_says_so(paths: Paths):
    """Never a pass that the product decided: no object of its own is compared, and no nonsense is believed."""
    ends, ended = sealed_run(
        paths,
        BEYOND,
        """
        def test_equal(): assert app.sub() == "yes"
        def test_truth(): assert app.box()
        def test_replace(monkeypatch): monkeypatch.setattr(app, "box", lambda: 1)
        def test_deep(): app.deep()
        def test_object(): app.write(object())
        def test_plain(): assert 1
        def test_too_big(): app.big()
        """,
    )

    told = {name: end for name, end in ends.items() if end != "passed"}
    assert sorted(told) == ["test_deep", "test_equal", "test_object", "test_replace", "test_too_big", "test_truth"]
    assert "cannot be compared across processes" in told["test_equal"]
    assert "cannot be asked for its truth" in told["test_truth"]
    assert "cannot be replaced across processes" in told["test_replace"]
    assert "cannot be handed to a product in another process" in told["test_object"]
    assert ended.exit_code == 1


def test_the_product_reaches_neither_tests_nor_report_nor_the_other_process(paths: Paths):
    """The control: a test does each of these itself."""
    (paths.out / "old.xml").write_text("old")
    ends, _ = sealed_run(
        paths,
        BEYOND,
        f"""
        import os, subprocess, sys
        HERE, REPORT = __file__, {str(paths.out / "old.xml")!r}
        def test_read():
            open(HERE).read()
            with pytest.raises(PermissionError): app.peek()
        def test_report():
            open(REPORT, "w").close()
            with pytest.raises(PermissionError): app.write(REPORT)
        def test_signal():
            os.kill(os.getpid(), 0)
            if {landlock_abi()} >= 6:
                with pytest.raises(PermissionError): app.kill(os.getpid())
        def test_command():
            read = "import sys; open(sys.argv[1]).read(); print('read')"
            done = subprocess.run([sys.executable, "-c", read, HERE], capture_output=True, text=True)
            assert "PermissionError" in done.stderr and not done.stdout
            said = subprocess.run("echo $((1 + 1))", shell=True, capture_output=True, text=True)
            assert said.stdout == "2\\n"
        def test_child(): assert app.child() == b"1\\n"
        def test_scratch(tmp_path):
            app.write(tmp_path / "x")
            assert (tmp_path / "x").read_text() == "x"
        def test_run_here():
            import runpy
            with pytest.raises(TypeError, match="runs in its own process only"): runpy.run_path(app.__file__)
        def test_system():
            with pytest.raises(TypeError, match="beside the wall"): os.system("true")
        """,
    )

    assert {name: end for name, end in ends.items() if end != "passed"} == {}
    assert len(ends) == 8


@pytest.mark.parametrize("fault", ["leave", "noise"])
def test_a_product_that_ends_or_speaks_nonsense_fails_every_test_after(paths: Paths, fault: str):
    """And not the tests that ran before it."""
    ends, _ = sealed_run(paths, BEYOND, f"def test_1(): app.child()\ndef test_2(): app.{fault}()\ndef test_3(): app.child()\n")

    assert [name for name, end in ends.items() if end == "passed"] == ["test_1"]


def test_the_product_may_read_what_is_no_test(tmp_path: Path):
    """Whole directories where no test is below, single files where one is; neither links nor git's store."""
    for name in (
        "app.py",
        "pkg/a.py",
        "pkg/sub/b.py",
        "mix/c.py",
        "mix/test_c.py",
        "mix/deep/d.py",
        "tests/t.py",
        ".git/objects/x",
        "conftest.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path / "tests")

    found = product_paths(tmp_path, TESTS)

    assert [path.removeprefix(f"{tmp_path}/") for path in found] == ["app.py", "mix/c.py", "mix/deep", "pkg"]
