"""What leaves the gateway holds no secret: none this host knows, none whose shape is known, and no half of one where text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.scrub import REPLACEMENT, SECRET_CHARS_MAX, Scrub, secrets_of

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7\nabc=\n-----END RSA PRIVATE KEY-----"
SHAPES = [
    "sk-ant-api03-abcdefghijkl_mnop-qrst",
    "ghp_0123456789abcdefghijABCDEFGHIJ",
    "github_pat_11ABCDEFG0123456789_abcdef",
    "glpat-0123456789abcdefghij",
    "npm_0123456789abcdefghij0123456789",
    "pypi-AgEIcHlwaS5vcmcCJDU2",
    "xoxb-1234567890-abcdef",
    "AIzaSyA0123456789abcdefghijklmnopqrstu",
    "AKIAIOSFODNN7EXAMPLE",
    "SU" + "A" * 56,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    PEM,
    PEM[:60],
]


@pytest.mark.parametrize("secret", SHAPES)
def test_what_looks_like_a_key_is_taken_out(secret: str):
    """Wherever it stands, and what stands around it stays."""
    assert Scrub().of(f"KEY={secret}") == f"KEY={REPLACEMENT}"
    assert Scrub().of(f'x "{secret}').startswith(f'x "{REPLACEMENT}')
    assert Scrub().finds(f"KEY={secret}")


@pytest.mark.parametrize(
    "text",
    [
        "ask-questions-first-of-all-please",
        "the-task-0123456789abcdef",
        "import sk_learn",
        "see https://example.org/a:b/c@d",
        "Bearer of news",
    ],
)
def test_ordinary_text_stays(text: str):
    """The companion case: words that merely resemble one."""
    assert Scrub().of(text) == text
    assert not Scrub().finds(text)


def test_credentials_in_addresses_and_headers_are_taken_out():
    """The host stays, so that a reader knows where they belong."""
    assert Scrub().of("clone https://ada:hunter2@git.example.org/x") == f"clone https://{REPLACEMENT}@git.example.org/x"
    assert Scrub().of("authorization: Bearer abcdef0123456789") == f"authorization: Bearer {REPLACEMENT}"


def test_what_the_host_knows_is_taken_out_whatever_it_looks_like():
    """The longest first; a value as short as a word is no secret that could be hidden."""
    scrub = Scrub({"correct horse", "correct horse battery", "short"})

    assert scrub.of("correct horse battery staple, correct horse, short") == f"{REPLACEMENT} staple, {REPLACEMENT}, short"
    assert (scrub.finds("a correct horse"), scrub.finds("a short one")) == (True, False)


def test_secrets_of_an_environment_are_what_its_names_say_and_passwords_in_addresses():
    """Keys, tokens, passwords; nothing else is looked at."""
    environment = {
        "NPM_TOKEN": "one-1-one-1",
        "DB_PASSWORD": "two-2-two-2",
        "MONKEY": "no",
        "HTTPS_PROXY": "http://ada:p%40ss@proxy:3128",
        "PATH": "/bin",
    }

    assert secrets_of(environment) == {"one-1-one-1", "two-2-two-2", "p@ss"}


@given(before=st.integers(0, 3_000), cut=st.integers(1, 3_000), after=st.integers(0, SECRET_CHARS_MAX + 100))
def test_no_part_of_a_secret_stays_where_a_text_is_cut(before: int, cut: int, after: int):
    """Half a key is worth guessing at: not one character of it stays, wherever the bound falls."""
    secret = "ζ" * 900

    shown = Scrub({secret}).beginning("a" * before + secret + "b" * after, cut)

    assert "ζ" not in shown
    assert len(shown) <= cut


@given(chars_max=st.integers(0, 3_000), more=st.integers(0, SECRET_CHARS_MAX))
def test_a_text_that_is_a_little_too_long_keeps_its_whole_beginning(chars_max: int, more: int):
    """It was looked at to its end, so there is nothing to be careful about."""
    text = "a" * (chars_max + more)

    assert Scrub({"correct horse"}).beginning(text, chars_max) == text[:chars_max]


def test_many_secrets_before_the_bound_do_not_pull_half_a_one_into_it():
    """What is taken out makes room, and what moves up was never looked at as a whole."""
    secrets = ["ζ" * 4_000, "ξ" * 4_000]

    shown = Scrub(secrets).beginning((secrets[0] + secrets[1]) * 10, 5_000)

    assert not {"ζ", "ξ"} & set(shown)
