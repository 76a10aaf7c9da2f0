"""What a model's tokens cost, in integer nano-USD, read from `prices.toml`; not how tokens are counted (`sandbox/gateway/meter.py`)."""

import re
import tomllib
from datetime import date
from functools import lru_cache
from importlib import resources

from pydantic import Field, ValidationError

from sandbox.contract.errors import ConfigError, UsageError
from sandbox.contract.model import Frozen

_DATED_ID = re.compile(r"-\d{8}\Z", re.ASCII)


class Rates(Frozen):
    """Nano-USD for one token of each kind."""

    input: int = Field(ge=0, strict=True)
    """Uncached input."""
    output: int = Field(ge=0, strict=True)
    cache_write_5m: int = Field(ge=0, strict=True)
    cache_write_1h: int = Field(ge=0, strict=True)
    cache_read: int = Field(ge=0, strict=True)

    @property
    def dearest_input(self) -> int:
        """Return the highest rate an input token can be charged at."""
        return max(self.input, self.cache_write_5m, self.cache_write_1h, self.cache_read)


class PriceRow(Rates):
    """One row of the price list: a model's rates from a day on, above a prompt size."""

    model: str = Field(min_length=1, max_length=100)
    effective_from: date
    above_prompt_tokens: int = Field(0, ge=0, strict=True)
    """The whole request costs this row's rates if its prompt, cached tokens included, has more tokens."""


class PriceList(Frozen):
    """Every price we know; a model without a row is refused before a call goes out (DECISIONS D13)."""

    rows: tuple[PriceRow, ...]

    def knows(self, model: str) -> bool:
        """Return whether `model`, or the model its dated id names, has a price."""
        return any(row.model in _names(model) for row in self.rows)

    def rates(self, model: str, prompt_tokens: int, on: date) -> Rates:
        """Return what one request costs per token.

        Args:
            model: A model id; a dated one (`…-20251001`) is looked up without its date.
            prompt_tokens: The whole prompt, cached tokens included.
            on: The day of the call. Before a model's first row its first row counts.

        Raises:
            UsageError: The model has no price.
        """
        rows = [row for row in self.rows if row.model in _names(model)]
        if not rows:
            raise UsageError(f"model {model!r} has no price: use a model of sandbox/contract/prices.toml, or add its rates there")
        first = min(row.effective_from for row in rows)
        day = max((row.effective_from for row in rows if row.effective_from <= on), default=first)
        reached = [
            row for row in rows if row.effective_from == day and (row.above_prompt_tokens < prompt_tokens or not row.above_prompt_tokens)
        ]
        return max(reached, key=lambda row: row.above_prompt_tokens)


def parse_prices(text: str, source: str) -> PriceList:
    """Return the price list written in `text` (TOML, tables `[[price]]`).

    Raises:
        ConfigError: Not TOML, an unknown key, a rate that is no integer, a row twice, or a model without a row for every prompt size.
    """
    try:
        document = tomllib.loads(text)
        if set(document) != {"price"}:
            raise ConfigError(f"{source}: expected only [[price]] tables, found {sorted(document)}")
        rows = tuple(PriceRow.model_validate(row) for row in document["price"])
    except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from error
    keys = [(row.model, row.effective_from, row.above_prompt_tokens) for row in rows]
    if len(set(keys)) != len(keys):
        raise ConfigError(f"{source}: a model, day and prompt size has two rows")
    for model, day, _ in keys:
        if (model, day, 0) not in keys:
            raise ConfigError(f"{source}: {model} from {day} has no row for small prompts (above_prompt_tokens = 0)")
    return PriceList(rows=rows)


@lru_cache(maxsize=1)
def shipped_prices() -> PriceList:
    """Return the price list that ships with this release."""
    text = resources.files("sandbox.contract").joinpath("prices.toml").read_text(encoding="utf-8")
    return parse_prices(text, "sandbox/contract/prices.toml")


def _names(model: str) -> tuple[str, str]:
    return model, _DATED_ID.sub("", model)
