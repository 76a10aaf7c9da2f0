"""`andon run` against a scripted supervisor: what is asked, what is shown, how it ends."""

import json
from pathlib import Path

import pytest

from sandbox.contract.cassette import Cassette, CassetteHeader
from sandbox.contract.result import Finding
from sandbox.contract.wire import Progress
from sandbox.git import Git
from supervisor import demo
from supervisor.errors import EngineError
from supervisor.pipeline import events as ev
from supervisor.pipeline.submit import SubmitReply
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import AT, RUN
from tests.fakes.scripted_client import CtrlC, Hang

KEYS = [
    *(
        "run_id",
        "feature",
        "state",
        "exit_code",
        "repo",
        "base",
        "branch",
        "commit",
        "trace_id",
        "trace_url",
        "cost_usd",
        "usage",
        "replay",
    ),
    *("stages", "files", "tests", "report"),
]


def parked(story: list[ev.AnyEvent], exit_code: int, reason: str) -> list[ev.AnyEvent]:
    """Return what a supervisor writes when a run is parked on request."""
    head = story[-1]
    stop = ev.StopRequested(run_id=RUN, at=head.at, seq=head.seq + 1, how="park", reason="interrupted by Ctrl-C")
    return [stop, ev.RunParked(run_id=RUN, at=head.at, seq=head.seq + 2, reason=reason, exit_code=exit_code)]


def test_a_run_that_lands_is_told_line_by_line_and_summed_up(andon: CommandLine, repository: Path) -> None:
    """Stage prefixes, (parallel), the generated paths, then the closing lines."""
    andon.bootstrap.client.script = run_events.happy()

    ended = andon("run", "Add rate limiting", "--repo", str(repository))

    assert ended.code == 0
    assert "[implement] started on host-1 (parallel)\n[test] started on host-1 (parallel)\n" in ended.out
    assert "[land] created src/limits.py\n" in ended.out
    closing = ended.out[ended.out.index("\n\nLanded") :]
    report = andon.state.run(RUN) / "report.md"
    assert (
        closing
        == f"""

Landed: add-rate-limiting

  run       {RUN}
  branch    andon/add-rate-limiting  in /home/ada/notes
  commit    {"d" * 40}  on main (aaaaaaaaaaaa)
  created   src/limits.py
            tests/test_limits.py
  modified  src/app.py
  tests     12 passed, 0 failed, 0 skipped
  time      43 s

  stage      round  verdict      tokens       cost
  baseline       1  pass              -          -
  spec           1  pass          1,100    $0.0500
  interface      1  pass          1,100    $0.0600
  implement      1  pass         22,000    $0.3000
  test           1  pass         11,000    $0.2000
  red-check      1  pass              -          -
  validate       1  pass              -          -
  docs           1  pass          1,100    $0.0400
  total                          36,300    $0.6500  of $50.00

  trace     andon trace 01jd8m6w2x   (or open trace.otlp.jsonl, beside the report, in Jaeger)
  report    {report}

  next      git -C /home/ada/notes diff aaaaaaaaaaaa..andon/add-rate-limiting
"""
    )
    assert report.read_text().startswith("# Landed: add-rate-limiting\n")


def test_json_is_one_object_with_exactly_the_promised_keys(andon: CommandLine, repository: Path) -> None:
    """Stdout carries the object and nothing else; the lines are on stderr; the file holds the same."""
    andon.bootstrap.client.script = run_events.happy()

    ended = andon("run", "Add rate limiting", "--repo", str(repository), "--json")

    assert ended.code == 0
    assert list(ended.json) == KEYS
    assert ended.json["state"] == "landed"
    assert ended.json["exit_code"] == 0
    assert ended.json["base"] == "a" * 40
    assert ended.json["cost_usd"] == 0.65
    assert ended.json["tests"] == {"passed": 12, "failed": 0, "skipped": 0}
    assert ended.json["files"] == {"created": ["src/limits.py", "tests/test_limits.py"], "modified": ["src/app.py"], "deleted": []}
    assert ended.json["usage"] == {
        **{"input_tokens": 33_000, "output_tokens": 3_300, "cache_read_input_tokens": 0, "cache_write_input_tokens": 0}
    }
    assert "[implement] started on host-1 (parallel)" in ended.err
    assert json.loads((andon.state.run(RUN) / "result.json").read_text()) == ended.json


