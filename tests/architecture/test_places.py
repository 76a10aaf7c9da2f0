"""Things that may happen in one place only; the import rules between layers are import-linter's."""

import ast
from pathlib import Path

import pytest

from tests.architecture.source import attributes, imported, methods_called, modules, tree

SOURCE = ("sandbox", "supervisor")

ONLY_IMPORTERS = {
    "nats": ("sandbox/bus/",),
    "docker": ("sandbox/runtime/",),
    "anthropic": ("sandbox/inside/agent/",),
}
PROCESS_STARTERS = {
    "sandbox/gateway/registries/source.py": "pip and npm, asked for the index they use by themselves",
    "sandbox/git/process.py": "git, with an environment built from empty",
    "sandbox/inside/loopback.py": "our own forwarder, inside the container",
    "sandbox/executor/prove/sweeper.py": "what cleans up after a proof that is killed",
    "sandbox/inside/process.py": "tools and checks, inside the container",
    "sandbox/runtime/images.py": "pip and debootstrap, while an image is built",
    "supervisor/stack/client.py": "the stack",
    "sandbox/inside/sealed/oracle.py": "the product of a sealed run, in the container",
    "supervisor/stack/process.py": "the children of the stack",
    "supervisor/store/broker/embedded.py": "nats-server",
}
ENVIRONMENT_READERS = {
    "sandbox/executor/__main__.py": "entry of a process",
    "supervisor/__main__.py": "entry of a process",
    "supervisor/bootstrap/client.py": "composition root: what the stack inherits",
    "supervisor/bootstrap/host.py": "composition root: what the stack inherits",
    "supervisor/config/settings.py": "configuration",
    "supervisor/stack/process.py": "entry of a process",
}
ATTACKS = "sandbox/executor/prove/attack/"
"""The programs of the proof: they start whatever a hostile one would, in a container."""
IN_CONTAINERS = ("sandbox/inside/", ATTACKS)
"""What never runs on the host."""
NEVER_AFTER_START = {"exec_create", "exec_start", "put_archive", "get_archive", "export", "commit", "prune_containers", "prune_images"}
"""Calls of the Docker SDK that would run in, read from or write into a used container, or touch what is not ours (ABUSE.md D05, D23)."""


FOLLOWS_LINKS = {"copytree", "extractall", "extract", "unpack_archive", "ZipFile"}
"""Calls that write where an archive says, or follow links while they copy."""


@pytest.mark.parametrize("package", sorted(ONLY_IMPORTERS))
def test_a_foreign_library_has_one_adapter(package: str):
    """Its errors are translated and its calls bounded in one place; what it is replaced by one day lives there too."""
    allowed = ONLY_IMPORTERS[package]

    strays = [str(path) for path in modules(*SOURCE) if package in imported(path) and not path.as_posix().startswith(allowed)]

    assert strays == []


def test_processes_are_started_in_reviewed_places():
    """Each starter has a list argv, an environment of its own and a bound; a new one is listed with its reason."""
    starters = {str(path) for path in modules(*SOURCE) if _starts_processes(path) and not path.is_relative_to(ATTACKS)}

    assert starters == set(PROCESS_STARTERS)


def _starts_processes(path: Path) -> bool:
    starting = {"subprocess.Popen", "subprocess.run", "subprocess.check_output", "subprocess.check_call", "subprocess.call", "os.system"}
    names = attributes(path)
    return bool(names & (starting | {"os.popen", "os.fork", "os.posix_spawn", "pty.spawn"})) or any(
        "create_subprocess" in name for name in names
    )


def test_only_the_git_package_runs_git():
    """A git started elsewhere could be pointed at a tree an agent wrote (SANDBOX.md §0.1); in the container there is no host to harm."""
    strays = [
        str(path)
        for path in modules(*SOURCE)
        if _starts_processes(path) and not path.as_posix().startswith(("sandbox/git/", *IN_CONTAINERS)) and _has_git_command(path)
    ]

    assert strays == []


def _has_git_command(path: Path) -> bool:
    lists = (node for node in ast.walk(tree(path)) if isinstance(node, ast.List | ast.Tuple) and node.elts)
    return any(isinstance(node.elts[0], ast.Constant) and node.elts[0].value in ("git", "/usr/bin/git") for node in lists)


def test_the_environment_is_read_in_the_composition_root_only():
    """Everything else is told what it needs, so that a test can tell it something else."""
    readers = {str(path) for path in modules(*SOURCE) if attributes(path) & {"os.environ", "os.getenv", "os.environb"}}

    assert readers - {path for path in readers if path.startswith(IN_CONTAINERS)} == set(ENVIRONMENT_READERS)


@pytest.mark.abuse("D05")
def test_no_call_reaches_into_a_container_that_has_started():
    """`docker exec` and `docker cp` run or follow what the agent left (ABUSE.md D05)."""
    found = {
        str(path): calls for path in modules("sandbox/runtime", "sandbox/executor") if (calls := methods_called(path) & NEVER_AFTER_START)
    }

    assert found == {}


@pytest.mark.abuse("I03", "I04")
def test_nothing_is_unpacked_or_copied_with_its_links():
    """No archive of a sandbox's is taken, and the walker is the one way in."""
    found = {str(path): calls for path in modules(*SOURCE) if (calls := methods_called(path) & FOLLOWS_LINKS)}

    assert found == {}


def test_tests_replace_nothing_behind_the_back_of_the_code():
    """No mock library and no patched attribute: fakes stand in for a seam, and share a suite with the real thing."""
    mocks = [str(path) for path in modules("tests") if "mock" in imported(path) or "unittest.mock" in attributes(path)]
    patches = [str(path) for path in modules("tests") if "monkeypatch.setattr" in attributes(path)]

    assert (mocks, patches) == ([], [])
