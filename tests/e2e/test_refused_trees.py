"""What an agent may not leave, through the whole line: the stage fails with a reason a person understands, and the host is unchanged."""

from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, every_byte
from tests.fakes.script import Script, bash, conversation, submit
from tests.fakes.scripts.rate_limit import SPEC

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

SHAPES = [
    pytest.param("ln -s {victim} notes_api/result.json", "notes_api/result.json is a link to an absolute path", id="link"),
    pytest.param("mkfifo result.json", "result.json is a FIFO", id="fifo", marks=pytest.mark.slow),
    pytest.param("ln README.md notes_api/x", "has several names (hard links)", id="hard-link", marks=pytest.mark.slow),
    pytest.param("mkdir lib && git init -q lib", "lib/.git has a name that looks like .git", id="nested", marks=pytest.mark.slow),
    pytest.param(
        "touch $'a\nb'",
        "'a\\nb' has a name that holds a control",
        id="name",
        marks=pytest.mark.slow,
    ),
    pytest.param("touch readme.MD README.md", "README.md and readme.MD differ only in case", id="case", marks=pytest.mark.slow),
    pytest.param("cp /bin/true t && chmod 4755 t", "t has special permission bits (4755)", id="set-uid", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("command", "reason"), SHAPES)
def test_a_tree_we_do_not_take_ends_the_stage_with_its_reason(line: Line, provider: Provider, tmp_path: Path, command: str, reason: str):
    """In result, report and on the terminal; the repository and what a link pointed at are as before, and no word of it was read."""
    repository, victim = a_sample(tmp_path / "notes"), tmp_path / "victim"
    victim.write_text("canary-c04f")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))
    work = conversation("interface", bash(command.format(victim=victim)), submit("There is the interface."))
    provider.says(Script("scripted: odd tree", (work,)))
    before = every_byte(repository)

    done = line.run(
        SAMPLE_REQUEST, "--repo", str(repository), "--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline"
    )

    assert done.exit_code == 1, done.stderr
    assert (done.result["state"], done.result["commit"]) == ("failed", None)
    report = Path(done.result["report"]).read_text()
    assert reason in report
    assert reason in done.stderr
    assert every_byte(repository) == before
    assert victim.read_text() == "canary-c04f"
    assert "canary-c04f" not in report + done.stderr
