"""What an attacker can try against us, row by row; `tests/architecture/test_security.py` compares it with the tests.

A test is about a row if it carries `@pytest.mark.abuse("G01", …)`; tests of any folder may. Each row needs a positive control: the
attack is first seen to work where the wall is absent (plain git, an engine's default flags, a naive parser, no accounts). It stands in
the marked test itself, and then the word "control" is in it, or in a test `test_control_…` with the same marker. Rows are never renumbered.
Not responsible for what we promise: SECURITY.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "high", "medium", "low"]


@dataclass(frozen=True)
class Row:
    """One thing an attacker can try."""

    id: str
    """Family and number: G git, D container, I what the host reads, W gateway, N broker, S verdicts, A requests and display, P agent."""
    severity: Severity
    title: str
    accepted: str = ""
    """Why we live with it: no test is owed."""
    later: str = ""
    """What it attacks and we do not have yet: no test is owed until then."""
    no_control: str = ""
    """Why the attack cannot be shown to work anywhere, so that no control is owed."""


def _rows(severity: Severity, titles: dict[str, str]) -> Iterable[Row]:
    return (Row(id=row, severity=severity, title=title) for row, title in titles.items())


_CRITICAL = {
    "G01": "a file system monitor in the agent's git configuration, run by the host's git",
    "G02": "a `.git` file that points at a repository of the agent's own",
    "G03": "hooks of every name, in place or by core.hooksPath",
    "G04": "clean, smudge and process filters chosen by .gitattributes",
    "G05": "a repository inside the repository, or a submodule, that git recurses into",
    "G06": "a promisor remote whose missing objects are fetched by a command",
    "G07": "an index that names files outside the tree",
    "G08": "core.worktree that points at someone else's files",
    "G09": "configuration brought in by commondir, config.worktree or include.path",
    "G10": "file, branch and slug names that look like options",
    "G11": "hard links from a workspace into the store's objects",
    "G12": "a git bundle whose trees hold names that trick",
    "D01": "the engine's socket within reach",
    "D02": "a set-uid file in the workspace for another user of the host",
    "D03": "a device node in the workspace",
    "D04": "faults of runc that start from a work directory, image or mount of the attacker's choice",
    "D05": "programs the agent replaced, run by a host that enters a used container",
    "D06": "release_agent, core_pattern and sysrq: kernel settings that run on the host",
    "D07": "VSOCK, the line to a hypervisor that no network namespace covers",
    "I01": "a link in the output that a host's open() follows",
    "I02": "a directory of the agent's that is a link when the host writes into it",
    "I03": "a copy that follows links",
    "I04": "archives that unpack outside their directory",
    "W01": "the provider's key, looked for everywhere",
    "W02": "a key, host or upstream named by the request",
    "W03": "paths that change the host they are joined to",
    "W04": "egress at the provider: tools, MCP servers, URLs and files in the body",
    "N01": "a result published for another executor's job",
    "N02": "an object replaced under its name",
    "N03": "an answer in somebody else's inbox",
    "S01": "product code that rewrites the reports of its tests",
    "S02": "conftest, plugins and ini files that rewrite the results",
    "S03": "a change of the configuration that judges the change",
    "S04": "commands named by the repository, run on the host",
    "S05": "a Dockerfile or compose file of the agent's, built",
    "A01": "YAML that makes objects",
    "A02": "paths and slugs that leave their directory",
}

_HIGH = {
    "G13": "replace refs and grafts that show other content than what is stored",
    "G14": "changes hidden by index flags and ignore files",
    "D08": "fork and thread bombs",
    "D09": "memory: allocations, tmpfs, page cache",
    "D10": "a full disk by way of the workspace",
    "D11": "inodes used up",
    "D12": "a flood of log lines",
    "D13": "kernel limits counted by user, used up by a neighbour",
    "D14": "processes that outlive their job",
    "D15": "a job that never ends",
    "D16": "CPU and disk time taken from neighbours",
    "D17": "the kernel's newer doors: io_uring, bpf, user namespaces",
    "D18": "a link in the workspace where the next stage mounts something",
    "D19": "a directory to be mounted, exchanged for a link before the start",
    "D20": "environment and flags of the engine, injected by a pipeline or a repository",
    "I05": "FIFOs and sockets that block a reader",
    "I06": "directories so deep that recursion breaks",
    "I07": "huge and sparse files",
    "I08": "files in the ten thousands",
    "I09": "a git bundle of a few hundred bytes with millions of paths",
    "I10": "a git bundle of a megabyte with a file of a gigabyte",
    "I11": "names that are not UTF-8, or hold control and direction characters",
    "I12": "names that collide by case or Unicode form",
    "I13": "hard links that get around the scope",
    "I14": "a file exchanged while it is read",
    "I15": "data files with bombs: depth, aliases, NaN",
    "I16": "status and usage as the agent reports them",
    "W05": "many calls at once past one budget",
    "W06": "a stream broken off before its usage",
    "W07": "usage that is negative, NaN or made up",
    "W08": "another model, a repeated key, a dearer service level",
    "W09": "batches and other ways to spend outside the call",
    "W10": "retries and tool loops without end",
    "W11": "connections and slow headers by the hundred",
    "W12": "requests whose framing two parsers read differently",
    "W13": "CONNECT and absolute-form requests",
    "W14": "names that resolve to inner addresses, and addresses written oddly",
    "W15": "host names that trick an allow-list",
    "W16": "a package registry as a way out",
    "W17": "redirects to an inner address",
    "W18": "a cassette's reply that another job replays",
    "W19": "one container on another's socket",
    "N04": "an acknowledgement or TERM with a guessed subject",
    "N05": "a message suppressed by its own id, sent first",
    "N06": "streams deleted, purged or made by an executor",
    "N07": "storage filled until nobody can publish",
    "N08": "wildcards and overlong words in subjects",
    "N09": "an executor that takes every job and ends none",
    "N10": "an old result, sent again",
    "N11": "an executor's tree, taken on its word",
    "S06": "tests that are empty, deleted, skipped or expected to fail",
    "S07": "stale bytecode and caches",
    "S08": "modules that shadow others, .pth files, sitecustomize",
    "S09": "suppressed findings and nested configuration",
    "S10": "an interface lock got around",
    "S11": "a write scope got around: links, renames, modes, submodules, case",
    "S12": "files that run on the machine of whoever opens the repository",
    "S13": "instructions left for the next agent",
    "S14": "dependencies and lock files",
    "A03": "markup in names and logs that a page would run",
    "A04": "a websocket opened from another site",
    "A05": "forms and names of another site that reach a local API",
    "A06": "an executor that acts for another",
    "A07": "patterns that take for ever to match",
    "A08": "ports open to the network",
    "P01": "an agent that kills or patches its own loop",
    "P02": "text of one stage that commands the next",
}

_MEDIUM = {
    "G15": "alternates that borrow another repository's objects",
    "G16": "attributes that alter content on its way",
    "G17": "ref names in a git bundle",
    "G18": "a workspace that refuses to be removed",
    "G19": "clones with submodules and bundle URIs",
    "G20": "a forged author or date",
    "D21": "descriptors, core dumps, message queues",
    "D22": "facts about the host",
    "D23": "containers that are not ours, swept away",
    "D24": "shared memory between jobs",
    "D25": "a job that stops its own clock",
    "I17": "control sequences for the terminal that shows a log",
    "I18": "newlines that forge a log's records",
    "I19": "a result message beyond its size",
    "S15": "source whose text and meaning differ: encodings, direction characters",
    "S16": "a report rewritten after the run",
    "S17": "lines left out of coverage",
    "S18": "changes hidden from review by attributes",
    "P03": "forged and endless spans",
    "P04": "a repository's secrets, echoed",
}

_LOW = {
    "P05": "the provider's prompt cache, forced",
    "P06": "a signal by the times and sizes of calls",
}

_NOTES = {
    "P06": {"accepted": "two bits a call to a provider that sees every call's text anyway; nobody else sees its times"},
    "A03": {"later": "no page of ours shows agents' text: there is no dashboard yet; terminal and report are rows I17 and I18"},
    "A04": {"later": "there is no websocket yet"},
}
"""Fields of single rows, besides their titles."""

CATALOGUE: dict[str, Row] = {
    row.id: Row(row.id, row.severity, row.title, **_NOTES.get(row.id, {}))
    for row in [*_rows("critical", _CRITICAL), *_rows("high", _HIGH), *_rows("medium", _MEDIUM), *_rows("low", _LOW)]
}