def test_json_has_an_entry_for_each_job_and_each_attempt(andon: CommandLine, repository: Path) -> None:
    """A stage that was reworked is there twice."""
    andon.bootstrap.client.script = run_events.rework()

    stages = andon("run", "x", "--repo", str(repository), "--json").json["stages"]

    assert isinstance(stages, list)
    assert [(each["stage"], each["round"], each["verdict"]) for each in stages if each["stage"] in {"implement", "validate"}] == [
        *(("implement", 1, "pass"), ("validate", 1, "fail"), ("implement", 2, "pass"), ("validate", 2, "pass"))
    ]
    assert stages[0] == {
        **{"stage": "baseline", "job": f"{RUN}-baseline-1", "round": 1, "verdict": "pass", "assurance": ""},
        "attempts": [
            {
                **{"attempt": 1, "outcome": "submitted", "executor": "host-1", "container_id": "c0ffee", "missing": []},
                **{"started_at": "2025-01-01T00:00:02.000Z", "ended_at": "2025-01-01T00:00:03.000Z", "cost_usd": 0.0},
            }
        ],
    }


@pytest.mark.parametrize(
    ("log", "code", "lines"),
    [
        (
            run_events.failed(),
            1,
            ["Failed, nothing landed", "  stage     validate\n  check     pytest\n  finding   tests/test_limits.py: test_req_001"],
        ),
        (run_events.parked_on_budget(), 4, ["Parked: ", f"  next      andon resume {RUN} --budget USD"]),
        (run_events.conflict(), 6, ["Landed in the mirror, not delivered", f"  next      andon resume {RUN}   (delivers once more)"]),
    ],
    ids=["failed", "budget", "conflict"],
)
def test_an_end_that_is_not_happy_says_why_and_how_to_go_on(
    andon: CommandLine, repository: Path, log: list[ev.AnyEvent], code: int, lines: list[str]
) -> None:
    """Stage, check and first finding; the salvage ref; the command; the documented exit code."""
    andon.bootstrap.client.script = log

    ended = andon("run", "x", "--repo", str(repository))

    assert ended.code == code
    for line in lines:
        assert line in ended.out
    assert ("refs/andon/salvage/" in ended.out) == (code == 4)


def test_what_is_asked_is_what_was_typed(andon: CommandLine, repository: Path, tmp_path: Path) -> None:
    """Every option reaches the request; the base pack is stored before."""
    (tmp_path / "spec.yaml").write_text("feature: x\ndescription: From the spec\n")
    andon.bootstrap.client.script = run_events.happy()

    options = ["--slug", "limits", "--budget", "2.50", "--mode", "sequential", "--no-baseline", "--base", "main"]
    andon("run", "--spec", str(tmp_path / "spec.yaml"), "--repo", str(repository), *options, "--record", str(tmp_path / "c.jsonl"))

    (request,) = andon.bootstrap.client.submitted
    assert (request.request, request.slug, request.mode) == ("From the spec", "limits", "live")
    assert (request.budget_nano_usd, request.warn_nano_usd) == (2_500_000_000, 2_500_000_000)
    assert (request.parallel, request.baseline, request.record) == (False, False, True)
    assert request.repository == str(repository)
    assert request.base_name == "main"
    assert andon.bootstrap.client.blobs[request.base_pack.name].startswith(b"PACK")
    assert Cassette.load((tmp_path / "c.jsonl").read_bytes()).records == ()


