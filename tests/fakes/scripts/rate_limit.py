"""What the scripted model says for the sample feature, rate limiting: the happy line and its variants for the e2e tests."""

from pathlib import Path

from tests.fakes.script import (
    Call,
    Conversation,
    Script,
    Turn,
    bash,
    conversation,
    create,
    does,
    replace_text,
    submit,
)

SAMPLE_REQUEST = "Add rate limiting to the API: 100 requests/minute per IP, 429 with Retry-After"
SAMPLE_FEATURE = "add-rate-limiting-to-the-api"
MODULE = "notes_api/rate_limit.py"
TEST_FILE = "tests/test_rate_limit.py"

_FILES = Path(__file__).parent / "rate_limit_files"
SPEC = (_FILES / "spec.yaml").read_text()
STUBS = (_FILES / "stubs.txt").read_text()
IMPLEMENTATION = (_FILES / "implementation.txt").read_text()
TESTS = (_FILES / "tests.txt").read_text()


def _changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


ONE_TOO_MANY = _changed(IMPLEMENTATION, "len(times) >= self._limit.requests", "len(times) > self._limit.requests")
"""One wrong line: 101 requests are answered. Fails TEST_ONE_TOO_MANY_FAILS, and others."""
TEST_ONE_TOO_MANY_FAILS = "test_req_001_2_a_request_beyond_the_limit_is_refused"
NEVER_COME_BACK = _changed(IMPLEMENTATION, "return Decision(False, max(1, math.ceil(left_s)))", "return Decision(False, int(left_s) * 100)")
DRIFTED = _changed(
    IMPLEMENTATION, "def check(self, client: str) -> Decision:", "def check(self, client: str, weight: int = 1) -> Decision:"
)
PATCHER = "notes_api/_tuning.py"
PATCHES = '''"""Lets a client weigh more."""

from notes_api import rate_limit

_check = rate_limit.RateLimiter.check
rate_limit.RateLimiter.check = lambda self, client, weight=1: _check(self, client)
'''
"""Works as well as what it replaces, and no text of the locked module tells of it."""
PATCHED = f"{IMPLEMENTATION}\nfrom notes_api import _tuning as _tuning\n"
TESTS_OF_NOTHING = '"""Rate limiting."""\n\n' + "\n\n".join(
    f"def test_req_{requirement:03}_{criterion}_holds():\n    assert True\n"
    for requirement, criteria in ((1, 3), (2, 2), (3, 2))
    for criterion in range(1, criteria + 1)
)

_WIRING = (
    replace_text(
        "notes_api/app.py",
        "from notes_api.http_types import Request, Response, error_response, json_response\n",
        "from notes_api.http_types import Request, Response, error_response, json_response\n"
        "from notes_api.rate_limit import RateLimit, RateLimiter\n",
    ),
    replace_text(
        "notes_api/app.py",
        "        self._store = store\n",
        "        self._store = store\n        self._limiter = RateLimiter(RateLimit())\n",
    ),
    replace_text(
        "notes_api/app.py",
        "        return self._route(request)\n",
        "        decision = self._limiter.check(request.client_ip)\n"
        "        if not decision.allowed:\n"
        '            return error_response(429, "too many requests", {"Retry-After": str(decision.retry_after_s)})\n'
        "        return self._route(request)\n",
    ),
)


def _pytest(*args: str) -> str:
    """Return the command that runs tests with the same output every time: neither durations nor addresses."""
    return " ".join(["python -m pytest -q --tb=no", *args, "2>&1 | sed 's/ in [0-9.]*s.*//' | tail -n 20"])


_CHECK = bash(f"{_pytest()}; git status --short", text="The tests of the repository show what I broke.")


def _spec() -> Conversation:
    look = does(
        Call("bash", {"command": "git log --oneline | head -5; ls"}),
        Call("str_replace_based_edit_tool", {"command": "view", "path": "/workspace/notes_api/app.py"}),
        thinking="Every request passes through Application.handle, with the client's address.",
    )
    write = does(create(".andon/features/{feature}/spec.yaml", SPEC), text="The specification:")
    return conversation("spec", look, write, submit("Wrote the specification: 3 requirements, 7 criteria."))


def _interface() -> Conversation:
    write = does(create(MODULE, STUBS), thinking="A module of its own leaves the application's interface as it is.")
    check = bash("python -c 'import notes_api.rate_limit as r; print(r.__all__)'")
    return conversation("interface", write, check, submit("One new module of stubs; nothing that exists changes."))


def _implement(
    module: str = IMPLEMENTATION, rounds: set[int] | None = None, *, wires: bool = True, extra: tuple[Turn, ...] = ()
) -> Conversation:
    """Return the implementation; a later round rewrites the module and leaves the wiring of the first."""
    look = bash(f"cat {MODULE}", text="First the locked interface.")
    wiring = (does(*_WIRING),) if wires else ()
    return conversation(
        "implement",
        look,
        does(create(MODULE, module)),
        *wiring,
        *extra,
        _CHECK,
        submit("Filled the bodies and asked the limiter in handle."),
        rounds=rounds,
    )


