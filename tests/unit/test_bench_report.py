"""The HTML report: what it says of made-up records, that it stands alone, and how it looks on a phone."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_samples import MACHINE, MODEL, answers, case, laptop, record, trial, workstation

from gguf_engine.bench.record import RecordError, parse_record
from gguf_engine.bench.report import render_report
from gguf_engine.bench.report_answers import agreement, answer_rows, same_until
from gguf_engine.bench.report_charts import Bar, ChartsMissingError, bars, number, shares
from gguf_engine.bench.report_rows import contestants, is_clear, rows_of
from gguf_engine.bench.report_tables import figures_table
from gguf_engine.bench.report_words import seconds, sentences, size, verdict

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """The text of a page, its attributes, and a check that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def two() -> str:
    return render_report([laptop(), workstation()], ["laptop", "workstation"])


# --- the words ----------------------------------------------------------------------------------------


def test_the_verdict_of_two_machines_names_the_fastest_and_by_how_much() -> None:
    text = verdict(rows_of([laptop(), workstation()], ["laptop", "workstation"]))
    assert text.startswith(
        "NVIDIA H200 (cuda:0) of workstation is fastest: 8.75 times as fast as Intel Xeon"
    )
    assert "and 21.0 times as fast as AMD EPYC (cpu, 2 threads) of laptop." in text
    assert "It writes 210 tokens per second, reads a prompt at 9,000" in text


def test_the_verdict_of_one_case_is_its_speed() -> None:
    text = verdict(rows_of([record(case(10.0))], ["a"]))
    assert text.startswith(
        "AMD EPYC (cpu, 2 threads) writes 10.0 tokens per second, reads a prompt at 120 and"
    )


def test_machines_whose_trials_overlap_are_called_about_as_fast() -> None:
    text = verdict(rows_of([record(case(10.0)), record(case(10.05))], ["a", "b"]))
    assert "write about as fast, 10.1 and 10.0 tokens per second" in text
    assert "fastest" not in text


def test_two_records_are_about_as_fast_where_one_machine_might_differ_so_much() -> None:
    near = verdict(rows_of([record(case(10.0)), record(case(10.4))], ["a", "b"]))
    assert near.endswith("two runs on one machine may differ by 5%, and these do by less.")
    assert "is fastest" in verdict(rows_of([record(case(10.0)), record(case(10.6))], ["a", "b"]))


def test_a_peer_or_a_case_beside_a_busy_program_is_no_contestant() -> None:
    rows = rows_of([record(case(5.0), case(50.0, engine="bare"), case(60.0, neighbour=True))], ["a"])
    assert [row.case.engine for row in contestants(rows)] == ["gguf_engine"]
    assert contestants(rows)[0].case.neighbour is False


def test_the_other_figures_are_said_as_ratios() -> None:
    said = "\n".join(sentences(rows_of([laptop()], ["laptop"])))
    assert "AMD EPYC (cpu, 1 thread) writes 65% as fast as with 2 threads." in said
    assert "Beside one busy program, AMD EPYC writes 54% as fast as alone with 2 threads." in said
    assert "(cpu, 2 threads) keeps 81% after 2,048 tokens of context, of its speed at the start." in said
    company = (
        "4 requests at once make 2.16 times and 8 requests at once make 3.04 times the tokens of one alone"
    )
    assert f"On AMD EPYC (cpu, 2 threads), {company}." in said
    assert "gguf_engine writes 1.03 times as fast as llama-cpp-python." in said
    assert "as fast as bare llama.cpp loop (their trials overlap)." in said


def test_of_a_case_that_differs_in_two_ways_no_cause_is_named() -> None:
    rows = rows_of([record(case(10.0), case(3.0, depth=2048, neighbour=True))], ["a"])
    said = "\n".join(sentences(rows))
    assert "busy program" not in said
    assert "2,048" not in said


def test_memory_is_the_limit_where_most_of_its_speed_is_used() -> None:
    # 2.2 GB a token: 10 tokens/s read 22 GB/s of 25, 5 read 11 GB/s; 12 would be more than there is.
    for rate, words in ((10.0, "Memory is the limit"), (5.0, "Computing is the limit"), (12.0, "caches")):
        said = "\n".join(sentences(rows_of([record(case(rate))], ["a"])))
        assert words in said, rate
    small = replace(MODEL, weight_bytes_a_token=2_000_000)
    assert "caches" in "\n".join(sentences(rows_of([record(case(1000.0), model=small)], ["a"])))


def test_of_a_gpu_the_hosts_memory_says_nothing() -> None:
    said = "\n".join(sentences(rows_of([record(case(200.0, device="cuda:0"))], ["a"])))
    assert "plain loop" not in said


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (99.94, "99.9"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.00012, "0.00012"),
    ],
)
def test_numbers_have_three_figures_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_times_and_sizes_have_units() -> None:
    assert [seconds(value) for value in (2.5, 0.0142, 0.000031)] == ["2.50 s", "14.2 ms", "31.0 us"]
    assert [size(n) for n in (2_200_000_000, 11_000_000, 999)] == ["2.20 GB", "11.0 MB", "999 bytes"]


