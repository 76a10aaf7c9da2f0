"""What a model call used, by the provider's own events."""

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.agent_spec import CacheTtl
from sandbox.contract.price import shipped_prices
from sandbox.contract.result import Usage
from sandbox.gateway.meter import Meter
from sandbox.gateway.sse import EventSplitter
from tests.fakes.upstream import a_reply, a_start, a_tool_call, an_end, event

TODAY = date(2026, 11, 22)
MODEL = "claude-sonnet-5-5"


def metered(*events: bytes, ttl: CacheTtl = "5m") -> Meter:
    meter = Meter(ttl)
    for item in EventSplitter().feed(b"".join(events)):
        meter.read(item)
    return meter


def cost(meter: Meter, model: str = MODEL) -> int:
    return meter.cost_nano_usd(shipped_prices(), model, TODAY)


def test_a_plain_reply_is_metered():
    """100 tokens in at 2,000 and 50 out at 10,000 nano-USD."""
    meter = metered(*a_reply())

    assert meter.usage == Usage(input_tokens=100, output_tokens=50)
    assert cost(meter) == 700_000
    assert meter.is_complete
    assert meter.anomalies == []
    assert (meter.reply_model, meter.reply_id, meter.stop_reason) == (MODEL, "msg_01", "end_turn")


def test_later_figures_replace_earlier_ones():
    """Usage in message_delta is cumulative, and null says nothing."""
    meter = metered(
        a_start(input_tokens=0, cache_read_input_tokens=5),
        an_end(output_tokens=9, input_tokens=80, cache_read_input_tokens=None),
    )

    assert meter.usage == Usage(input_tokens=80, output_tokens=9, cache_read_input_tokens=5)


def test_cache_writes_are_priced_by_their_ttl():
    """1,000 at 1h (4,000), the other 500 of the total at 5m (2,500)."""
    usage: dict[str, object] = {
        "cache_creation_input_tokens": 1_500,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1_000},
    }
    meter = metered(a_start(input_tokens=0, **usage), an_end(output_tokens=0))

    assert meter.usage.cache_write_input_tokens == 1_500
    assert cost(meter) == 1_000 * 4_000 + 500 * 2_500


@pytest.mark.parametrize(("ttl", "rate"), [("5m", 2_500), ("1h", 4_000)])
def test_cache_writes_without_a_breakdown_have_the_ttl_of_the_stage(ttl: CacheTtl, rate: int):
    """A provider that gives only the total is priced at what was asked for."""
    meter = metered(a_start(input_tokens=0, cache_creation_input_tokens=10), an_end(output_tokens=0), ttl=ttl)

    assert cost(meter) == 10 * rate


def test_a_large_prompt_is_priced_in_its_tier_with_its_cached_tokens():
    """60,000 fresh and 60,000 cached tokens are a prompt above 100,000."""
    meter = metered(a_start(model="claude-haiku-5-5", input_tokens=60_000, cache_read_input_tokens=60_000), an_end(output_tokens=0))

    assert cost(meter, "claude-haiku-5-5") == 60_000 * 500 + 60_000 * 50


def test_the_model_that_answered_is_the_one_that_is_paid():
    """A fallback we did not ask for is still billed as what it is."""
    assert cost(metered(a_start(model="claude-opus-5-5"), an_end())) == 100 * 4_000 + 50 * 20_000


def test_harmless_fields_are_harmless():
    """What the provider sends today passes without an anomaly."""
    meter = metered(
        a_start(
            service_tier="standard",
            speed="standard",
            inference_geo="not_available",
            server_tool_use={"web_search_requests": 0, "web_fetch_requests": 0},
            output_tokens_details={"thinking_tokens": 7},
            iterations=[{"type": "message", "input_tokens": 3, "output_tokens": 4}],
            cache_creation={"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            new_and_zero=0,
            new_and_null=None,
            new_and_empty={"a": [0, None]},
        ),
        an_end(),
    )

    assert meter.anomalies == []


@pytest.mark.abuse("W07")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_tool_use", {"web_search_requests": 1}),
        ("service_tier", "priority"),
        ("speed", "fast"),
        ("inference_geo", "us"),
        ("iterations", [{"type": "compaction", "input_tokens": 9}]),
        ("fallback_credit", {"tokens": 1}),
        ("brand_new_tokens", 1),
        ("cache_creation", {"ephemeral_30d_input_tokens": 5}),
        ("cache_creation", "many"),
        ("input_tokens", -1),
        ("input_tokens", 1.5),
        ("input_tokens", True),
        ("input_tokens", "7"),
        ("input_tokens", 10**12),
        ("output_tokens", [1]),
        ("service_tier", ["standard"]),
    ],
)
def test_what_cannot_be_priced_is_an_anomaly(field: str, value: object):
    """The call is then charged in full; the meter says why, and never raises."""
    meter = metered(a_start(**{field: value}), an_end())

    assert len(meter.anomalies) == 1
    assert field in meter.anomalies[0]


@pytest.mark.parametrize(
    "raw",
    [
        b'event: message_start\ndata: {"message": {"usage": {"input_tokens": NaN}}}\n\n',
        b'event: message_start\ndata: {"message": {"usage": {"input_tokens": 1, "input_tokens": 2}}}\n\n',
        b"event: message_start\ndata: {}\n\n",
        b"event: message_start\ndata: []\n\n",
        b"event: message_delta\ndata: {\n\n",
        b"event: message_delta\n\n",
    ],
)
def test_an_unreadable_figure_is_an_anomaly(raw: bytes):
    """Two readings, or none, are as bad as a wrong figure."""
    assert metered(raw).anomalies != []


@pytest.mark.parametrize(
    "events",
    [
        [],
        [a_start()],
        [an_end()],
        [a_start(), event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 5})],
        [a_start(), event("message_delta", delta={"stop_reason": "end_turn"}, usage={})],
        [a_start(), event("message_stop")],
    ],
    ids=["nothing", "no end", "no start", "no reason", "no figure", "stop only"],
)
def test_a_reply_without_its_last_figure_is_not_complete(events: list[bytes]):
    """Only then is the provider's figure final."""
    assert not metered(*events).is_complete


def test_the_tool_that_is_called_is_seen():
    """For a person who watches."""
    assert metered(a_start(), *a_tool_call("bash")).tool == "bash"


@given(
    st.dictionaries(
        st.sampled_from(["input_tokens", "output_tokens", "x", "iterations"]), st.integers() | st.text() | st.lists(st.integers())
    )
)
def test_no_usage_costs_less_than_nothing(usage: dict[str, object]):
    """Whatever a provider says, money never comes back."""
    start = {"message": {"model": MODEL, "usage": usage}}
    meter = metered(b"event: message_start\ndata: " + json.dumps(start).encode() + b"\n\n")

    assert cost(meter) >= 0
