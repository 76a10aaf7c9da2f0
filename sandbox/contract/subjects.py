"""Every NATS name Andon uses, in one place (NATS.md §1); low-cardinality on purpose: ids travel in payloads."""

STREAM_JOBS = "JOBS"
STREAM_RESULTS = "RESULTS"
STREAM_EVENTS = "EVENTS"
STREAM_LOGS = "LOGS"
STREAM_TEL = "TEL"
KV_EXECUTORS = "EXECUTORS"
KV_LEASES = "LEASES"
LEASE_SUPERVISOR = "supervisor"

RPC_INTENT = "andon.rpc.intent"
RPC_STOP = "andon.rpc.stop"
RPC_RESUME = "andon.rpc.resume"
RPC_ANSWER = "andon.rpc.answer"
CTL_ALL = "andon.ctl.all.drain"


def job(pool: str) -> str:
    """Return the subject jobs of a pool are published on."""
    return f"andon.job.{pool}"


def result(executor: str) -> str:
    """Return the subject an executor publishes finished attempts on."""
    return f"andon.res.{executor}.done"


def events(run: str) -> str:
    """Return the subject of one run's event log."""
    return f"andon.ev.{run}"


def log(executor: str, job_id: str) -> str:
    """Return the subject of one job's live log lines."""
    return f"andon.log.{executor}.{job_id}"


def telemetry(executor: str) -> str:
    """Return the subject an executor publishes gzip OTLP on."""
    return f"andon.tel.{executor}"


def claim(executor: str) -> str:
    """Return the claim RPC's subject of one executor."""
    return f"andon.rpc.claim.{executor}"


def budget(executor: str) -> str:
    """Return the budget RPC's subject of one executor."""
    return f"andon.rpc.budget.{executor}"


def control(executor: str, verb: str) -> str:
    """Return the subject of a control message (`cancel` or `drain`) to one executor."""
    return f"andon.ctl.{executor}.{verb}"
