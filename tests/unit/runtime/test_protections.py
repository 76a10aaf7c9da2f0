"""What an engine and a runtime cannot give, as the engine says it."""

from typing import Any

import pytest

from sandbox.runtime.protections import gvisor_runtimes, missing_under
from tests.unit.runtime.test_hardening import facts


@pytest.mark.parametrize(
    ("about", "is_gvisor"),
    [
        ({"path": "/usr/local/bin/runsc", "runtimeArgs": ["--host-uds=open"]}, True),
        ({"path": "/opt/runsc-2026"}, True),
        ({"runtimeType": "io.containerd.runsc.v1"}, True),
        ({"path": "runc"}, False),
        ({"path": "/opt/runsc/crun"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_gvisor_is_known_by_its_program(about: Any, is_gvisor: bool):
    """Whatever name it is registered under."""
    assert gvisor_runtimes({"Runtimes": {"strong": about}}) == (("strong",) if is_gvisor else ())


def test_what_is_old_in_runc_is_missing_under_runc_alone():
    """Another runtime has faults of its own, and gVisor no pin."""
    told = facts(missing=("no swap limit",), warnings=("runc 1.1.5 is old",), gvisor=("runsc",))

    assert missing_under(told, "runc") == ("no swap limit", "runc 1.1.5 is old")
    assert missing_under(told, "kata") == ("no swap limit",)
    assert [line.split(":")[0] for line in missing_under(told, "runsc")] == ["no swap limit", "no agent pin"]
