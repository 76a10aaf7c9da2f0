"""Work that was cut off comes back: a line whose container is killed and that is stopped then, and `andon salvage`."""

import json
from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, branches, every_byte, file_in_mirror, going, kill_sandbox, salvaged, sandboxes, wait_until
from tests.fakes.repositories import run_git
from tests.fakes.scripts.rate_limit import MODULE, SPEC, STALLS_ALWAYS

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def test_work_that_was_cut_off_is_restored_byte_for_byte(line: Line, provider: Provider, tmp_path: Path):
    """The attempt is killed, the run cancelled; the list names the work, and its branch holds exactly the tree that was salvaged."""
    repository = a_sample(tmp_path / "notes")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))
    provider.says(STALLS_ALWAYS)
    before = every_byte(repository)

    with going(line, SAMPLE_REQUEST, "--repo", str(repository), "--spec", str(tmp_path / "spec.yaml"), "--no-baseline") as run:
        wait_until(lambda: len(provider.server.calls("implement")) == 2, "implement is told to sleep", 90)
        run.wait_event("job_judged", job_id=f"{run.run_id}-red-check-1", verdict="pass")
        (box,) = wait_until(lambda: sandboxes(line) if len(sandboxes(line)) == 1 else None, "implement's container is the only one", 30)
        kill_sandbox(line, box["Id"])
        run.wait_event("attempt_ended", job_id=f"{run.run_id}-implement-1", attempt=1)
        line.andon("stop", run.run_id)
        run.end()

    name = f"{run.run_id}/implement-1-1"
    listed = line.andon("salvage", "list", run.run_id[:9], "--json")
    work = next(each for each in json.loads(listed.stdout) if each["name"] == name)
    assert (work["feature"], work["outcome"], work["files"] >= 1) == (SAMPLE_FEATURE, "killed", True)
    assert every_byte(repository) == before

    done = line.andon("salvage", "restore", name, "--json")

    assert done.exit_code == 0, done.stderr
    branch = f"andon/salvage/{name}"
    assert branches(repository) == [branch, "main"]
    tree = salvaged(line, run.run_id)[f"refs/andon/salvage/{name}"]
    assert run_git(repository, "show", f"{branch}:{MODULE}") == file_in_mirror(line, tree, MODULE).strip()
    mirror_tree = run_git(line.state / "mirrors" / "supervisor.git", "rev-parse", f"{tree}^{{tree}}")
    assert run_git(repository, "rev-parse", f"{branch}^{{tree}}") == mirror_tree
    assert line.andon("salvage", "restore", name).exit_code == 0
    run_git(repository, "branch", "-f", branch, "main")
    assert line.andon("salvage", "restore", name).exit_code == 6
