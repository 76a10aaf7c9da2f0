"""Which user of a container is which of the host."""

from pathlib import Path
from typing import Any

import pytest

from sandbox.runtime.hardening import create_request
from sandbox.runtime.users import MAPPED_MAX, NOT_MAPPED, SLOTS_FROM, UserMap, read_users
from tests.unit.runtime.test_hardening import IMAGE, facts, slot

REMAPPED = UserMap(kind="remapped", first_uid=300_000, first_gid=400_000)


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, UserMap()),
        ({}, UserMap()),
        ({"SecurityOptions": ["name=rootless"], "DockerRootDir": "/h/1.1"}, UserMap(kind="rootless")),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/300000.400000"}, REMAPPED),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker"}, UserMap(kind="remapped")),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/3.x"}, UserMap(kind="remapped")),
    ],
)
def test_the_engine_says_how_it_maps(info: dict[str, Any], found: UserMap):
    """By its security options, and the name of its data directory."""
    assert read_users(info) == found


@pytest.mark.parametrize(
    ("uid", "gid", "is_mapped"),
    [
        (300_001, 400_001, True),
        (300_000 + MAPPED_MAX - 1, 400_000 + MAPPED_MAX - 1, True),
        (300_000, 400_001, False),  # it would be root inside
        (300_001, 400_000, False),
        (300_000 + MAPPED_MAX, 400_001, False),
        (300_001, 400_000 + MAPPED_MAX, False),
        (1000, 1000, False),
    ],
)
def test_a_user_is_mapped_within_the_range_alone(uid: int, gid: int, is_mapped: bool):
    """At the range's edges; somebody outside of it gets a container without mapping, and the record says so."""
    host = create_request(slot(uid=uid, gid=gid), IMAGE, facts(users=REMAPPED), Path("/h"))

    assert REMAPPED.maps(uid, gid) is is_mapped
    assert host["User"] == (f"{uid - 300_000}:{gid - 400_000}" if is_mapped else f"{uid}:{gid}")
    assert host["HostConfig"].get("UsernsMode") == (None if is_mapped else "host")
    assert REMAPPED.missing(uid, gid) == (() if is_mapped else (NOT_MAPPED,))


def test_the_users_home_belongs_to_the_user_inside():
    """The engine mounts it in the container's own namespace."""
    host = create_request(slot(uid=300_007, gid=400_008), IMAGE, facts(users=REMAPPED), Path("/h"))["HostConfig"]

    assert "uid=7,gid=8" in host["Tmpfs"]["/home/agent"]


def test_an_engine_whose_mapping_is_unknown_maps_nobody():
    """Better without the mapping than as somebody else."""
    assert not UserMap(kind="remapped").maps(1000, 1000)


def test_a_rootless_engine_runs_everything_as_the_person_who_runs_it():
    """Root of its namespace, without a capability, is that person outside."""
    body = create_request(slot(uid=1000, gid=1000), IMAGE, facts(users=UserMap(kind="rootless")), Path("/h"))

    assert body["User"] == "0:0"
    assert body["HostConfig"]["CapDrop"] == ["ALL"]
    assert "UsernsMode" not in body["HostConfig"]


def test_slots_begin_inside_the_mapping():
    """Where the engine maps nobody, they begin where they always did."""
    assert REMAPPED.slots_from(200_000) == 300_000 + SLOTS_FROM
    assert UserMap().slots_from(200_000) == 200_000
    assert REMAPPED.maps(300_000 + SLOTS_FROM + 999, 400_000 + SLOTS_FROM + 999)