def test_any_text_arrives_as_it_is(andon: CommandLine, repository: Path) -> None:
    """What a shell would expand, quotes, a newline, another script; bytes that are no UTF-8 are replaced."""
    andon.bootstrap.client.script = run_events.happy()
    text = "Pay $HOME `id` \"x\" 'y' #; \\ 100%\n\u043f\u0440\u0438\u0432\u0435\u0442 \udcff"

    andon("run", text, "--repo", str(repository))

    assert andon.bootstrap.client.submitted[0].request == text.replace("\udcff", "\ufffd")


def test_a_replay_says_so_everywhere(andon: CommandLine) -> None:
    """In the first lines, the headline, the costs and the object."""
    andon.environ = {"ANTHROPIC_API_KEY": ""}
    andon.bootstrap.client.script = run_events.happy(replay=True)
    cassette = andon.home.parent / "c.jsonl"
    cassette.write_bytes(Cassette(header=CassetteHeader(made_by="scripted")).dump())

    ended = andon("run", "--replay", str(cassette))

    request = andon.bootstrap.client.submitted[0]
    assert ended.code == 0
    assert request.mode == "replay"
    assert request.request == demo.SAMPLE_REQUEST
    assert "budget $50.00, replay\n" in ended.out
    assert "Landed: add-rate-limiting (replay)\n" in ended.out
    assert "(replay: recorded figures, nothing was billed)" in ended.out
    assert (andon.state.run(RUN) / "report.md").read_text().startswith("# Landed: add-rate-limiting (replay)\n")


@pytest.mark.parametrize(
    "arguments", [("Another feature",), (demo.SAMPLE_REQUEST, "--repo", "{repository}"), (demo.SAMPLE_REQUEST, "--record", "/tmp/x")]
)
def test_without_a_key_only_the_sample_is_replayed(andon: CommandLine, repository: Path, arguments: tuple[str, ...]) -> None:
    """Another request, another repository, a recording: one clear error, and nothing was started."""
    andon.environ = {"ANTHROPIC_API_KEY": ""}

    ended = andon("run", *(each.format(repository=repository) for each in arguments))

    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("andon: error: no ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN) is set")
    assert ended.err.count("\n") == 1
    assert andon.bootstrap.connections == 0


def test_a_fleet_has_its_own_keys(andon: CommandLine, repository: Path) -> None:
    """With NATS_URL this host's key does not matter."""
    andon.environ = {"ANTHROPIC_API_KEY": "", "NATS_URL": "nats://fleet:4222"}
    andon.bootstrap.client.script = run_events.happy()

    assert andon("run", "x", "--repo", str(repository)).code == 0
    assert andon.bootstrap.client.submitted[0].mode == "live"