def _test(tests: str = TESTS, extra: tuple[Turn, ...] = (), rounds: set[int] | None = None) -> Conversation:
    check = bash(_pytest(TEST_FILE))
    done = submit("One test for each criterion; they fail on the stubs.")
    return conversation("test", does(create(TEST_FILE, tests)), *extra, check, done, rounds=rounds)


def _docs() -> Conversation:
    readme = replace_text(
        "README.md",
        "Every route is described",
        "Each IP address may make 100 requests a minute. Beyond that the reply is 429, and its `Retry-After` header says in\n"
        "how many seconds to come back.\n\nEvery route is described",
    )
    api = replace_text(
        "docs/api.md",
        "## Routes\n",
        "## Limits\n\nA client, known by its IP address, may make 100 requests within any 60 seconds. A request beyond that is answered\n"
        'with 429 `{"error": "too many requests"}` and `Retry-After: <whole seconds>`.\n\n## Routes\n',
    )
    changelog = replace_text(
        "CHANGELOG.md",
        "## Unreleased\n",
        "## Unreleased\n\n- Rate limiting: 100 requests a minute for each IP address, then 429 with `Retry-After`.\n",
    )
    return conversation(
        "docs", does(readme, api, changelog), bash("git diff --stat"), submit("README, API page and changelog tell of the limit.")
    )


def _script(name: str, *own: Conversation) -> Script:
    """Return the happy line with these stages told otherwise."""
    usual = (_spec(), _interface(), _implement(), _test(), _docs())
    replaced = {one.stage for one in own}
    return Script(name, (*own, *(one for one in usual if one.stage not in replaced)), feature=SAMPLE_FEATURE)


HAPPY = _script("scripted: rate limiting")
REWORK_TWICE = _script(
    "scripted: green in the third round",
    _implement(ONE_TOO_MANY, {1}),
    _implement(NEVER_COME_BACK, {2}, wires=False),
    _implement(IMPLEMENTATION, {3}, wires=False),
)
REWORK_EXHAUSTED = _script(
    "scripted: never green",
    _implement(ONE_TOO_MANY, {1}),
    *(_implement(f"{ONE_TOO_MANY}\n# Looked at it again in round {round_}.\n", {round_}, wires=False) for round_ in range(2, 5)),
)
REWORK_IN_VAIN = _script("scripted: the rework changes nothing", _implement(ONE_TOO_MANY, {1}), _implement(ONE_TOO_MANY, {2}, wires=False))
WRONG_LINE = _script("scripted: one wrong line", _implement(ONE_TOO_MANY, {1}))
"""Tells nothing beyond the first round of implement, so that a cassette recorded from it ends at validate."""
SCOPE_VIOLATION = _script(
    "scripted: implement writes a test", _implement(extra=(does(create("tests/test_app.py", "def test_nothing():\n    pass\n")),))
)
TEST_SCOPE_VIOLATION = _script("scripted: test writes code", _test(extra=(does(create("notes_api/extra.py", '"""Not a test."""\n')),)))
INTERFACE_DRIFT = _script("scripted: implement changes a signature", _implement(DRIFTED))
PATCHED_AT_IMPORT = _script(
    "scripted: a signature changes when it is imported",
    _implement(PATCHED, {1}, extra=(does(create(PATCHER, PATCHES)),)),
    _implement(IMPLEMENTATION, {2}, wires=False, extra=(does(create(PATCHER, '"""Nothing is tuned."""\n')),)),
)
TESTS_NOTHING = _script(
    "scripted: tests that test nothing", *(_test(f"{TESTS_OF_NOTHING}\n\n# Round {round_}.\n", rounds={round_}) for round_ in range(1, 4))
)
NEVER_SUBMITS = _script(
    "scripted: never submits", conversation("implement", Turn(text="I have looked at everything and will go on soon."), endless=True)
)
BIG_CALLS = _script(
    "scripted: endless big calls",
    conversation("implement", *(bash(f"echo step {number}", output_tokens=16_000, input_tokens=200_000) for number in range(1, 500))),
)
"""About $0.56 a call with the shipped prices of claude-sonnet-5-5."""
STALLS_ONCE = _script(
    "scripted: the first attempt at implement hangs",
    conversation("implement", does(create(MODULE, IMPLEMENTATION)), bash("sleep 280"), submit("late"), attempts={1}),
    _implement(),
)
"""For killing a container in the middle of a stage; the second attempt goes well."""
STALLS_ALWAYS = _script(
    "scripted: every attempt at implement hangs",
    conversation("implement", does(create(MODULE, IMPLEMENTATION)), bash("sleep 280"), submit("late")),
)

VARIANTS: dict[str, Script] = {
    "happy": HAPPY,
    "rework-twice": REWORK_TWICE,
    "rework-exhausted": REWORK_EXHAUSTED,
    "rework-in-vain": REWORK_IN_VAIN,
    "wrong-line": WRONG_LINE,
    "scope-violation": SCOPE_VIOLATION,
    "test-scope-violation": TEST_SCOPE_VIOLATION,
    "interface-drift": INTERFACE_DRIFT,
    "tests-nothing": TESTS_NOTHING,
    "never-submits": NEVER_SUBMITS,
    "big-calls": BIG_CALLS,
    "stalls-once": STALLS_ONCE,
    "stalls-always": STALLS_ALWAYS,
}
