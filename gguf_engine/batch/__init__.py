"""
Many inputs, answered in order: JSONL or a CSV column in, JSONL out, resumable.

    from gguf_engine.batch import BatchOptions, read_jsonl, run_batch

    with LLM.load("haiku") as llm, open("in.jsonl", "rb") as source:
        for answer in run_batch(llm, read_jsonl(source), BatchOptions()):
            print(answer.data)
"""

from gguf_engine.batch.lines import Line, read_csv, read_jsonl
from gguf_engine.batch.output import Output
from gguf_engine.batch.run import Answer, BatchStats, run_batch
from gguf_engine.batch.tasks import BatchOptions, TaskName

__all__ = [
    "Answer",
    "BatchOptions",
    "BatchStats",
    "Line",
    "Output",
    "TaskName",
    "read_csv",
    "read_jsonl",
    "run_batch",
]
