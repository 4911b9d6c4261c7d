"""`gguf-engine doctor`: what is here, what is broken, what is slow."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gguf_engine.cli.loading import as_json
from gguf_engine.errors import GGUFEngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_engine.doctor.facts import Facts, Finding, Machine, Report

_GIB = 2**30


class BrokenError(GGUFEngineError):
    """Something without which no model runs."""


def doctor(
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at machine, build, devices, hub and cache. Says what is broken, what is slow, and what helps."""
    from gguf_engine.doctor.examine import examine

    report = examine(os.environ)
    if as_object:
        print(json.dumps(as_json(report)))
    else:
        _print(report)
    if report.broken:
        raise BrokenError("; ".join(finding.sentence for finding in report.broken))


def _print(report: Report) -> None:
    rows = list(_rows(report.facts))
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in rows:
            table.add_row(name, value)
        Console(markup=False, highlight=False).print(table)
    else:
        print("\n".join(f"{name:16}{value}" for name, value in rows))
    _print_findings("broken", report.broken)
    _print_findings("slower, or less, than it could be", report.warnings)
    if not report.broken:
        print(f"\n{_verdict(report)}")


def _verdict(report: Report) -> str:
    from gguf_engine.doctor.advice import OF_THE_BUILD

    parts = ["everything works"]
    if not report.warnings:
        parts.append("nothing was seen that makes it slow")
    if report.facts.build and OF_THE_BUILD.isdisjoint(finding.code for finding in report.warnings):
        parts.append("this llama.cpp build uses what this machine has")
    return "; ".join(parts)


def _print_findings(title: str, findings: tuple[Finding, ...]) -> None:
    if findings:
        print(f"\n{title}:")
    for finding in findings:
        print(f"  - {finding.sentence}")
        if finding.fix:
            print(f"    {finding.fix}")


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    yield from _machine_rows(facts.machine)
    for gpu in facts.gpus:
        memory = f", {_gib(gpu.memory_total_bytes)}" if gpu.memory_total_bytes else ""
        yield f"{gpu.vendor} GPU", f"{gpu.name}{memory}, driver {gpu.driver or 'none'}"
    yield "versions", ", ".join(f"{name} {number or 'missing'}" for name, number in facts.versions.items())
    if facts.build is not None:
        yield "llama.cpp uses", facts.build.system_info
        yield "devices", ", ".join(f"{name} ({model})" for name, model in facts.build.devices.items())
        yield "", facts.build.auto
    if facts.trial is not None:
        trial = facts.trial
        yield (
            "trial",
            f"loaded haiku on {trial.device} and made {trial.n_tokens} tokens in {trial.seconds:.1f} s",
        )
    hub = facts.hub
    answer = "offline: not asked" if hub.is_offline else hub.problem and "not reached"
    yield "hub", f"{hub.endpoint}, {answer or f'answered in {hub.answer_s:.1f} s'}"
    free = "unknown" if facts.cache.free_bytes is None else _gib(facts.cache.free_bytes)
    yield (
        "cache",
        f"{facts.cache.folder}: {facts.cache.n_repos} models, {_gib(facts.cache.n_bytes)}; {free} free",
    )
    for name, value in facts.settings.items():
        yield "setting", f"{name}={value}"


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "machine", f"{machine.system} {machine.release}, {machine.processor}"
    quota = "" if machine.quota is None else f", a quota of {machine.quota:g}"
    load = "" if machine.load_1m is None else f", load {machine.load_1m:.2f}"
    yield "threads", f"{machine.n_threads} of {machine.n_processors} processors{quota}{load}"
    if machine.features is not None:
        yield "processor has", ", ".join(machine.features)
    sizes = {
        "in all": machine.memory_total_bytes,
        "available": machine.memory_available_bytes,
        "allowed": machine.memory_limit_bytes,
        "in swap": machine.swap_used_bytes,
    }
    known = [f"{_gib(size)} {what}" for what, size in sizes.items() if size is not None]
    if known:
        yield "memory", ", ".join(known)
    if machine.governor is not None:
        yield "governor", machine.governor


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.1f} GiB"
