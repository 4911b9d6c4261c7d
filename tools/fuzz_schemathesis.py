"""Requests that schemathesis makes from an OpenAPI document: such as it allows, and such as it forbids."""

from __future__ import annotations

import importlib
import json
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis
from fuzz_bodies import Case, request


def from_schemathesis(document: dict[str, Any], count: int, seed: int) -> list[tuple[str, Case]]:
    """
    Return about `count` named cases, the same number for each operation, half of them forbidden ones.

    Raises:
        SystemExit: schemathesis is not installed.
    """
    try:
        schemathesis = importlib.import_module("schemathesis")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; run: pip install '.[fuzz]'") from error
    modes = schemathesis.GenerationMode
    found: list[tuple[str, Case]] = []
    operations = [each.ok() for each in schemathesis.openapi.from_dict(document).get_all_operations()]
    share = -(-count // (2 * len(operations)))
    for operation in operations:
        for mode in (modes.POSITIVE, modes.NEGATIVE):
            try:
                cases = _drawn(operation.as_strategy(generation_mode=mode), share, seed)
            except hypothesis.errors.Unsatisfiable:  # what takes nothing has nothing to get wrong
                continue
            name = f"schemathesis {operation.label} {mode.value}"
            found += [(f"{name} {n}", to_case(case)) for n, case in enumerate(cases)]
    return found[:count]


def _drawn(strategy: Any, count: int, seed: int) -> list[Any]:
    """Return up to `count` examples of a strategy."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def to_case(case: Any) -> Case:
    """Return one of schemathesis's cases as bytes, its body as JSON."""
    path = quote(case.formatted_path, safe="/%")
    if case.query:
        path += "?" + urlencode(case.query, doseq=True, errors="surrogatepass")
    body = b""
    if isinstance(case.body, bytes):
        body = case.body
    elif type(case.body).__name__ != "NotSet":
        body = json.dumps(case.body).encode()
    return Case("schemathesis", request(case.method.upper(), path, body))
