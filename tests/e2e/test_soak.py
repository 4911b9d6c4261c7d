"""A short soak of the real server, and the test of flatness, tested."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from promises import report
from serve_program import Program
from soak import OPTIONS, growth, soak
from thoroughness import rounds

SECONDS = rounds(quick=7, thorough=120)


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_loaded_server_whose_engine_is_killed_stays_as_it_was() -> None:
    with Program(*OPTIONS) as program:
        found = asyncio.run(soak(program, SECONDS / 60, n_clients=8, seed=3))
        assert program.end() == 0
    assert found["findings"] == []
    assert found["kills"] >= 1
    assert found["by_status"]["200"] > 50
    n = sum(found["by_kind"].values())
    report(
        "A server left running under faults stays flat",
        n,
        f"{found['kills']} kills of its engine; server {found['server_grown_mib']:+.1f} MiB, "
        f"engine {found['engine_grown_mib']:+.1f} MiB, no descriptor more",
    )


def test_growth_is_a_leak_and_not_a_peak_nor_noise() -> None:
    """A leak of 4 a second for 100 s is 400; noise of a few and one peak of a million are none."""
    random = Random(1)
    noise = [(float(at), 1000 + random.uniform(-5, 5)) for at in range(100)]
    assert abs(growth(noise)) < 10
    peak = [*noise[:50], (50.0, 1e6), *noise[51:]]
    assert abs(growth(peak)) < 10
    leak = [(at, value + 4 * at) for at, value in noise]
    assert growth(leak) == pytest.approx(4 * 99, rel=0.05)
    assert growth([]) == growth(noise[:1]) == 0
