"""
Print the README's table of promises from the newest record of `make reliability`.

    python tools/reliability_table.py                    # print it
    python tools/reliability_table.py --write README.md  # put it between the markers of a file

A test holds the README's equal to it: nothing in it is typed by hand.
"""

from __future__ import annotations

from figures import newest
from markers import print_or_write

VERSIONS = ("gguf_engine", "llama_cpp_python", "tokenizers", "python")


def make_table() -> str:
    """Return the table, with its date and versions."""
    record = newest("reliability")
    machine = record["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS)
    lines = ["| promise | tried | result |", "| --- | ---: | --- |"]
    for row in record["results"]:
        result = row["result"] if row["held"] else f"**broken:** {row['result']}"
        lines.append(f"| {row['promise']} | {row['tried']:,} | {result} |")
    return "\n".join([*lines, "", f"{machine['date'][:10]}, {versions}, {machine['cpu']}.", ""])


if __name__ == "__main__":
    print_or_write("reliability", make_table, __doc__)
