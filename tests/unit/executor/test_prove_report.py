"""What a probe comes to, from what the attacks said inside a sandbox and in the control."""

import json

import pytest

from sandbox.executor.prove.attack.attempts import MARK
from sandbox.executor.prove.catalogue import PROBES
from sandbox.executor.prove.report import DETAIL_CHARS_MAX, Guest, Probe, Said, judged, read_lines

SHARED = Guest()
PROBE = Probe("p", "a promise", "two ways", ("p.one", "p.two"), may_lack=frozenset({"p.two"}), about="kernel")
STOPPED = Said(won=False, said="EPERM")
WON = Said(won=True, said="a socket")


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_one_attack_that_succeeds_is_enough(probe: Probe) -> None:
    """Whichever of a probe's attacks it is; without any, it held, and its control counts."""
    stopped, won = dict.fromkeys(probe.attacks, STOPPED), dict.fromkeys(probe.attacks, WON)

    held = judged(probe, stopped, won, SHARED)
    broken = [judged(probe, stopped | {name: WON}, won, SHARED) for name in probe.attacks]

    assert (held.held, held.control) == (True, True)
    assert [proof.held for proof in broken] == [False] * len(probe.attacks)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_an_attack_that_was_not_made_did_not_fail(probe: Probe) -> None:
    """A sandbox that broke off in the middle proves nothing."""
    made = dict.fromkeys(probe.attacks[1:], STOPPED)

    control = dict.fromkeys(probe.attacks, WON)
    given_up = dict.fromkeys(probe.attacks, STOPPED) | {probe.attacks[0]: Said(won=False, said="did not end", made=False)}

    proofs = [judged(probe, made, control, SHARED), judged(probe, given_up, control, SHARED)]

    assert [proof.held for proof in proofs] == [False, False]
    assert [proof.detail.startswith("not shown: ") for proof in proofs] == [True, True]


def test_attacks_are_in_one_probe_each() -> None:
    """So that a line says everything about an attack."""
    attacks = [name for probe in PROBES for name in probe.attacks]

    assert len(attacks) == len(set(attacks))
    assert len({probe.id for probe in PROBES}) == len(PROBES)


def test_a_control_that_fails_is_said() -> None:
    """The attack fails everywhere on this host: that it failed inside shows nothing."""
    inside = {"p.one": STOPPED, "p.two": STOPPED}

    proof = judged(PROBE, inside, {"p.one": Said(won=False, said="ENOSYS"), "p.two": WON}, SHARED)

    assert (proof.held, proof.control) == (True, False)
    assert "without a control here: one: ENOSYS" in proof.detail


def test_what_a_kernel_may_lack_needs_no_control() -> None:
    """It is named, and the other attacks count."""
    inside = {"p.one": STOPPED, "p.two": STOPPED}

    proof = judged(PROBE, inside, {"p.one": WON, "p.two": Said(won=False, said="ENODEV")}, SHARED)
    alone = judged(PROBE, inside, {"p.one": STOPPED, "p.two": STOPPED}, SHARED)

    assert (proof.control, alone.control) == (True, False)
    assert "without a control here: two: ENODEV" in proof.detail


def test_a_kernel_of_its_own_may_allow_what_is_about_a_kernel() -> None:
    """What succeeds there reaches the runtime's kernel; it holds, and the difference is said. An attack that was not made does not."""
    inside = {"p.one": WON, "p.two": STOPPED}
    control = {"p.one": WON, "p.two": WON}

    proof = judged(PROBE, inside, control, Guest(kernel="4.4.0"))
    other = judged(Probe("p", "a promise", "two ways", PROBE.attacks), inside, control, Guest(kernel="4.4.0"))
    silent = judged(PROBE, {"p.one": WON}, control, Guest(kernel="4.4.0"))

    assert proof.held
    assert proof.detail.startswith("differs: one: a socket")
    assert (other.held, silent.held) == (False, False)


def test_a_runtime_that_names_no_peers_cannot_pin_a_process() -> None:
    """gVisor: the routes are the user's, and each record says so (DECISIONS D18); under runc it would be a broken wall."""
    pin = next(probe for probe in PROBES if probe.about == "peers")
    inside = dict.fromkeys(pin.attacks, WON)

    blind = judged(pin, inside, inside, Guest(kernel="4.4.0", names_peers=False))
    seeing = judged(pin, inside, inside, Guest(kernel="4.4.0"))

    assert (blind.held, seeing.held) == (True, False)
    assert "no process behind a socket" in blind.detail


def test_only_whole_lines_of_a_report_are_read() -> None:
    """What else a container prints is passed over, and a detail has a bound."""
    good = MARK + json.dumps({"name": "a.b", "won": False, "said": "x" * 1_000})
    lines = ["noise", good, MARK + "{", MARK + "[]", MARK + json.dumps({"name": "c.d", "won": "yes, please", "said": ""})]

    said = read_lines("\n".join(lines).encode() + b"\n\xff")

    assert list(said) == ["a.b"]
    assert len(judged(Probe("p", "", "", ("a.b",)), said, said, SHARED).detail) == DETAIL_CHARS_MAX
