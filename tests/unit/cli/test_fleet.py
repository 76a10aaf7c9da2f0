"""`andon fleet`: who is there, and who may come; the broker's directory is real, its server does not run."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sandbox.contract.credentials import ExecutorCredentials, SupervisorCredentials, read_credentials
from sandbox.contract.wire import PROTOCOL_VERSION, Heartbeat
from supervisor.api.fleet import Admitted, executor_rows
from supervisor.cli.fleet_table import print_table
from supervisor.store.broker.admission import Listen, admitted, prepare
from tests.fakes.command_line import CommandLine

NOW = 1_735_689_700.0


def a_beat(executor: str = "ex1", **changes: object) -> Heartbeat:
    """Return a life sign of three seconds ago."""
    values = {"executor": executor, "release": "0.4.0", "pools": ("default",), "labels": {"mem": "16"}, "slots": 2, "busy": 1}
    return Heartbeat.model_validate({**values, "model": "live", "host": "build-7", "seen_at": NOW - 3, **changes})


@pytest.fixture
def fleet(andon: CommandLine) -> CommandLine:
    """Return a command line whose host has a broker's directory that serves other hosts."""
    andon.state.nats.parent.mkdir(parents=True, exist_ok=True)
    prepare(andon.state.nats, Listen.parse("0.0.0.0:4222", "broker.example"))
    return andon


@pytest.mark.parametrize(
    ("beat", "standing"),
    [
        (a_beat(), "ready"),
        (a_beat(busy=2), "full"),
        (a_beat(held="draining"), "held"),
        (a_beat(version=PROTOCOL_VERSION + 1, held="draining"), "refused"),
    ],
)
def test_an_executor_stands_as_its_life_sign_says(beat: Heartbeat, standing: str) -> None:
    """The worst thing counts: one that speaks another protocol is given no job, whatever else it says."""
    assert [row.standing for row in executor_rows([beat], [], NOW)] == [standing]


def test_who_is_admitted_and_away_is_absent() -> None:
    """A connected one is listed once, with what its life sign says; everybody by name."""
    known = [Admitted(name="ex1", pools=("gpu",)), Admitted(name="aaa", pools=("gpu",), labels={"gpu": "a100"})]

    rows = executor_rows([a_beat()], known, NOW)

    assert [(row.executor, row.standing, row.age_s, row.pools) for row in rows] == [
        ("aaa", "absent", None, ("gpu",)),
        ("ex1", "ready", 3.0, ("default",)),
    ]


def test_the_list_is_plain_lines_in_a_pipe_with_what_is_wrong_below(andon: CommandLine) -> None:
    """One line an executor, fields in columns; then what keeps one from work."""
    odd = a_beat("ex2", version=PROTOCOL_VERSION + 1, release="9.0.0", missing=("no quota mount",), model="none", labels={})
    andon.bootstrap.client.signs = [[a_beat(missing=("no quota mount",)), odd]]

    ended = andon("fleet")

    assert ended.out.splitlines() == [
        "ex1  ready    1/2  default  mem=16  0.4.0   build-7  3 s ago",
        "ex2  refused  1/2  default  -       9.0.0!  build-7  3 s ago",
        "ex1, ex2: missing: no quota mount",
        f"ex2: speaks protocol {PROTOCOL_VERSION + 1}, this andon {PROTOCOL_VERSION}; upgrade andon here",
        "ex2: has no key of the provider, so no live run can use it",
    ]


def test_the_list_as_json_is_one_object_an_executor(andon: CommandLine) -> None:
    """`andon fleet --json` and `andon fleet list --json` are the same."""
    andon.bootstrap.client.signs = [[a_beat()]]

    rows = json.loads(andon("fleet", "--json").out)

    assert rows == json.loads(andon("fleet", "list", "--json").out)
    assert (rows[0]["executor"], rows[0]["seen_at"], rows[0]["labels"]) == ("ex1", "2025-01-01T00:01:37.000Z", {"mem": "16"})


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_its_terminal(width: int) -> None:
    """Whatever the labels: nothing is cut away without a word, no line is longer than the terminal."""
    labels = {"arch": "x86_64", "mem": "64", "gpu": "a100", "zone": "rack-12"}
    out = StringIO()

    print_table(executor_rows([a_beat(labels=labels)], [], NOW), Console(file=out, width=width, force_terminal=False))

    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "rack-12" in shown.replace("\n", "").replace(" ", "") or width == 40