def test_a_difference_is_clear_when_the_middle_halves_lie_apart() -> None:
    slow, near, fast = (rows_of([record(case(rate))], ["a"])[0].decode for rate in (10.0, 10.05, 11.0))
    assert slow is not None
    assert near is not None
    assert fast is not None
    assert is_clear(slow, fast)
    assert is_clear(fast, slow)
    assert not is_clear(slow, near)


# --- the same answers? --------------------------------------------------------------------------------


def test_answers_are_the_same_up_to_the_first_token_that_differs() -> None:
    assert same_until((1, 2, 3), (1, 2, 3)) == 3
    assert same_until((1, 2, 3), (1, 9, 3)) == 1
    assert same_until((1, 2), (1, 2, 3)) == 2


def test_a_faster_device_that_says_something_else_is_shown_as_such() -> None:
    rows = answer_rows([laptop(), workstation()], ["laptop", "workstation"])
    gpu = next(row for row in rows if "cuda:0" in row.pair)
    assert (gpu.is_same, gpu.greedy) == (False, "the same up to token 3 of 4")
    assert gpu.top_1 == "50.0% of 2 positions"
    worst = (
        "laptop: cpu, 2 threads and laptop: llama-cpp-python, cpu, 2 threads give the same up to token 2"
    )
    assert agreement(rows) == [
        f"Not all give the same greedy answer: {worst} of 4. 2 pairs differ: the table below has them all."
    ]
    assert "cuda:0 give the same up to token 3 of 4." in agreement([gpu])[0]


def test_answers_that_begin_differently_are_called_other_answers() -> None:
    both = (answers((1, 2, 3)), answers((2, 2, 3), n_threads=1))
    rows = answer_rows([record(answers=both)], ["a"])
    assert (rows[0].greedy, rows[0].n_same) == ("other answers from the first token on", 0)


def test_our_engine_is_named_where_there_are_peers() -> None:
    labels = [row.label for row in rows_of([record(case(10.0), case(9.0, engine="bare"))], ["a"])]
    assert labels == ["gguf_engine, cpu, 2 threads", "bare llama.cpp loop, cpu, 2 threads"]
    assert rows_of([record(case(10.0))], ["a"])[0].label == "cpu, 2 threads"


def test_an_answer_that_ends_early_is_another_answer() -> None:
    both = (answers((1, 2, 3)), answers((1, 2), n_threads=1))
    assert answer_rows([record(answers=both)], ["a"])[0].is_same is False


def test_the_divergence_of_two_distributions_is_that_of_the_formula() -> None:
    from math import log

    # P = (0.5, 0.25, rest 0.25), Q = (0.25, 0.5, rest 0.25): KL = 0.5 ln 2 - 0.25 ln 2.
    first = answers((1,), top_ids=((1, 2),), top_logprobs=((log(0.5), log(0.25)),))
    second = answers((1,), n_threads=1, top_ids=((2, 1),), top_logprobs=((log(0.5), log(0.25)),))
    row = answer_rows([record(answers=(first, second))], ["a"])[0]
    assert row.kl == f"{0.25 * log(2):.2g}"
    assert row.top_1 == "0.0% of 1 positions"
    # Q = (0.5, 0.125, rest 0.375): KL = 0.25 ln 2 + 0.25 ln (0.25 / 0.375).
    third = answers((1,), n_threads=1, top_ids=((1, 2),), top_logprobs=((log(0.5), log(0.125)),))
    row = answer_rows([record(answers=(first, third))], ["a"])[0]
    assert row.kl == f"{0.25 * log(2) + 0.25 * log(0.25 / 0.375):.2g}"
    same = answer_rows([record(answers=(first, replace(first, n_threads=1)))], ["a"])[0]
    assert (same.kl, same.top_1) == ("0", "100.0% of 1 positions")


def test_all_the_same_is_said_in_one_sentence_and_one_answer_alone_says_nothing() -> None:
    both = (answers((1, 2)), answers((1, 2), n_threads=1))
    assert agreement(answer_rows([record(answers=both)], ["a"])) == [
        "All of them give the same greedy answer, token by token."
    ]
    assert answer_rows([record(answers=both[:1])], ["a"]) == []


# --- the page -----------------------------------------------------------------------------------------


def test_the_page_of_two_machines_has_every_part(two: str) -> None:
    page = Page(two)
    for words in (
        "of workstation is fastest",
        "These figures are doubtful. workstation: the machine was busy before the run began",
        "Writing (decode)",
        "Reading the prompt (prefill)",
        "Stages",
        "First token",
        "Time between tokens",
        "Requests at once",
        "A longer conversation",
        "Weights through memory",
        "Do they give the same answers?",
        "the same up to token 3 of 4",
        "laptop: mistralrs was left out",
        "Every case reads a prompt of 128 tokens and writes 32, 5 times",
        "570.86",
        "CPU : AVX2 = 1 | OPENMP = 1 |",
        "NVIDIA H200, 150 GB",
    ):
        assert words in page.text, words
    assert page.text.index("is fastest") < page.text.index("How fast")
    assert two.count("<svg") == 9


