"""`make bench`: every figure beside its goal; ends with 1 when one is beyond it."""

import sys

from benchmarks import cold_start, command_line

MEASURES = (command_line.measure, cold_start.measure)


def _main() -> int:
    figures = []
    for measure in MEASURES:
        for figure in measure():
            figures.append(figure)
            print(figure.line(), flush=True)
    over = [figure.name for figure in figures if not figure.is_within]
    print(f"{len(figures)} figures, {len(over)} beyond the goal")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(_main())