def test_without_a_stack_the_list_says_how_to_start_one(fleet: CommandLine) -> None:
    """Who is admitted is known all the same; nothing is started."""
    fleet.bootstrap.is_up = False
    fleet("fleet", "add", "ex1", "--output", str(fleet.home / "ex1.andon.json"))

    ended = fleet("fleet")

    assert (ended.code, ended.out) == (0, "ex1  absent  -  default  -  -  -  -\n")
    assert ended.err.startswith("andon: no stack is running; start it with: andon up")
    assert fleet.bootstrap.connections == 0


def test_add_writes_one_file_for_its_owner_only_and_says_what_comes_next(fleet: CommandLine) -> None:
    """With the address others use, the authority of its certificate, pools and labels."""
    path = fleet.home / "ex1.andon.json"

    ended = fleet("fleet", "add", "ex1", "--pool", "gpu", "--pool", "default", "--label", "mem=64", "--output", str(path))

    written = read_credentials(path, ExecutorCredentials)
    assert (written.url, written.executor, written.pools) == ("tls://broker.example:4222", "ex1", ("gpu", "default"))
    assert (written.labels, written.ca is not None, path.stat().st_mode & 0o777) == ({"mem": "64"}, True, 0o600)
    assert ended.out.endswith("\n  andon executor --creds ex1.andon.json\n")
    assert [user.name for user in admitted(fleet.state.nats)] == ["ex1"]
    assert (written.nkey_seed or "-") not in ended.out + ended.err


def test_a_client_gets_a_file_that_names_the_fleet(fleet: CommandLine) -> None:
    """It is all that `andon run` elsewhere needs."""
    path = fleet.home / "ada.andon.json"

    ended = fleet("fleet", "add", "ada", "--client", "--output", str(path))

    assert read_credentials(path, SupervisorCredentials).client == "ada"
    assert 'NATS_CREDS=ada.andon.json andon run "what you want" --repo PATH' in ended.out


