"""What a person gives an executor: every wrong input is one line, every right one means what it says."""

from pathlib import Path

import pytest

from sandbox.contract.credentials import ExecutorCredentials
from sandbox.contract.errors import ConfigError, UsageError
from sandbox.executor.options import config_of, disk_floor_mib, labels_of, read_options, state_of
from sandbox.executor.place import Mount, Surroundings, own_container, read_mounts, surroundings
from sandbox.runtime.container_spec import EngineFacts

CREDENTIALS = ExecutorCredentials(
    url="nats://127.0.0.1:4222", nkey_seed="SU" + "A" * 56, executor="build-2", labels={"disk": "ssd", "arch": "told", "mem": "8"}
)
FACTS = EngineFacts(
    **{"endpoint": "e", "source": "s", "version": "1", "api_version": "1", "architecture": "x86_64", "kernel": "6"},
    **{"cgroup_version": "2", "storage_driver": "o", "default_runtime": "runc"},
    runtimes=("runc",),
    security_options=(),
    cpus=4,
    memory_bytes=(16 << 30) - 1,
)
HERE = Surroundings(False, lambda instance: Path("/tmp/a") / instance, None)
ID = "a" * 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--creds"),
        (["--creds", "f", "--slots", "0"], "number from 1 to 64"),
        (["--creds", "f", "--slots", "65"], "number from 1 to 64"),
        (["--creds", "f", "--slots", "two"], "number from 1 to 64"),
        (["--creds", "f", "--label", "gpu"], "expected NAME=VALUE"),
        (["--creds", "f", "--label", "GPU=1"], "bad name"),
        (["--creds", "f", "--label", "gpu="], "bad value"),
        (["--creds", "f", "--label", "gpu=a b"], "bad value"),
        (["--creds", "f", "--label", "runtime.runsc=yes"], "says by itself"),
        (["--creds", "f", "--label", "strict.runc=yes"], "says by itself"),
        (["--creds", "f", "--cred", "g"], "unrecognized"),
        (["--creds", "f", "more"], "unrecognized"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], said: str):
    """As a usage error, which is exit code 2."""
    with pytest.raises(UsageError) as raised:
        read_options(arguments)

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("slots", [1, 64])
def test_the_edges_of_slots_are_taken(slots: int):
    """One is enough, 64 are not too many."""
    assert read_options(["--creds", "f", "--slots", str(slots)]).slots == slots


def test_the_last_of_a_label_wins():
    """As with most options."""
    assert labels_of(["gpu=a", "gpu=b", "zone=x=y"]) == {"gpu": "b", "zone": "x=y"}


def test_labels_come_from_the_host_the_credentials_and_the_command_line_in_this_order():
    """What a person said of a host wins over what it says of itself."""
    options = read_options(["--creds", "f", "--label", "mem=4"])

    config = config_of(options, CREDENTIALS, Path("/s"), HERE, FACTS, {})

    assert config.labels == {"arch": "told", "os": "linux", "cpus": "4", "mem": "4", "disk": "ssd"}


def test_nobody_else_says_which_runtimes_a_host_has():
    """Neither the credentials' labels: a job would go where its runtime is not."""
    lying = CREDENTIALS.model_copy(update={"labels": {"runtime.kata": "yes", "strict.runc": "yes"}})

    config = config_of(read_options(["--creds", "f"]), lying, Path("/s"), HERE, FACTS, {}, {"runtime.runsc": "yes"})

    assert {name for name in config.labels if "." in name} == {"runtime.runsc"}


def test_the_host_says_its_memory_in_whole_gib():
    """Rounded down: what is asked for has to be there."""
    plain = CREDENTIALS.model_copy(update={"labels": {}})

    assert config_of(read_options(["--creds", "f"]), plain, Path("/s"), HERE, FACTS, {}).labels["mem"] == "15"


def test_too_many_labels_are_refused():
    """32 in all, those of the host included."""
    given = [part for number in range(28) for part in ("--label", f"l{number}=1")]
    plain = CREDENTIALS.model_copy(update={"labels": {}})

    assert len(config_of(read_options(["--creds", "f", *given]), plain, Path("/s"), HERE, FACTS, {}).labels) == 32
    with pytest.raises(UsageError, match="at most 32"):
        config_of(read_options(["--creds", "f", *given, "--label", "one=more"]), plain, Path("/s"), HERE, FACTS, {})


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/andon/executors/build-2"),
        ({"HOME": "/h"}, "/h/.local/state/andon/executors/build-2"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/andon/executors/build-2"),
    ],
)
def test_the_state_directory_is_the_users_own(environment: dict[str, str], state: str):
    """One for each name, so that two executors of one user do not meet."""
    assert state_of(read_options(["--creds", "f"]), CREDENTIALS, environment) == Path(state)


