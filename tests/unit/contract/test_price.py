"""What a token costs."""

from datetime import date

import pytest

from sandbox.contract.errors import ConfigError, UsageError
from sandbox.contract.price import parse_prices, shipped_prices

TODAY = date(2026, 11, 22)
LISTED = [
    "claude-haiku-5-5",
    "claude-sonnet-5-5",
    "claude-opus-5-5",
    "claude-fable-5-2",
    "claude-fable-5-1",
    "claude-opus-5",
    "claude-sonnet-5",
    "claude-opus-4-5",
    "claude-opus-4-6",
    "claude-opus-4-7",
    "claude-opus-4-8",
    "claude-haiku-4-5",
]
ROW = 'model = "m"\neffective_from = 2026-01-01\ninput = 1\noutput = 2\ncache_write_5m = 3\ncache_write_1h = 4\ncache_read = 5\n'


@pytest.mark.parametrize("model", LISTED)
def test_every_model_we_name_has_a_price(model: str):
    """A listed model is known, and its writes cost more than its plain input, its reads less."""
    rates = shipped_prices().rates(model, 1_000, TODAY)

    assert rates.cache_read < rates.input < rates.cache_write_5m < rates.cache_write_1h < rates.output
    assert rates.dearest_input == rates.cache_write_1h


def test_rates_are_nano_usd_for_a_token():
    """$2 and $10 for a million tokens are 2,000 and 10,000 nano-USD for one."""
    rates = shipped_prices().rates("claude-sonnet-5-5", 1_000, TODAY)

    assert (rates.input, rates.output, rates.cache_read) == (2_000, 10_000, 100)


def test_a_row_counts_from_its_day():
    """Reads of sonnet 5.5 cost half from 7 October 2026 on."""
    prices = shipped_prices()

    assert prices.rates("claude-sonnet-5-5", 0, date(2026, 10, 6)).cache_read == 200
    assert prices.rates("claude-sonnet-5-5", 0, date(2026, 10, 7)).cache_read == 100


def test_before_its_first_row_a_model_has_its_first_rates():
    """A clock that is behind does not make a model free."""
    assert shipped_prices().rates("claude-opus-5-5", 0, date(2020, 1, 1)).input == 4_000


def test_a_prompt_above_a_tier_is_priced_there_as_a_whole():
    """The tier begins above 100,000 tokens, not at them."""
    prices = shipped_prices()

    assert prices.rates("claude-haiku-5-5", 100_000, TODAY).output == 500
    assert prices.rates("claude-haiku-5-5", 100_001, TODAY).output == 2_500


def test_a_dated_id_has_the_price_of_its_model():
    """Providers answer with dated ids."""
    assert shipped_prices().rates("claude-haiku-4-5-20251001", 0, TODAY) == shipped_prices().rates("claude-haiku-4-5", 0, TODAY)


@pytest.mark.parametrize("model", ["gpt-5", "", "claude-sonnet-5-5-latest", "claude-sonnet-5-5-2026100", "CLAUDE-SONNET-5-5"])
def test_an_unknown_model_has_no_price(model: str):
    """A model is priced by its exact name or not at all."""
    assert not shipped_prices().knows(model)
    with pytest.raises(UsageError, match=r"no price.*prices\.toml"):
        shipped_prices().rates(model, 0, TODAY)


@pytest.mark.parametrize(
    "text",
    [
        "[[price]]\n" + ROW + "[[price]]\n" + ROW,
        "[[price]]\n" + ROW.replace("input = 1", "input = 1.5"),
        "[[price]]\n" + ROW.replace("input = 1", "input = -1"),
        "[[price]]\n" + ROW + "surprise = 1\n",
        "[[price]]\n" + ROW + "above_prompt_tokens = 5\n",
        "extra = 1\n[[price]]\n" + ROW,
        "price = 3\n",
        "[[price",
    ],
    ids=["twice", "fraction", "negative", "unknown key", "no row for small prompts", "other table", "no table", "no toml"],
)
def test_a_wrong_price_list_is_refused(text: str):
    """A typing error in the data is found when it is read, and the message names the file."""
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        parse_prices(text, "mine.toml")


def test_a_right_price_list_is_read():
    """The companion: the same row, without a fault."""
    assert parse_prices("[[price]]\n" + ROW, "mine.toml").rates("m", 0, TODAY).output == 2