def test_the_page_stands_alone(two: str) -> None:
    page = Page(two)
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "img", "iframe"}
    assert [each for each in page.attributes if each[1] in ("src", "href", "xlink:href")
            and not each[2].startswith("#")] == []  # fmt: skip
    assert "@import" not in two
    assert not re.search(r"url\((?!#)", two)


def test_every_colour_is_the_pages_so_that_it_can_be_dark(two: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", two, re.DOTALL))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", charts) == []
    used = set(re.findall(r"var\(--(\w+)\)", two))
    light, dark = two.split("prefers-color-scheme: dark")
    for name in used:
        assert f"--{name}:" in light, name
        assert f"--{name}:" in dark, name


def test_one_case_gives_a_page_without_empty_parts() -> None:
    bare = replace(trial(10.0), stages={}, peak_host_bytes=None, import_s=None, total_s=None)
    alone = record(case(10.0, trials=(bare,)), memory=())
    text = render_report([alone])
    page = Page(text)
    assert "AMD EPYC (cpu, 2 threads) writes 9.89 tokens per second" in page.text
    for words in ("Stages", "Requests at once", "same answers", "Memory taken", "doubtful", "boot, s"):
        assert words not in page.text, words
    assert text.count("<svg") == 5


def test_a_peer_that_shows_rates_alone_has_its_bars() -> None:
    rates = trial(
        1.0, token_s=(), stages={}, total_s=None, decode_tokens_per_s=9.5, prefill_tokens_per_s=99.0
    )
    page = Page(render_report([record(case(10.0), case(1.0, engine="llama-bench", trials=(rates,)))]))
    assert "llama-bench, cpu, 2 threads" in page.text
    assert "9.50 tokens/s" in page.text
    assert "gguf_engine writes 1.05 times as fast as llama-bench" in page.text


def test_a_case_without_trials_is_left_out_and_a_record_without_any_is_refused() -> None:
    assert len(rows_of([record(case(10.0), case(10.0, n_threads=1, trials=()))], ["a"])) == 1
    with pytest.raises(RecordError, match="at least one case"):
        render_report([record(case(10.0, trials=()))])


def test_a_strangers_names_are_text(two: str) -> None:
    attack = "<script>alert(1)</script>$x^2$&"
    model = replace(MODEL, name=attack)
    text = render_report(
        [record(case(10.0, engine=attack), model=model, machine=replace(MACHINE, cpu=attack))]
    )
    assert "<script" not in text
    assert Page(text).text.count(attack) >= 4


def test_the_same_record_gives_the_same_page(two: str) -> None:
    again = [parse_record(each.to_json(), "made") for each in (laptop(), workstation())]
    assert render_report(again, ["laptop", "workstation"]) == two


def test_columns_that_nothing_fills_are_left_out_of_the_table() -> None:
    heads = figures_table(rows_of([record(case(10.0))], ["a"])).heads
    assert "decode, tokens/s" in heads
    assert "energy, J" not in heads
    trials = (trial(10.0, energy_j=3.0), trial(10.0, energy_j=5.0))
    table = figures_table(rows_of([record(case(10.0, trials=trials))], ["a"]))
    assert table.rows[0][table.heads.index("energy, J")] == ("4.00", "3.50 to 4.50")


def test_a_chart_draws_what_it_is_given_and_leaves_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    svg = bars([Bar("first", [1.0, 2.0, 9.0], 0, {"limit": 12.0}), Bar("second", [0.0], 11)], "MB")
    assert dict(mpl.rcParams) == before
    assert ">first<" in svg
    assert ">2.00 MB<" in svg
    assert "var(--c0)" in svg
    assert "var(--c3)" in svg  # colours come round
    assert shares([("one", [5.0], 0)], "ms").startswith("<svg viewBox")
    assert ">costs $2 or $3<" in bars([Bar("costs $2 or $3", [1.0], 0)], "MB")  # not a formula


def test_without_matplotlib_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ChartsMissingError, match=re.escape("pip install 'gguf-engine[bench]'")):
        render_report([record(case(10.0))])


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_reaches_beyond_the_screen(chromium: Chrome, two: str, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(two, encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get("about:blank")
    chromium.get_log("browser")  # type: ignore[no-untyped-call]  # of pages that were here before
    chromium.get(path.as_uri())
    page = "const page = document.documentElement, texts = [...document.querySelectorAll('svg text')];"
    assert chromium.execute_script(page + "return page.scrollWidth - page.clientWidth") == 0
    heights = chromium.execute_script(page + "return texts.map((e) => e.getBoundingClientRect().height)")
    assert min(heights) > 7  # pixels: to be read without a glass
    assert chromium.get_log("browser") == []  # type: ignore[no-untyped-call]
    chromium.get("about:blank")
