"""What /metrics shows: counters and histograms of requests, and what the engine says of itself."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from gguf_engine.engine.engine import EngineStats
from gguf_engine.outputs import Piece

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ROUTES = frozenset(
    (
        *("/", "/chat.css", "/chat.js", "/health", "/metrics", "/openapi.json", "/prompt"),
        *("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings"),
        *("/tokenize", "/detokenize", "/apply-template"),
    )
)
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_OVERHEAD_S = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1)


def route_of(path: str) -> str:
    """Return a path as a label: what strangers make up must not make series."""
    if path in ROUTES:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"


class _EngineState:
    """A collector: the engine's own figures as they were last asked for."""

    stats: EngineStats | None = None

    def collect(self) -> Iterable[Metric]:
        stats = self.stats
        yield GaugeMetricFamily("gguf_engine_up", "Whether the engine answers.", value=stats is not None)
        if stats is None:
            return
        for name, text, value in (
            ("requests_running", "Requests that have a slot.", stats.n_running),
            ("requests_waiting", "Requests that wait for one.", stats.n_waiting),
            ("slots", "Requests that can run at once.", stats.n_slots),
            ("kv_cells", "Cells of the KV cache.", stats.n_cells),
            ("kv_cells_used", "Cells that hold something, kept prefixes included.", stats.n_cells_used),
        ):
            yield GaugeMetricFamily(f"gguf_engine_{name}", text, value=value)
        yield CounterMetricFamily(
            "gguf_engine_crashes", "Times that the engine's process died.", value=stats.n_crashes
        )


class Gaps:
    """
    A histogram of the times between tokens: a delivery adds many at once.

    Of the client library each would be a call with a lock, which thousands of tokens a second would feel.
    Used from the event loop alone.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(_BETWEEN_S) + 1)  # not cumulative; the last is of what is longer
        self._sum_s = 0.0

    def note(self, seconds: float, n: int) -> None:
        """Add `n` times of so many seconds."""
        self._counts[bisect_left(_BETWEEN_S, seconds)] += n
        self._sum_s += n * seconds

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client: buckets are cumulative, and end with infinity."""
        edges = [*(str(float(each)) for each in _BETWEEN_S), "+Inf"]
        buckets = list(zip(edges, accumulate(self._counts), strict=True))
        name, text = "gguf_engine_inter_token_seconds", "From one token to the next."
        yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum_s)


class Metrics:
    """One server's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._engine = _EngineState()
        self._registry.register(self._engine)
        self._requests = Counter(
            "gguf_engine_http_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self._overhead = self._histogram(
            "http_overhead", "A generation's time in the server, less the engine's.", _OVERHEAD_S
        )
        self._queue = self._histogram("queue", "Waiting for a slot.", _FIRST_S)
        self._first = self._histogram("first_token", "From the request to its first token.", _FIRST_S)
        gaps = Gaps()
        self._registry.register(gaps)
        self._tokens = {
            name: Counter(f"gguf_engine_{name}_tokens", text, registry=self._registry)
            for name, text in (
                ("prompt", "Tokens of prompts."),
                ("cached", "Tokens of prompts that were taken from a kept prefix."),
                ("completion", "Tokens of answers."),
                ("drafted", "Tokens guessed ahead."),
                ("accepted", "Guessed tokens that were right."),
            )
        }
        self.note_gaps = gaps.note
        self.note_overhead = self._overhead.observe

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"gguf_engine_{name}_seconds", text, buckets=buckets, registry=self._registry)

    def note_request(self, path: str, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(route_of(path), status).inc()

    def note_end(self, last: Piece) -> None:
        """Count a finished answer by its last piece."""
        assert last.usage is not None
        assert last.timings is not None
        usage, timings = last.usage, last.timings
        self._queue.observe(timings.queue_s)
        if usage.n_completion:
            self._first.observe(timings.ttft_s)
        for name, n in (
            ("prompt", usage.n_prompt),
            ("cached", usage.n_cached),
            ("completion", usage.n_completion),
            ("drafted", timings.n_drafted),
            ("accepted", timings.n_accepted),
        ):
            self._tokens[name].inc(n)

    def render(self, stats: EngineStats | None) -> bytes:
        """
        Return the metrics as Prometheus reads them.

        Args:
            stats: What the engine said now; None when it does not answer.
        """
        self._engine.stats = stats
        return generate_latest(self._registry)
