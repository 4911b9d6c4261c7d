"""Add up what became of many files: the figures of the corpus and of the fuzzer, as plain numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gguf_judge import Answer


@dataclass(slots=True)
class Tally:
    """
    Counts over files.

    Attributes:
        outcomes: How often each outcome of `Answer` came.
        codes: How often each code of a refusal came.
        by_class: Mutation -> its outcomes.
        n_where: Refusals that name a key, tensor or offset.
        slowest_s: Longest pre-flight check, in seconds; slowest: of which file.
        findings: What must not happen: name, outcome and message of a file.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    by_class: dict[str, Counter[str]] = field(default_factory=dict)
    n_where: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    findings: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, answer: Answer, *, group: str = "", harmless: bool = False) -> bool:
        """Count one file; return whether it is a finding: unfair, or harmless and not accepted."""
        self.outcomes[answer.outcome] += 1
        if group:
            self.by_class.setdefault(group, Counter())[answer.outcome] += 1
        if answer.outcome == "refused":
            self.codes[answer.code] += 1
            self.n_where += bool(answer.where)
        if answer.seconds > self.slowest_s:
            self.slowest_s, self.slowest = answer.seconds, name
        is_finding = not answer.is_fair or (harmless and answer.outcome != "good")
        if is_finding:
            found = {"file": name, "outcome": answer.outcome, "code": answer.code, "what": answer.what}
            self.findings.append(found)
        return is_finding

    def merge(self, other: Tally) -> None:
        """Add another's counts."""
        self.outcomes += other.outcomes
        self.codes += other.codes
        for name, counts in other.by_class.items():
            self.by_class[name] = self.by_class.get(name, Counter()) + counts
        self.n_where += other.n_where
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest = other.slowest_s, other.slowest
        self.findings += other.findings

    @property
    def n_files(self) -> int:
        """Return how many files were counted."""
        return self.outcomes.total()

    def figures(self) -> dict[str, Any]:
        """Return the figures as what json.dumps takes; shares are fractions of the refused."""
        refused = self.outcomes["refused"]
        return {
            "files": self.n_files,
            "refused": refused,
            "accepted": self.n_files - refused - self.outcomes["untyped"],
            "worked": self.outcomes["good"],
            "typed_error_later": self.outcomes["declined"],
            "deaths_contained": self.outcomes["contained"],
            "deaths": self.outcomes["death"],
            "hangs": self.outcomes["hang"],
            "untyped_errors": self.outcomes["untyped"],
            "silent_nonsense": self.outcomes["not_finite"],
            "share_with_code": 1.0 - self.codes[""] / refused if refused else None,
            "share_with_where": self.n_where / refused if refused else None,
            "slowest_s": round(self.slowest_s, 3),
            "slowest": self.slowest,
            "codes": dict(self.codes.most_common()),
        }