def test_add_replaces_neither_a_file_nor_a_member_unasked(fleet: CommandLine) -> None:
    """A file in the way is looked for first: nobody is admitted whose key is not kept."""
    path, other = fleet.home / "ex1.andon.json", fleet.home / "other.andon.json"
    path.write_text("mine")

    in_the_way = fleet("fleet", "add", "ex1", "--output", str(path))
    nobody = admitted(fleet.state.nats)
    fleet("fleet", "add", "ex1", "--output", str(other))
    again = fleet("fleet", "add", "ex1", "--output", str(fleet.home / "third"))
    forced = fleet("fleet", "add", "ex1", "--output", str(path), "--force")

    assert (in_the_way.code, nobody, again.code, forced.code) == (2, (), 2, 0)
    assert in_the_way.err == f"andon: error: {path} exists; --force replaces it, --output FILE names another one\n"
    assert "'ex1' is admitted already" in again.err
    assert read_credentials(path, ExecutorCredentials).nkey_seed != read_credentials(other, ExecutorCredentials).nkey_seed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["Ex1"], "'Ex1' is no name"),
        (["local"], "'local' is the name of every stack's own executor"),
        (["ex1", "--label", "mem"], "--label 'mem': use NAME=VALUE"),
        (["ex1", "--label", "MEM=1"], "--label MEM"),
        (["ex1", "--pool", "a b"], "pools"),
        (["ada", "--client", "--pool", "gpu"], "a client has no pools or labels"),
        (["supervisor"], "is a name of the broker's own"),
        (["ex1", "--output", "/nonexistent/x"], "its directory does not exist"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_exit_code_2(fleet: CommandLine, arguments: list[str], says: str) -> None:
    """And nobody is admitted."""
    ended = fleet("fleet", "add", *(arguments if "--output" in arguments else [*arguments, "--output", str(fleet.home / "x")]))

    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert says in ended.err
    assert admitted(fleet.state.nats) == ()


def test_for_a_foreign_cluster_the_stanza_is_printed_besides(fleet: CommandLine, tmp_path: Path) -> None:
    """We may not write its configuration; the key's public half is what goes there."""
    ours, path = tmp_path / "ada.andon.json", tmp_path / "ex9.andon.json"
    fleet("fleet", "add", "ada", "--client", "--output", str(ours))
    fleet.environ = {"NATS_URL": "tls://cluster.example:4222", "NATS_CREDS": str(ours)}

    ended = fleet("fleet", "add", "ex9", "--output", str(path))

    assert read_credentials(path, ExecutorCredentials).url == "tls://cluster.example:4222"
    assert "users of account EXEC" in ended.out
    assert (read_credentials(path, ExecutorCredentials).nkey_seed or "-") not in ended.out
    assert admitted(fleet.state.nats) == ()
    assert "take the user ex9 out" in fleet("fleet", "remove", "ex9").err


def test_drain_waits_until_the_executor_has_gone(andon: CommandLine) -> None:
    """It is told once and looked for until its life sign is gone."""
    andon.bootstrap.client.signs = [[a_beat()], [a_beat(held="draining")], []]

    ended = andon("fleet", "drain", "ex1")

    assert (ended.code, andon.bootstrap.client.drained) == (0, ["ex1"])
    assert ended.err == "andon: ex1 drains; 1 job to finish\n"
    assert ended.out == "ex1 has gone; its key stays good until: andon fleet remove ex1\n"


def test_drain_need_not_wait(andon: CommandLine) -> None:
    """Then it says how much is left to do."""
    andon.bootstrap.client.signs = [[a_beat(busy=2)]]

    assert andon("fleet", "drain", "ex1", "--no-wait").out == "ex1 was told to drain; 2 jobs to finish\n"


@pytest.mark.parametrize(("name", "says"), [("ex7", "no executor 'ex7' is connected"), ("local", "this stack's own executor")])
def test_what_cannot_be_drained_is_exit_code_2(andon: CommandLine, name: str, says: str) -> None:
    """An unknown name, and the stack's own, which it would start again."""
    ended = andon("fleet", "drain", name)

    assert ended.code == 2
    assert says in ended.err
    assert andon.bootstrap.client.drained == []


def test_remove_revokes_a_key_once(fleet: CommandLine) -> None:
    """A second time there is nobody of that name."""
    fleet("fleet", "add", "ex1", "--output", str(fleet.home / "ex1.andon.json"))

    first, second = fleet("fleet", "remove", "ex1"), fleet("fleet", "remove", "ex1")

    assert (first.code, second.code, admitted(fleet.state.nats)) == (0, 2, ())
    assert "nobody named 'ex1' is admitted" in second.err


def test_init_prepares_a_directory_for_a_server_somebody_else_starts(andon: CommandLine, tmp_path: Path) -> None:
    """Keys, certificate and configuration; who was admitted stays."""
    directory = tmp_path / "broker"
    andon.environ = {"ANDON_BROKER_DIRECTORY": str(directory)}

    ended = andon("fleet", "init", "--listen", "0.0.0.0:4222", "--advertise", "nats")
    andon("fleet", "add", "ex1", "--output", str(tmp_path / "ex1"))
    again = andon("fleet", "init", "--listen", "0.0.0.0:4222", "--advertise", "nats")

    assert (ended.code, again.code) == (0, 0)
    assert ended.out.startswith(f"wrote {directory}/nats.conf; start the server with: nats-server -c ")
    assert [user.name for user in admitted(directory)] == ["ex1"]


@pytest.mark.parametrize("listen", [[], ["--listen", "nonsense"], ["--listen", "0.0.0.0:99999"]])
def test_init_needs_an_address(andon: CommandLine, listen: list[str]) -> None:
    """One line, exit code 2."""
    assert andon("fleet", "init", *listen).code == 2
