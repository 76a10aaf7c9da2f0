"""`make bench`: every figure beside its goal; ends with 1 when one is beyond it. `python -m benchmarks NAME…` measures some."""

import sys

from benchmarks import (
    cold_start,
    command_line,
    failover,
    fleet,
    gateway_delay,
    gateway_rate,
    ingest,
    many_runs,
    proof,
    stack_at_rest,
    tracing,
    worktree,
)

MEASURES = {
    "command": command_line.measure,
    "worktree": worktree.measure,
    "ingest": ingest.measure,
    "gateway": gateway_delay.measure,
    "gateway-rate": gateway_rate.measure,
    "cold-start": cold_start.measure,
    "proof": proof.measure,
    "tracing": tracing.measure,
    "stack": stack_at_rest.measure,
    "many-runs": many_runs.measure,
    "fleet": fleet.measure,
    "failover": failover.measure,
}


def _main(names: list[str]) -> int:
    unknown = set(names) - set(MEASURES)
    if unknown:
        print(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
        return 2
    figures = []
    for name in names or MEASURES:
        for figure in MEASURES[name]():
            figures.append(figure)
            print(figure.line(), flush=True)
    over = [figure.name for figure in figures if not figure.is_within]
    print(f"{len(figures)} figures, {len(over)} beyond the goal")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
