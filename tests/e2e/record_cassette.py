"""Records the shipped sample's cassette anew: `make cassette`. The answers come from the scripted model, and the file says so."""

import sys
import tempfile
from pathlib import Path

from sandbox.contract.cassette import Cassette, CassetteHeader
from supervisor import demo
from tests.e2e.line import Line, Provider

TARGET = Path(demo.__file__).with_name("cassette.jsonl")
NOTE = (
    "Made by the scripted model server of the test suite (tests/fakes/scripts/rate_limit.py), not by a model: it drives the sample "
    "feature through the real line. Record it anew with `make cassette` after a change of the agents, their prompts or the sample."
)


def main() -> int:
    """Run the sample against the scripted model with --record and put a truthful header on the result."""
    with Provider() as provider, tempfile.TemporaryDirectory(prefix="andon-cassette-") as home:
        recorded = Path(home) / "recorded.jsonl"
        done = Line(Path(home), provider.server.environment()).run(demo.SAMPLE_REQUEST, "--record", str(recorded))
        if done.exit_code != 0:
            sys.stderr.write(done.stderr)
            return done.exit_code
        cassette = Cassette.load(recorded.read_bytes())
    header = CassetteHeader(made_by="scripted", note=NOTE, matches=cassette.header.matches)
    TARGET.write_bytes(cassette.model_copy(update={"header": header}).dump())
    sys.stdout.write(f"{TARGET.name}: {len(cassette.records)} calls, {TARGET.stat().st_size >> 10} KiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