def test_a_given_state_directory_is_taken():
    """Made absolute: containers are told of it."""
    assert state_of(read_options(["--creds", "f", "--state", "/var/lib/../lib/a"]), CREDENTIALS, {}) == Path("/var/lib/a")


@pytest.mark.parametrize(("text", "floor"), [("", 1024), ("0", 0), ("20480", 20480)])
def test_the_disk_floor_has_a_default_and_can_be_switched_off(text: str, floor: int):
    """An empty variable is as good as none."""
    assert disk_floor_mib({"ANDON_DISK_FLOOR_MIB": text}) == floor


@pytest.mark.parametrize("text", ["-1", "1.5", "1GiB", "9999999999"])
def test_a_floor_that_is_no_number_is_refused(text: str):
    """With its name."""
    with pytest.raises(ConfigError, match="ANDON_DISK_FLOOR_MIB"):
        disk_floor_mib({"ANDON_DISK_FLOOR_MIB": text})


def mounts_of_a_container(*more: Mount) -> list[Mount]:
    etc = Mount(Path("/etc/hostname"), is_shared=False, root=f"/var/lib/docker/containers/{ID}/hostname")
    return [Mount(Path("/"), is_shared=False), etc, *more]


async def _knows(_: str) -> bool:
    return True


async def _knows_not(_: str) -> bool:
    return False


async def test_on_a_host_sockets_are_in_tmp_and_uids_are_leased_host_wide():
    """So is an executor in a container that has its own engine: the engine sees what it sees."""
    for mounts, is_known in (([Mount(Path("/"), is_shared=True)], _knows), (mounts_of_a_container(), _knows_not)):
        around = await surroundings(Path("/s"), is_known, uid=0, mounts=mounts)

        assert (around.is_container, around.sockets("abc"), around.no_quota) == (False, Path("/tmp/andon-0/abc"), "")
        assert around.uid_locks == Path("/run/lock/andon")
    assert (await surroundings(Path("/s"), _knows, uid=5, mounts=[])).uid_locks is None


async def test_beside_its_sandboxes_everything_is_below_the_shared_mount():
    """The engine resolves paths on its host: what is not mounted from there at the same path is another directory."""
    mount = Mount(Path("/var/lib/andon"), is_shared=True)

    around = await surroundings(Path("/var/lib/andon/ex/1"), _knows, uid=0, mounts=mounts_of_a_container(mount))

    assert around.is_container
    assert around.sockets("abc") == Path("/var/lib/andon/ex/1/gw")
    assert around.uid_locks == Path("/var/lib/andon/.uid-locks")
    assert "uids are shared" in around.missing[0]
    assert around.no_quota == ""


async def test_with_the_locks_mounted_uids_are_leased_host_wide():
    """Nothing is missing then."""
    mounts = mounts_of_a_container(Mount(Path("/var/lib/andon"), is_shared=True), Mount(Path("/run/lock/andon"), is_shared=False))

    around = await surroundings(Path("/var/lib/andon/1"), _knows, uid=0, mounts=mounts)

    assert (around.uid_locks, around.missing) == (Path("/run/lock/andon"), ())


async def test_a_mount_that_is_not_shared_gets_no_file_systems_below_it():
    """They would be seen by us alone, and the agent's work would go beside them."""
    mounts = mounts_of_a_container(Mount(Path("/var/lib/andon"), is_shared=False))

    assert "not mounted rshared" in (await surroundings(Path("/var/lib/andon/1"), _knows, uid=0, mounts=mounts)).no_quota


async def test_a_state_directory_of_the_container_alone_is_refused():
    """With what to add to the command."""
    with pytest.raises(UsageError, match=r"-v /root/x:/root/x:rshared"):
        await surroundings(Path("/root/x"), _knows, uid=0, mounts=mounts_of_a_container())


def test_mounts_are_read_as_the_kernel_tells_them():
    """The root is always there; on a test machine without container nothing in /etc names one."""
    mounts = read_mounts()

    assert Path("/") in [mount.point for mount in mounts]
    assert own_container([Mount(Path("/"), is_shared=False)]) is None
    assert own_container(mounts_of_a_container()) == ID
