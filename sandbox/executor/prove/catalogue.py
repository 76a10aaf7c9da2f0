"""Every probe: which promise of SECURITY.md it is about, and which attacks it is made of; not how they are made (`attack`)."""

from sandbox.executor.prove.report import Probe

_ALONE = "P1: code in a sandbox has no network; its only exit is one socket"
_POWERLESS = "P6: sandboxes run without root, capabilities, privilege gain, devices or the engine's socket"
_BOUNDED = "P7: what a job may take is bounded, and exhausting it ends only that job"
_APART = "P8: two jobs share no uid, writable mount, network or limit"
_UNREAD = "P10: the host follows no link and waits for no FIFO an agent left"
_OWN = "P3: the gateway serves the agent's process alone, and no tool can read or steer it"
_KEY = "P2: the provider's key is nowhere in a sandbox"
_EVERYWHERE = tuple(f"surface.{name}" for name in ("packet", "keyctl", "unshare_user", "mount", "chroot", "clone3"))
_SOME_KERNELS = tuple(f"surface.{name}" for name in ("alg", "netlink_audit", "netlink_netfilter", "userfaultfd", "bpf", "perf_event_open"))
_KEY_WAYS = ("environment", "processes", "files", "memory")

PROBES = (
    Probe(
        "network",
        _ALONE,
        "TCP to this host, routes to the internet by IPv4 and IPv6",
        ("network.tcp", "network.route", "network.ipv6"),
        may_lack=frozenset({"network.ipv6"}),
    ),
    Probe("dns", _ALONE, "a question to a name server on this host", ("dns.query",)),
    Probe("metadata", _ALONE, "the cloud's metadata address: a route, a connection", ("metadata.route", "metadata.tcp")),
    Probe(
        "vsock",
        "P1: no line to the hypervisor's host",
        "AF_VSOCK sockets, also by a 32-bit system call",
        ("vsock.socket", "vsock.datagram", "vsock.socketcall"),
        may_lack=frozenset({"vsock.datagram", "vsock.socketcall"}),
        about="kernel",
    ),
    Probe("io_uring", _POWERLESS, "io_uring_setup", ("io_uring.setup",), about="kernel"),
    Probe(
        "ptrace",
        _POWERLESS,
        "ptrace, process_vm_readv, pidfd_getfd on another process",
        ("ptrace.attach", "ptrace.process_vm_readv", "ptrace.pidfd_getfd"),
        about="kernel",
    ),
    Probe(
        "kernel-surface",
        _POWERLESS,
        "namespaces, mount, chroot, bpf, perf, keyctl, userfaultfd, raw and crypto sockets, clone3",
        (*_EVERYWHERE, *_SOME_KERNELS),
        may_lack=frozenset(_SOME_KERNELS),
        about="kernel",
    ),
    Probe(
        "ipc",
        _APART,
        "SysV shared memory and semaphores, message queues",
        ("ipc.shared_memory", "ipc.semaphores", "ipc.message_queue"),
        may_lack=frozenset({"ipc.message_queue"}),
        about="kernel",
    ),
    Probe("key-search", _KEY, "environment, /proc, every young file, all readable memory", tuple(f"key.{way}" for way in _KEY_WAYS)),
    Probe("key-search-tool", _KEY, "the same as a tool beside the agent", tuple(f"key_tool.{way}" for way in _KEY_WAYS)),
    Probe(
        "setuid",
        _POWERLESS,
        "set-uid programs made and used, capabilities",
        ("setuid.made", "setuid.used", "setuid.capabilities"),
        may_lack=frozenset({"setuid.used"}),
    ),
    Probe("devices", _POWERLESS, "a node of the host's disk", ("devices.made",)),
    Probe("engine-socket", _POWERLESS, "sockets anywhere on the disk", ("engine.socket",)),
    Probe(
        "host-settings",
        _POWERLESS,
        "core_pattern, sysrq, control groups, remounted first",
        ("settings.core_pattern", "settings.sysrq", "settings.cgroup"),
        may_lack=frozenset({"settings.sysrq"}),
        about="kernel",
    ),
    Probe("read-only-root", _POWERLESS, "a program written into /usr/bin", ("root.written",)),
    Probe(
        "host-facts",
        "P6: a sandbox learns nothing of the host it could use",
        "command line, disks, symbols, modules",
        ("facts.read",),
        about="kernel",
    ),
    Probe("fork-bomb", _BOUNDED, "processes beyond the limit", ("bombs.forks",)),
    Probe("memory-bomb", _BOUNDED, "memory beyond the limit", ("bombs.memory",)),
    Probe("disk-bomb", _BOUNDED, "workspace, /tmp and home overfilled", ("bombs.disk", "bombs.tmp", "bombs.home")),
    Probe("inode-bomb", _BOUNDED, "files beyond the workspace's limit", ("bombs.inodes",)),
    Probe("log-bomb", _BOUNDED, "more output than is kept", ("log.kept",)),
    Probe("descriptor-bomb", _BOUNDED, "open files beyond the limit", ("bombs.descriptors",)),
    Probe(
        "git-config",
        "P9: nothing an agent writes is executed by the host",
        "fsmonitor, filters, drivers, hooks planted; then our walker, and plain git beside it",
        ("git.executed",),
    ),
    Probe("symlink-output", _UNREAD, "links to a file of the host, as result and as report", ("outputs.link",)),
    Probe("fifo-output", _UNREAD, "a FIFO and a socket as result, a FIFO as report", ("outputs.fifo",)),
    Probe(
        "socket-replacement",
        "P1: the gateway's socket stays the gateway's",
        "renamed, and our own bound in its place",
        ("socket.replaced",),
    ),
    Probe("budget-race", "P4: no job exceeds its budget, under any concurrency", "24 calls at once, money for two", ("race.overspent",)),
    Probe(
        "forged-spans",
        "P20: traces of a sandbox are never believed",
        "another trace's span, a model call, a time to come",
        ("spans.passed",),
    ),
    Probe("cross-job-limits", _APART, "one job takes all inotify instances and pipe buffers of its user", ("neighbour.limits",)),
    Probe("cross-job-network", _APART, "one job connects to the other", ("neighbour.network",)),
    Probe("cross-job-files", _APART, "one job looks for the other's mark on disk", ("neighbour.files",)),
    Probe("agent-pin", _OWN, "a tool calls the model and submits", ("pin.model", "pin.submit"), about="peers"),
    Probe(
        "agent-process",
        _OWN,
        "a tool reads the agent's memory, environment and descriptors, and traces it",
        ("agent.memory", "agent.environment", "agent.descriptors", "agent.ptrace", "agent.pidfd_getfd"),
    ),
)
