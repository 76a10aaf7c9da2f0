"""Settings: which source wins, what is refused, what is never shown."""

from decimal import Decimal
from pathlib import Path

import pytest

from supervisor.config import ENVIRONMENT, Config, load, parse_usd
from supervisor.errors import ConfigError, UsageError


def a_file(tmp_path: Path, text: str) -> dict[str, str]:
    """Return an environment whose configuration file holds `text`."""
    folder = tmp_path / "andon"
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    return {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    """Each source is removed in turn and the next one shows."""
    environ = a_file(tmp_path, "budget_usd: 3\n")
    variable = {**environ, "ANDON_BUDGET_USD": "2"}

    found = [
        load({"budget_usd": "1"}, variable),
        load({"budget_usd": None}, variable),
        load({}, environ),
        load({}, {"HOME": str(tmp_path / "other")}),
    ]

    assert [config.budget_usd for config in found] == [1, 2, 3, 50]
    origins = [config.origins.get("budget_usd", "default") for config in found]
    assert origins == ["flag --budget", "environment ANDON_BUDGET_USD", f"file {tmp_path}/andon/config.yaml", "default"]


def test_an_unknown_key_names_file_and_key(tmp_path: Path) -> None:
    """A typing error in the file is never ignored."""
    environ = a_file(tmp_path, "budgte_usd: 3\n")

    with pytest.raises(ConfigError, match=r"config\.yaml: unknown key 'budgte_usd'; known: budget_usd, "):
        load({}, environ)


def test_a_file_may_not_speak_for_one_process(tmp_path: Path) -> None:
    """What describes the terminal or the caller comes from the environment only."""
    with pytest.raises(ConfigError, match="unknown key 'ci'"):
        load({}, a_file(tmp_path, "ci: true\n"))


@pytest.mark.parametrize("text", ["- a\n", "budget_usd: [\n", "x" * 70_000, "mode: both\n", "slots: 0\n", "budget_usd: -1\n"])
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    """Not a mapping, not YAML, too large, or a value out of range."""
    with pytest.raises(ConfigError) as refused:
        load({}, a_file(tmp_path, text))

    assert "config.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "five", "", "1000001", "0.0000000001"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Zero, signs, words, infinities and fractions below a nano-dollar."""
    with pytest.raises(ValueError, match="amount in US dollars"):
        parse_usd(text)


def test_an_amount_is_exact() -> None:
    """Decimal text becomes integer nano-USD without a float in between."""
    config = Config(budget_usd=Decimal("0.000000001"), warn_usd=Decimal("2.10"))

    assert config.budget_nano_usd == 1
    assert config.warn_nano_usd == 1, "a warning never comes after the stop"


def test_a_wrong_flag_is_a_usage_error_that_names_it() -> None:
    """The person at the command line sees which option it was."""
    with pytest.raises(UsageError, match=r"^--budget: 'much' is not an amount"):
        load({"budget_usd": "much"}, {"HOME": "/nowhere"})


def test_keys_are_never_shown() -> None:
    """Neither the repr, a dump nor `config show` holds a key; the proxy's password is cut out."""
    environ = {"HOME": "/nowhere", "ANTHROPIC_API_KEY": "sk-canary", "HTTPS_PROXY": "http://ada:sk-canary@proxy:3128"}
    config = load({}, {**environ, "NATS_URL": "nats://ada:sk-canary@broker:4222"})

    shown = f"{config!r}{config.rows()}{config.provider_fingerprint}"
    # A Config is never written to disk by us, but if it were, the provider's environment would not be in it.
    dumped = config.model_dump_json(exclude={"nats_url"})

    assert config.has_provider_key
    assert "sk-canary" not in str(config.rows())
    assert ("ANTHROPIC_API_KEY", "set", "environment ANTHROPIC_API_KEY") in config.rows()
    assert "sk-canary" not in dumped
    assert "http://proxy:3128" in shown


def test_another_key_is_another_fingerprint() -> None:
    """A stack that was started with another key is recognised without storing it."""
    one = load({}, {"HOME": "/", "ANTHROPIC_API_KEY": "a"}).provider_fingerprint
    other = load({}, {"HOME": "/", "ANTHROPIC_API_KEY": "b"}).provider_fingerprint

    assert one != other
    assert load({}, {"HOME": "/elsewhere", "ANTHROPIC_API_KEY": "a"}).provider_fingerprint == one


def test_an_empty_variable_is_not_set() -> None:
    """As the NO_COLOR convention and shells have it."""
    config = load({}, {"HOME": "/home/ada", "NATS_URL": "", "NO_COLOR": "", "CI": "false", "ANTHROPIC_API_KEY": ""})

    assert (config.nats_url, config.no_color, config.ci, config.has_provider_key) == (None, False, False, False)
    assert load({}, {"HOME": "/", "NO_COLOR": "0", "CI": "1"}).no_color


def test_the_state_directory_follows_the_xdg_rules() -> None:
    """A relative XDG directory is ignored; our own variable must be absolute."""
    assert load({}, {"HOME": "/home/ada"}).state_directory == Path("/home/ada/.local/state/andon")
    assert load({}, {"HOME": "/home/ada", "XDG_STATE_HOME": "/var/lib/x"}).state_directory == Path("/var/lib/x/andon")
    assert load({}, {"HOME": "/home/ada", "XDG_STATE_HOME": "x"}).state_directory == Path("/home/ada/.local/state/andon")
    with pytest.raises(ConfigError, match="not an absolute path"):
        load({}, {"HOME": "/home/ada", "ANDON_STATE_DIRECTORY": "here"})


def test_every_key_has_a_name_in_the_environment() -> None:
    """What the documentation promises: every option can be given by the environment."""
    assert set(ENVIRONMENT) == set(Config.model_fields) - {"provider", "telemetry", "origins"}


def test_models_are_mapped_by_file_or_environment(tmp_path: Path) -> None:
    """A pipeline written for other models runs with ours; a pair that is none is refused."""
    (tmp_path / "config.yaml").write_text("models: {theirs: claude-sonnet-5-5}\n")

    assert load({}, {"HOME": "/", "ANDON_CONFIG": str(tmp_path / "config.yaml")}).models == {"theirs": "claude-sonnet-5-5"}
    assert load({}, {"HOME": "/", "ANDON_MODELS": "a=x, b=y"}).models == {"a": "x", "b": "y"}
    with pytest.raises(ConfigError, match="ANDON_MODELS"):
        load({}, {"HOME": "/", "ANDON_MODELS": "a"})


@pytest.mark.parametrize(
    "url", ["postgresql://ada:hush@db/andon", "postgres://ada:hu@sh/hush@db/andon", "postgresql://db/andon?password=hush"]
)
def test_a_databases_password_is_never_shown(url: str, tmp_path: Path) -> None:
    """Neither as a setting, nor in a repr, nor where the value is refused."""
    config = load({}, {"HOME": "/", "ANDON_DATABASE_URL": url})

    shown = [row for row in config.rows() if row[0] == "database_url"]

    assert config.database_url == url
    assert shown == [("database_url", "set", "environment ANDON_DATABASE_URL")]
    assert "hush" not in f"{config!r} {config.rows()}"
    with pytest.raises(ConfigError, match="ANDON_DATABASE_URL") as refused:
        load({}, {"HOME": "/", "ANDON_DATABASE_URL": url.replace("postgres", "mysql")})
    assert "hush" not in str(refused.value)


def test_a_repository_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the directory one works in, where a key is sent and what is spent stays the person's own choice (ADR 0006)."""
    repository = tmp_path / "repository"
    (repository / ".andon").mkdir(parents=True)
    for name in ("config.yaml", "andon.yaml", ".andon/config.yaml", ".andon.yaml"):
        (repository / name).write_text("budget_usd: 999\nnats_url: nats://theirs:4222\n")
    (repository / ".env").write_text("ANTHROPIC_BASE_URL=http://theirs\nANDON_BUDGET_USD=999\n")
    monkeypatch.chdir(repository)

    config = load({}, {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": ".", "ANTHROPIC_API_KEY": "sk-canary"})

    assert (config.budget_nano_usd, config.nats_url) == (50 * 10**9, None)
    assert config.provider == {"ANTHROPIC_API_KEY": "sk-canary"}


def test_the_standard_names_of_tracing_are_read_and_headers_are_not_shown(tmp_path: Path) -> None:
    """They may hold a key; an endpoint may come from the file, too, and another environment needs another stack."""
    file = tmp_path / "config.yaml"
    file.write_text("otlp_endpoint: http://collector:4318\n")
    environ = {
        "ANDON_CONFIG": str(file),
        "HOME": str(tmp_path),
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
        "OTEL_TRACES_SAMPLER": "always_off",
    }

    config = load(environ=environ)

    assert config.telemetry == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
        "OTEL_TRACES_SAMPLER": "always_off",
    }
    shown = {key: value for key, value, _ in config.rows()}
    assert (shown["OTEL_EXPORTER_OTLP_HEADERS"], shown["OTEL_TRACES_SAMPLER"]) == ("set", "always_off")
    assert "secret" not in str(config.rows()) + repr(config)
    others = [load(environ={**environ, name: "x"}) for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_SDK_DISABLED")]
    assert len({each.telemetry_fingerprint for each in (config, *others)}) == 3


def test_the_log_level_is_a_word_of_four(tmp_path: Path) -> None:
    """From the file or the environment, there in any case; another word is refused by the name of its source."""
    environ = a_file(tmp_path, "log_level: warning\n")

    assert load({}, environ).log_level == "warning"
    assert load({}, {**environ, "ANDON_LOG_LEVEL": "DEBUG"}).log_level == "debug"
    with pytest.raises(ConfigError, match="environment ANDON_LOG_LEVEL: log_level"):
        load({}, {**environ, "ANDON_LOG_LEVEL": "loud"})
