"""What one rendering of a template may use, counted where it is asked for."""

# ruff: noqa: E501 - one template, one line

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gguf_engine.text import budget as limits
from gguf_engine.text.budget import Budget, LimitError
from gguf_engine.text.sandbox import Program


@pytest.fixture
def budget() -> Budget:
    return Budget()


def test_steps_are_refused_beyond_the_limit_and_not_before(budget: Budget) -> None:
    budget.charge(limits.MAX_STEPS)
    with pytest.raises(LimitError, match=f"more than {limits.MAX_STEPS} steps"):
        budget.charge(limits._STEPS_BETWEEN_LOOKS)


def test_processor_time_is_looked_at_while_steps_are_counted(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.thread_time", lambda: float("inf"))
    budget.charge(1)
    with pytest.raises(LimitError, match="processor time"):
        budget.charge(limits._STEPS_BETWEEN_LOOKS)


def test_texts_and_numbers_of_the_largest_size_can_be_made(budget: Budget) -> None:
    budget.made("x" * limits.MAX_TEXT_CHARS)
    budget.made(2 ** (limits.MAX_INT_BITS - 1))
    with pytest.raises(LimitError, match=f"text of {limits.MAX_TEXT_CHARS + 1} characters"):
        budget.made("x" * (limits.MAX_TEXT_CHARS + 1))
    with pytest.raises(LimitError, match="number of"):
        budget.made(2**limits.MAX_INT_BITS)


def test_texts_dropped_since_count_too(budget: Budget) -> None:
    n_texts = limits.MAX_MADE_BYTES // 2**20 - 1
    for _ in range(n_texts):
        budget.made("x" * 2**20)
    with pytest.raises(LimitError, match=f"more than {limits.MAX_MADE_BYTES} bytes"):
        budget.made("x" * 2**20)


def test_a_value_is_as_large_as_it_prints(budget: Budget) -> None:
    value: list[object] = [1]
    for _ in range(16):  # 2^17 - 1 lists and 2^16 ones
        value = [value, value]
    with pytest.raises(LimitError, match=f"more than {limits.MAX_TREE_NODES} parts"):
        budget.text(value)
    budget.text(value[0][0])  # type: ignore[index]


@pytest.mark.parametrize("depth", [limits.MAX_TREE_DEPTH - 1, limits.MAX_TREE_DEPTH + 1])
def test_depth_is_bounded(budget: Budget, depth: int) -> None:
    value: object = 1
    for _ in range(depth):
        value = {"k": value}
    if depth < limits.MAX_TREE_DEPTH:
        assert budget.text(value).count("k") == depth
    else:
        with pytest.raises(LimitError, match="nested more than"):
            budget.text(value)


def test_each_rendering_has_a_budget_of_its_own_in_every_thread() -> None:
    # Two renderings need more steps than one may use.
    program = Program("{% for a in range(90000) %}{% for b in [1, 2, 3] %}{% endfor %}{% endfor %}{{ n }}")
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda n: program.render({"n": n}), range(4))
        assert list(texts) == ["0", "1", "2", "3"]


LONG_BODY = "{% if a %}{% endif %}" * 200
"""Of about 600 nodes: with 16 nodes a step, a turn costs about 38 steps more."""


@pytest.mark.parametrize("body", ["", "x", "{{ a }}"])
def test_a_short_body_costs_a_step_or_two_a_turn(body: str) -> None:
    Program("{% for i in range(50000) %}" + body + "{% endfor %}").render({"a": ""})


@pytest.mark.parametrize(
    "body",
    [
        LONG_BODY,
        "{% if true %}" + LONG_BODY + "{% endif %}",
        "{% for j in [1] %}" + LONG_BODY + "{% endfor %}",
    ],
)
def test_a_long_body_costs_more_steps_a_turn(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CPU_S", 3600.0)
    program = Program("{% for i in range(50000) %}" + body + "{% endfor %}")
    with pytest.raises(LimitError, match=f"more than {limits.MAX_STEPS} steps"):
        program.render({"a": ""})


EVERYDAY = [
    "{%- macro m(x) -%}{{ x | string | upper }}{%- endmacro -%}{{ m('a') }}{{ m(1.5) }}",
    "{% set ns = namespace(n=0) %}{% for k, v in d.items() %}{% set ns.n = ns.n + v %}{% endfor %}{{ ns.n }}",
    "{{ d.get('z', 9) }} {{ d['a'] }} {{ d.a }} {{ d.z is defined }} {{ d | dictsort | list }} {{ d }}",
    "{{ l | selectattr('k', 'equalto', 1) | list | length }} {{ l | map(attribute='k') | join(',') }}",
    "{{ [3, 1, 2] | sort | first }} {{ 'a-b'.split('-')[-1] }} {{ ' x '.strip() ~ 'y'.upper() ~ 1 }}",
    "{{ 'ab'[::-1] }} {{ l[0]['k'] }} {{ 'a' in 'ab' and 1 in [1] }} {{ 'é' == 'e' }} {{ 1 < 2 < 3 }}",
    "{{ [1, 2] | tojson(indent=1) }} {{ d | tojson }} {{ 'a<b' | safe }} {{ 'a' | safe + '<' }}",
    "{{ nothing is defined }} {{ nothing | default('d') }}{{ nothing }} {{ d is mapping }} {{ l is iterable }}",
    "{{ 'a\nb' | indent(2) | length }} {{ '7' | int + 1 }} {{ [1, 1] | unique | list }} {{ 7 // 2 * 3 % 4 }}",
    "{% for a in [1, 2, 3] if a != 2 %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{{ loop.last }}{% endfor %}",
    "{% set x %}<{{ d.a }}>{% endset %}{{ x | length }}{% filter upper %}ab{% endfilter %}{{ x | replace('<', '') }}",
    "{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is sequence else a }}{% endfor %}",
    "{% macro c() %}[{{ caller('x') }}]{% endmacro %}{% call(v) c() %}{{ v }}!{% endcall %}",
    "{% with a = 'ß' %}{{ a | upper | title }}{% endwith %}{{ dict(a=1) }}{{ (1, 2) + (3,) }}{{ -1.5 | round }}",
]


@pytest.mark.parametrize("source", EVERYDAY)
def test_charged_templates_give_what_jinja2_gives(source: str) -> None:
    oracle = ImmutableSandboxedEnvironment()
    oracle.filters["tojson"] = json.dumps
    variables = {"d": {"a": 1, "b": 2}, "l": [{"k": 1}, {"k": 2}]}
    assert Program(source).render(variables) == oracle.from_string(source).render(variables)