def test_a_repositorys_own_image_needs_consent(andon: CommandLine, repository: Path) -> None:
    """Refused; trusted by its digest; a changed file asks again; --yes agrees."""

    def commit(text: str) -> None:
        head = "commit refs/heads/main\ncommitter a <a@b> 1735689601 +0000\ndata 1\nx\nfrom refs/heads/main^0\n"
        file = f"M 100644 inline .andon/Dockerfile\ndata {len(text)}\n{text}\n"
        Git(repository / ".git").run("fast-import", "--quiet", stdin=(head + file).encode())

    commit("FROM andon/agent\n")
    andon.bootstrap.client.script = run_events.happy()
    arguments = ("run", "x", "--repo", str(repository))

    refused = andon(*arguments)
    trusted = andon("trust", "--repo", str(repository))
    accepted = andon(*arguments)
    commit("FROM andon/agent\nRUN id\n")
    changed = andon(*arguments)
    agreed = andon(*arguments, "--yes")

    assert (refused.code, accepted.code, changed.code, agreed.code) == (2, 0, 2, 0)
    assert f"`andon trust --repo {repository}`" in refused.err
    assert trusted.out.startswith("FROM andon/agent\n\ntrusted: sha256 ")
    assert [bool(each.dockerfile_sha256) for each in andon.bootstrap.client.submitted] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "--repo", "/nowhere/at/all"), "/nowhere/at/all"),
        (("x", "--slug", "No Slug"), "slug 'No Slug' is not one"),
        (("x", "--budget", "much"), "--budget: 'much' is not an amount in US dollars"),
        (("  ",), "the request is empty"),
        (("--repo", "."), "say what you want"),
        (("x", "--mode", "both"), "'both' is not one of 'parallel', 'sequential'"),
        (("x", "--pipeline", "/nowhere.yaml"), "does not exist"),
        (("x", "--frobnicate"), "No such option"),
        (("x" * 64_001,), "the request has 64,001 characters"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(andon: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    """Whatever it is, a person reads what, which and what to do, and nothing was started."""
    ended = andon("run", *arguments)

    assert ended.code == 2
    assert message in ended.err
    assert ended.err.startswith("andon: error: ")
    assert ended.err.count("\n") == 1
    assert andon.bootstrap.connections == 0


def test_a_wrong_pipeline_is_refused_before_the_stack_starts(andon: CommandLine, tmp_path: Path) -> None:
    """File and key are named."""
    (tmp_path / "p.yaml").write_text("pipeline:\n  stages:\n    - {name: spec, agent: spec, depends_on: [nothing]}\n")

    ended = andon("run", "x", "--pipeline", str(tmp_path / "p.yaml"))

    assert ended.code == 2
    assert "p.yaml" in ended.err
    assert "nothing" in ended.err
    assert andon.bootstrap.connections == 0


@pytest.mark.parametrize(("code", "error"), [(6, "branch andon/limits is taken"), (2, "unknown stage"), (5, "no executor")])
def test_a_refusal_of_the_supervisor_keeps_its_exit_code(andon: CommandLine, repository: Path, code: int, error: str) -> None:
    """One line, and with --json one object that says the same."""
    andon.bootstrap.client.reply = SubmitReply(error=error, exit_code=code)

    plain = andon("run", "x", "--repo", str(repository))
    as_json = andon("run", "x", "--repo", str(repository), "--json")

    assert (plain.code, plain.out, plain.err) == (code, "", f"andon: error: {error}\n")
    assert as_json.code == code
    assert list(as_json.json) == [*KEYS, "error"]
    assert (as_json.json["run_id"], as_json.json["exit_code"], as_json.json["error"]) == (None, code, error)


def test_a_host_without_an_engine_is_exit_code_5(andon: CommandLine, repository: Path) -> None:
    """The adapter's own line, nothing around it."""
    andon.bootstrap.host_error = EngineError("no engine answers at unix:///var/run/docker.sock; see docs/engine.md")

    ended = andon("run", "x", "--repo", str(repository))

    assert (ended.code, ended.err) == (5, "andon: error: no engine answers at unix:///var/run/docker.sock; see docs/engine.md\n")


def test_a_failure_after_the_object_was_printed_does_not_print_a_second(andon: CommandLine, repository: Path) -> None:
    """The stack broke while it was given back: exactly one object, the error on stderr."""
    andon.bootstrap.client.script = run_events.happy()
    andon.bootstrap.leave_error = EngineError("the engine went away")

    ended = andon("run", "x", "--repo", str(repository), "--json")

    assert ended.code == 5
    assert ended.json["state"] == "landed"
    assert ended.err.endswith("andon: error: the engine went away\n")


def test_ctrl_c_parks_the_run(andon: CommandLine, repository: Path) -> None:
    """Exit code 130, and the line that goes on."""
    begun = run_events.happy()[:12]
    andon.bootstrap.client.script = [*begun, CtrlC(), Hang()]
    andon.bootstrap.client.after_stop = parked(begun, 130, "interrupted by Ctrl-C")

    ended = andon("run", "x", "--repo", str(repository))

    assert ended.code == 130
    assert [each.how for each in andon.bootstrap.client.stops] == ["park"]
    assert "[andon] parking the run, what is written is kept; Ctrl-C again leaves at once\n" in ended.out
    assert f"  next      andon resume {RUN}\n" in ended.out


def test_a_second_ctrl_c_leaves_at_once(andon: CommandLine, repository: Path) -> None:
    """Even if the supervisor does not answer, with the line that goes on."""
    andon.bootstrap.client.script = [*run_events.happy()[:12], CtrlC(), CtrlC(), Hang()]

    ended = andon("run", "x", "--repo", str(repository), "--json")

    assert ended.code == 130
    assert ended.err.endswith(f"andon: left at once; go on with: andon resume {RUN}\n")
    assert (ended.json["run_id"], ended.json["exit_code"], ended.json["state"]) == (RUN, 130, "running")


def test_a_run_that_lands_although_ctrl_c_was_pressed_has_landed(andon: CommandLine, repository: Path) -> None:
    """The key came too late; the exit code tells the truth."""
    log = run_events.happy()
    andon.bootstrap.client.script = [*log[:-2], CtrlC(), Hang()]
    andon.bootstrap.client.after_stop = log[-2:]

    assert andon("run", "x", "--repo", str(repository)).code == 0


def test_a_supervisor_that_goes_away_is_exit_code_5(andon: CommandLine, repository: Path) -> None:
    """The run is kept, and the object holds what was known."""
    andon.bootstrap.client.script = run_events.happy()[:12]

    ended = andon("run", "x", "--repo", str(repository), "--json")

    assert ended.code == 5
    assert ended.err.endswith(f"andon: error: the supervisor went away; the run is kept, go on with: andon resume {RUN}\n")
    assert (ended.json["run_id"], ended.json["exit_code"]) == (RUN, 5)


def test_progress_is_shown_turn_by_turn_but_not_more_often_than_a_person_reads(andon: CommandLine, repository: Path) -> None:
    """The clock stands still here: of ten turns only the first is shown."""
    log = run_events.happy()
    turns = [
        Progress(
            **{
                "executor": "host-1",
                "run_id": RUN,
                "job_id": f"{RUN}-spec-1",
                "stage": "spec",
                "round": 1,
                "attempt": 1,
                "phase": "running",
            },
            **{"turn": turn, "tool": "ba\x1b[2Jsh", "tokens": 1_000 * turn, "cost_nano_usd": 10**6 * turn},
        )
        for turn in range(1, 11)
    ]
    andon.bootstrap.client.script = [*log[:8], *turns, *log[8:]]

    ended = andon("run", "x", "--repo", str(repository))

    assert [line for line in ended.out.splitlines() if " turn " in line] == ["[spec] turn 1, ba[2Jsh, 1,000 tokens, $0.0010"]


def test_text_of_agents_cannot_move_the_cursor(andon: CommandLine, repository: Path) -> None:
    """A finding with escape sequences, a title change and reordering characters is harmless on the terminal and in the report."""
    story = run_events.until_implement(run_events.Story()).dispatched("docs").started("docs").ended("docs")
    evil = Finding(check="write-scope", message="\x1b]0;owned\x07\x1b[2K\u202egnp.exe\r```\n# done", path="a\x1b[1mb")
    story.judged("docs", "fail", findings=(evil,))
    andon.bootstrap.client.script = story.add(ev.RunFailed(run_id=RUN, at=AT + 99, exit_code=1, stage="docs", reason="\x9b31mno")).log

    ended = andon("run", "x", "--repo", str(repository))

    report = (andon.state.run(RUN) / "report.md").read_text()
    for shown in (ended.out, ended.err, report):
        assert not set(shown) & set("\x1b\x07\x9b\r\u202e")
    assert "\n````text\n" in report, "the message's own fence cannot close the block"
