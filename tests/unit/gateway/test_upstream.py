"""The provider as an operator's environment describes it, and what its refusals mean."""

import json
import ssl
from pathlib import Path

import pytest

from sandbox.contract.errors import ConfigError
from sandbox.gateway.upstream import Upstream, fault_of

KEY = {"ANTHROPIC_API_KEY": "sk-canary-1"}


def an_upstream(**env: str) -> Upstream:
    upstream = Upstream.from_environment({**KEY, **env})
    assert upstream is not None
    return upstream


@pytest.mark.parametrize("env", [{}, {"ANTHROPIC_API_KEY": ""}, {"ANTHROPIC_API_KEY": " \n"}, {"ANTHROPIC_BASE_URL": "http://x"}])
def test_without_a_key_there_is_no_provider(env: dict[str, str]):
    """A key and nothing else makes it live (D14)."""
    assert Upstream.from_environment(env) is None


def test_either_variable_holds_the_key():
    """The API key wins, as in the SDK."""
    token = Upstream.from_environment({"ANTHROPIC_AUTH_TOKEN": "tok\n"})

    assert token is not None
    assert token.credential == "tok"
    assert an_upstream(ANTHROPIC_AUTH_TOKEN="tok").credential == "sk-canary-1"


def test_the_key_is_not_in_the_repr():
    """Logs and tracebacks show reprs."""
    assert "sk-canary" not in repr(an_upstream())


@pytest.mark.parametrize("url", ["ftp://x", "http://", "api.anthropic.com", "http://u:p@x", "http://x?q=1", "http://x#f"])
def test_an_address_that_makes_no_sense_is_refused(url: str):
    """The message names the variable."""
    with pytest.raises(ConfigError, match="ANTHROPIC_BASE_URL"):
        an_upstream(ANTHROPIC_BASE_URL=url)


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel", "x" * 5_000])
def test_a_key_that_cannot_be_one_is_refused_without_being_quoted(key: str):
    """A pasted newline would split a header."""
    with pytest.raises(ConfigError) as caught:
        an_upstream(ANTHROPIC_API_KEY=key)

    assert key not in str(caught.value)


def test_an_address_may_have_a_path():
    """A company proxy listens below one; a slash at the end means nothing."""
    assert an_upstream(ANTHROPIC_BASE_URL="http://host:4000/anthropic/").base_url == "http://host:4000/anthropic"


@pytest.mark.parametrize(
    ("base", "env", "proxy"),
    [
        ("https://api.example", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://api.example", {"https_proxy": "p:1"}, "http://p:1"),
        ("https://api.example", {"HTTP_PROXY": "http://p:1"}, None),
        ("https://api.example", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("http://api.example", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("https://api.example", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other, .example"}, None),
        ("https://api.example", {"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}, None),
        ("https://api.example:8443", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.example:8443"}, None),
        ("https://api.example", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "pi.example"}, "http://p:1"),
        ("https://10.1.2.3", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://11.1.2.3", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://p:1"),
    ],
)
def test_proxies_are_chosen_as_everywhere(base: str, env: dict[str, str], proxy: str | None):
    """Variables in either case; NO_PROXY by name, domain, port, range."""
    assert an_upstream(ANTHROPIC_BASE_URL=base, **env).proxy == proxy


def test_a_proxy_of_another_kind_is_refused():
    """One clear error instead of an import error at the first call."""
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        an_upstream(HTTPS_PROXY="socks5://p:1")


def test_own_certificates_are_read(tmp_path: Path):
    """A file that is missing or holds none is named."""
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        an_upstream(SSL_CERT_FILE=str(tmp_path / "none.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        an_upstream(SSL_CERT_FILE=str(tmp_path / "bad.pem"))
    assert an_upstream(SSL_CERT_DIR=str(tmp_path)).tls is not None


def test_the_default_is_the_provider_with_its_certificate_checked():
    """No environment makes it less."""
    upstream = an_upstream()

    assert upstream.base_url == "https://api.anthropic.com"
    assert upstream.tls is not None
    assert upstream.tls.verify_mode is ssl.CERT_REQUIRED
    assert upstream.tls.check_hostname


def an_error(kind: str, code: str = "") -> bytes:
    return json.dumps(
        {"type": "error", "error": {"type": kind, "message": "SECRET TEXT", "details": {"error_code": code or None}}}
    ).encode()


@pytest.mark.parametrize(
    ("status", "kind", "code", "retryable", "failure", "to_client"),
    [
        (401, "authentication_error", "", False, "auth", 401),
        (403, "permission_error", "", False, "auth", 403),
        (402, "billing_error", "", False, "provider", 429),
        (429, "rate_limit_error", "", True, "provider", 429),
        (429, "rate_limit_error", "enforced_spend_limit_reached", False, "provider", 429),
        (429, "rate_limit_error", "contract_spend_limit_reached", False, "provider", 429),
        (500, "api_error", "", True, "provider", 500),
        (529, "overloaded_error", "", True, "provider", 529),
        (404, "not_found_error", "", False, "provider", 404),
        (302, "", "", False, "provider", 502),
        (400, "invalid_request_error", "", False, None, 400),
        (413, "request_too_large", "", False, None, 413),
        (418, "teapot", "", False, None, 400),
    ],
)
def test_a_refusal_is_made_anew(status: int, kind: str, code: str, retryable: bool, failure: str | None, to_client: int):
    """Status class and code are taken over, text never; terminal ones are not tried again."""
    fault = fault_of(status, {}, an_error(kind, code))

    assert fault.is_retryable is retryable
    assert (fault.failure.kind if fault.failure else None) == failure
    assert fault.status == to_client
    assert fault.retry is False
    assert "SECRET" not in fault.message
    assert code in fault.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("4000000", 60.0), ("-5", 0.0), ("nan", None), ("inf", None), ("Sun, 22 Nov 2026", None), ("", None)],
)
def test_the_provider_may_not_make_us_wait_for_ever(header: str, seconds: float | None):
    """At most 60 s; the SDK would sleep for days."""
    assert fault_of(429, {"retry-after": header}, b"").retry_after_s == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "x"}', b'{"error": {"type": "Text with blanks"}}', b"[" * 100_000])
def test_an_error_that_is_no_error_object_is_still_one(body: bytes):
    """Proxies answer with pages."""
    assert fault_of(500, {}, body).message == "the provider is down: status 500"


def test_a_provider_that_says_so_is_not_tried_again():
    """`x-should-retry: false` overrides the status."""
    assert not fault_of(500, {"x-should-retry": "false"}, b"").is_retryable
