"""Reads traces for tests, from payloads and from a run's file, and says what is wrong with one; it fakes nothing."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SLACK_S = 0.005


@dataclass(frozen=True)
class SeenSpan:
    """One span as a viewer sees it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: float
    end: float
    is_error: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """Span ids."""

    def without_parent(self) -> "SeenSpan":
        """Return it as the root of a part of its trace."""
        return replace(self, parent_id="")


@dataclass(frozen=True)
class SeenTrace:
    """All spans of one file or of some payloads."""

    spans: list[SeenSpan]

    @classmethod
    def of_payloads(cls, payloads: Iterable[bytes]) -> "SeenTrace":
        """Read gzip OTLP requests."""
        return cls.of_requests(ExportTraceServiceRequest.FromString(gzip.decompress(payload)) for payload in payloads)

    @classmethod
    def of_requests(cls, requests: Iterable[ExportTraceServiceRequest]) -> "SeenTrace":
        """Read OTLP requests."""
        return cls(
            [
                SeenSpan(
                    service=next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name"),
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.kind,
                    start=span.start_time_unix_nano / 1e9,
                    end=span.end_time_unix_nano / 1e9,
                    is_error=span.status.code == 2,
                    attributes={each.key: _value(each.value) for each in span.attributes},
                    links=tuple(link.span_id.hex() for link in span.links),
                )
                for request in requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        )

    @classmethod
    def of_file(cls, path: Path) -> "SeenTrace":
        """Read a run's `trace.otlp.jsonl`, by the rules of OTLP/JSON alone."""
        return cls.of_documents(json.loads(line) for line in path.read_text().splitlines())

    @classmethod
    def of_documents(cls, documents: Iterable[dict[str, Any]]) -> "SeenTrace":
        """Read OTLP/JSON, with ids in hex; an integer may be one, or text."""
        return cls(
            [
                SeenSpan(
                    service=next(a["value"]["stringValue"] for a in resource["resource"]["attributes"] if a["key"] == "service.name"),
                    name=span["name"],
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    kind=span["kind"],
                    start=int(span["startTimeUnixNano"]) / 1e9,
                    end=int(span["endTimeUnixNano"]) / 1e9,
                    is_error=span.get("status", {}).get("code") == 2,
                    attributes={each["key"]: _json_value(each["value"]) for each in span.get("attributes", [])},
                    links=tuple(link["spanId"] for link in span.get("links", [])),
                )
                for document in documents
                for resource in document["resourceSpans"]
                for scope in resource["scopeSpans"]
                for span in scope["spans"]
            ]
        )

    @cached_property
    def by_id(self) -> dict[str, SeenSpan]:
        """Return the spans by their id."""
        return {span.span_id: span for span in self.spans}

    @property
    def roots(self) -> list[SeenSpan]:
        """Return the spans without a parent."""
        return [span for span in self.spans if not span.parent_id]

    def named(self, start: str) -> list[SeenSpan]:
        """Return the spans whose name begins so, in the order of their start."""
        return sorted((span for span in self.spans if span.name.startswith(start)), key=lambda span: span.start)

    def parent(self, span: SeenSpan) -> SeenSpan | None:
        """Return a span's parent if it is there."""
        return self.by_id.get(span.parent_id)

    def faults(self) -> list[str]:
        """Return what no whole trace may have, one line each: orphans, doubles, a child outside its parent, a stranger's claim."""
        faults = [f"{span.name} is an orphan" for span in self.spans if span.parent_id and span.parent_id not in self.by_id]
        faults += [f"{self.by_id[id_].name} is there {n} times" for id_, n in Counter(s.span_id for s in self.spans).items() if n > 1]
        if len(self.roots) != 1:
            faults.append(f"{len(self.roots)} roots: {[span.name for span in self.roots]}")
        if len({span.trace_id for span in self.spans}) > 1:
            faults.append("more than one trace")
        for span in self.spans:
            faults += self._faults_of(span)
        return faults

    def _faults_of(self, span: SeenSpan) -> list[str]:
        faults = []
        parent = self.parent(span)
        if parent and not parent.start - SLACK_S <= span.start <= span.end <= parent.end + SLACK_S:
            faults.append(f"{span.name} [{span.start:.3f}, {span.end:.3f}] is outside {parent.name} [{parent.start:.3f}, {parent.end:.3f}]")
        if span.name.startswith(("chat ", "gateway fetch ")) != (span.service == "andon-gw"):
            faults.append(f"{span.name} is from {span.service}")
        if span.name.startswith(("execute_tool ", "agent import")) != (span.service == "andon-agent"):
            faults.append(f"{span.name} is from {span.service}")
        if any(key.startswith("gen_ai.usage.") for key in span.attributes) != span.name.startswith("chat "):
            faults.append(f"{span.name} counts tokens, or a chat does not")
        if span.is_error != ("error.type" in span.attributes):
            faults.append(f"{span.name} is an error without a type, or the other way round")
        if span.name.startswith("execute_tool "):
            invoked = parent.attributes.get("container.id") if parent and parent.name.startswith("invoke_agent ") else None
            if not invoked or span.attributes.get("container.id") != invoked:
                faults.append(f"{span.name} is not from the container of its agent")
        return faults

    def tree(self) -> str:
        """Return names and services as an indented text, siblings by start; times and ids left out."""
        children: dict[str, list[SeenSpan]] = {}
        for span in sorted(self.spans, key=lambda span: (span.start, span.name)):
            children.setdefault(span.parent_id, []).append(span)

        def lines(span: SeenSpan, depth: int) -> list[str]:
            own = f"{'  ' * depth}{span.name} [{span.service.removeprefix('andon-')}]"
            return [own, *(line for child in children.get(span.span_id, []) for line in lines(child, depth + 1))]

        return "\n".join(line for root in self.roots for line in lines(root, 0)) + "\n"


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, str(kind))


def _json_value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_json_value(each) for each in content.get("values", [])]
    return int(content) if kind == "intValue" else content
