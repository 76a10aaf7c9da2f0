"""The write-scope gate: every change judged by the contract's function, and what no path can say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.tree import Change, Entry
from supervisor.gates.scope import judge_scope
from supervisor.pipeline.definition import Role, Stage
from supervisor.stages.contract import scope_for
from tests.fakes.memory_tree import Executable, Link, MemoryTree, Submodule, changes_between

PATHS = st.lists(st.sampled_from(["src", "tests", "docs", "a.py", "README.md", "conftest.py", ".github", "x.lock"]), min_size=1, max_size=3)


def a_stage(role: Role) -> Stage:
    return Stage(name=role, role=role)


def the_paths(base: MemoryTree, result: MemoryTree, role: Role = "implement") -> list[str | None]:
    findings = judge_scope(changes_between(base, result), scope_for(a_stage(role), "x"), a_stage(role))
    assert all(each.check == "write-scope" for each in findings)
    return [each.path for each in findings]


@given(st.lists(PATHS.map("/".join), max_size=6, unique=True), st.sampled_from(["spec", "interface", "implement", "test", "docs"]))
def test_a_change_is_found_exactly_when_the_scope_does_not_allow_it(paths: list[str], role: Role):
    """The gate adds nothing to the scope for ordinary new files."""
    scope = scope_for(a_stage(role), "x")
    new = Entry(mode="100644", sha="1" * 40, size_bytes=1)

    findings = judge_scope([Change(path=path, old=None, new=new) for path in paths], scope, a_stage(role))

    assert sorted(each.path or "" for each in findings) == sorted(path for path in paths if not scope.allows(path))


def test_additions_changes_and_deletions_outside_the_scope_are_found():
    """A deletion is a change; both ends of a rename are."""
    base = MemoryTree({"src/a.py": "1", "tests/test_a.py": "1", "tests/old.py": "1", "README.md": "x"})
    result = base.with_files({"src/a.py": "2", "tests/test_a.py": None, "tests/old.py": None, "src/old.py": "1", "README.md": "y"})

    assert the_paths(base, result) == ["README.md", "tests/old.py", "tests/test_a.py"]
    assert the_paths(base, base.with_files({"src/a.py": "2", "src/b.py": "3"})) == []


def test_a_mode_change_outside_the_scope_is_found_and_inside_it_is_fine():
    """The exec bit is content."""
    base = MemoryTree({"src/run": "x", "tests/run": "x"})

    assert the_paths(base, base.with_files({"src/run": Executable("x"), "tests/run": Executable("x")})) == ["tests/run"]


def test_a_submodule_is_found_even_inside_the_scope():
    """A gitlink is a pointer to code nobody judged."""
    base = MemoryTree({"src/a.py": "1"})

    assert the_paths(base, base.with_files({"src/vendor": Submodule()})) == ["src/vendor"]


def test_a_link_in_the_place_of_a_file_or_directory_is_found_and_a_new_one_is_not():
    """What was a directory of files must not become a pointer to another one (ABUSE S11)."""
    base = MemoryTree({"src/a.py": "1", "src/pkg/b.py": "1", "src/pkg/c.py": "1"})

    assert the_paths(base, base.with_files({"src/a.py": Link("pkg/b.py")})) == ["src/a.py"]
    assert the_paths(base, base.with_files({"src/pkg/b.py": None, "src/pkg/c.py": None, "src/pkg": Link("../lib")})) == ["src/pkg"]
    assert the_paths(base, base.with_files({"src/alias.py": Link("a.py")})) == []


@pytest.mark.parametrize(
    "name", ["json.py", "src/typing.py", "pytest.py", "src/_pytest/__init__.py", "sitecustomize.py", "evil.pth", "src/x/y.pth"]
)
def test_a_module_that_hides_python_s_own_or_pytest_is_found(name: str):
    """It would be imported by the tests in the place of the real one (ABUSE S08)."""
    assert the_paths(MemoryTree(), MemoryTree({name: "x"})) == [name]


@pytest.mark.parametrize("name", ["app/json.py", "src/app/types.py", "jsonx.py", "data/typing.txt", "src/email/data.txt"])
def test_a_module_below_a_package_may_have_any_name(name: str):
    """`app.json` hides nothing."""
    assert the_paths(MemoryTree(), MemoryTree({name: "x"})) == []


def test_a_directory_of_tests_may_be_a_package_called_test():
    """Python's own suite has the same name, and nobody imports it."""
    assert the_paths(MemoryTree(), MemoryTree({"test/__init__.py": "", "tests/__init__.py": ""}), "test") == []
    assert the_paths(MemoryTree(), MemoryTree({"tests/json.py": ""}), "test") == ["tests/json.py"]


def test_an_existing_module_of_such_a_name_may_be_changed():
    """Rules judge what is added."""
    base = MemoryTree({"json.py": "1"})

    assert the_paths(base, MemoryTree({"json.py": "2"})) == []


def test_an_unsafe_path_is_one_finding_and_no_crash():
    """Quarantine refuses such trees already; this gate does not rely on it."""
    change = Change(path="../x", old=None, new=Entry(mode="100644", sha="1" * 40, size_bytes=1))

    (finding,) = judge_scope([change], scope_for(a_stage("implement"), "x"), a_stage("implement"))

    assert "climbs" in finding.message
