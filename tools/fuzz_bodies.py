"""A seed and a number → one request that a server has to answer in words: valid, nearly so, or not HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

MAX_DEPTH = 3
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**70, 0.5, -0.0, 1e308, 1e-320, float("nan")),
    *(
        "",
        " ",
        "a",
        "\x00",
        "\ud800",
        "\U0010ffff",
        "é" * 3000,
        "<|user|>",
        "<s>",
        "{{ 7 * 7 }}",
        "../../x",
    ),
    *([], {}, [[]], [None], {"": None}, ["a"] * 300, [0] * 300, {"type": "text"}, "0", "true", "null"),
)
ODD_HOSTS = (b"", b"evil.example", b"[::1", b"\xff", b"localhost:99999")
ODD_METHODS = (b"HEAD", b"PUT", b"OPTIONS", b"get", b"\x00", b"A" * 300)
ODD_PATHS = (b"*", b"/%00", b"/../x", b"//", b"/\xff", b"http://a/v1/models")
ODD_TAILS = (b"?" + b"a=" * 9000, b"/", b"%2e", b"#x", b"\t")
ODD_VERSIONS = (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"")
TEXTS = ("snow", "Write a haiku about snow", "the old pond", "naïve 漢字", "a\nb", "x" * 200)


class Case(NamedTuple):
    """
    One request.

    Attributes:
        kind: How it was made: "schema", "bytes", "http" or "schemathesis".
        data: What is sent.
    """

    kind: str
    data: bytes


def make_case(document: dict[str, Any], seed: int, number: int) -> Case:
    """
    Return a case, always the same one for the same numbers.

    Args:
        document: The server's OpenAPI document.
        seed, number: Which case.
    """
    random = Random(f"{seed}/{number}")
    method, path, schema = random.choice(operations(document))
    value = None if schema is None else sample(document, schema, random)
    for _ in range(random.choice((0, 0, 0, 1, 1, 2, 4))):
        value = edited(value, random)
    text = b"" if schema is None else to_bytes(value, random)
    kind = random.choices(("schema", "bytes", "http"), (6, 2, 2))[0]
    if kind == "bytes":
        text = damaged(text, random)
    data = request(method, path, text)
    return Case(kind, broken_http(data, random) if kind == "http" else data)


def request(method: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Return the bytes of a request after which the server ends the connection."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Return method, path and the body's schema of everything in a document; those with a body thrice."""
    found: list[tuple[str, str, dict[str, Any] | None]] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody")
            schema = None if body is None else body["content"]["application/json"]["schema"]
            found += [(method.upper(), path, schema)] * (1 if schema is None else 3)
    return found


def sample(document: dict[str, Any], schema: dict[str, Any], random: Random, depth: int = 0) -> Any:
    """Return a value that a schema allows; of numbers, mostly the ends of their range."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for some in ("anyOf", "oneOf"):
        if some in schema:
            return sample(document, random.choice(schema[some]), random, depth)
    if "enum" in schema or "const" in schema:
        return random.choice(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "object":
        return _object(document, schema, random, depth)
    if kind == "array":
        low, high = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
        items = schema.get("items", {})
        n = random.randint(low, max(low, high))
        return [sample(document, items, random, depth + 1) for _ in range(n)]
    if kind in ("integer", "number"):
        return _number(schema, random, whole=kind == "integer")
    simple: dict[Any, Callable[[], Any]] = {
        "string": lambda: random.choice(TEXTS)[: schema.get("maxLength")],
        "boolean": lambda: random.random() < 0.5,
        "null": lambda: None,
    }
    return simple.get(kind, lambda: random.choice(ODD_VALUES))()


def _object(document: dict[str, Any], schema: dict[str, Any], random: Random, depth: int) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    made = {}
    for name, inner in schema.get("properties", {}).items():
        # The model's name is never guessed: without it a request gets further.
        if name in required or (name != "model" and random.random() < 0.2):
            made[name] = sample(document, inner, random, depth + 1)
    more = schema.get("additionalProperties")
    if isinstance(more, dict) and depth < MAX_DEPTH:
        made |= {str(random.randrange(600)): sample(document, more, random, depth + 1) for _ in range(2)}
    return made


def _number(schema: dict[str, Any], random: Random, *, whole: bool) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -10))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 2**31))
    if whole:
        some: int = random.choice((low, high, random.randint(low, min(high, low + 40))))
        return some
    return float(random.choice((low, high, low + (high - low) * random.random())))


def edited(value: Any, random: Random) -> Any:
    """Return a JSON value with one place changed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        name = random.choice(list(value))
        how = random.randrange(6)
        if how == 0:
            return {key: each for key, each in value.items() if key != name}
        if how == 1:
            return {**value, random.choice(TEXTS): random.choice(ODD_VALUES)}
        if how == 2:
            return {(name.upper() if key == name else key): each for key, each in value.items()}
        return {**value, name: edited(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        return [*value[:at], edited(value[at], random), *value[at + 1 :]]
    return random.choice((random.choice(ODD_VALUES), [value], {"content": value}, str(value)))


def to_bytes(value: Any, random: Random) -> bytes:
    """Return a value as JSON; now and then not in UTF-8, or with a key twice."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.7)
    if random.random() < 0.05:
        text = text.replace("{", '{"messages": [], ', 1)
    return text.encode(random.choice(("utf-8",) * 9 + ("utf-16",)), "surrogatepass")


def damaged(text: bytes, random: Random) -> bytes:
    """Return a body with some bytes changed, or something else altogether."""
    at = random.randrange(len(text) + 1)
    some = random.randbytes(random.choice((1, 2, 8, 300)))
    return random.choice(
        (
            text[:at],
            text[:at] + some + text[at:],
            text[:at] + some + text[at + len(some) :],
            text + text,
            some,
            b"[" * random.choice((3, 200, 100_000)),
            b'{"a":' * random.choice((3, 200, 100_000)),
            b"9" * 5000,
            b"\xef\xbb\xbf" + text,
            text.replace(b'"', b"'"),
            b"NaN",
            b'"' + b"\\u0000" * 2000 + b'"',
        )
    )


def broken_http(data: bytes, random: Random) -> bytes:
    """Return a request with its first line, its headers or its framing changed."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    method, path, version = first.split(b" ")
    length = b"Content-Length: %d" % len(body)
    plain = [line for line in headers if not line.startswith(b"Content-Length")]
    odd_headers = (
        [*headers, length],
        [*plain, b"Content-Length: -1"],
        [*plain, b"Content-Length: 0x10"],
        [*plain, b"Content-Length: 99999999999999999999"],
        [*plain, b"Content-Length: 5000000"],
        [*plain, b"Transfer-Encoding: chunked"],
        [*headers, b"Transfer-Encoding: gzip, chunked"],
        [*headers, b"Expect: 100-continue"],
        [*headers, b"Content-Encoding: gzip"],
        [*headers, b"Upgrade: websocket", b"Connection: upgrade"],
        [*headers, b"Host: localhost"],
        [*headers, b"X: " + random.randbytes(20)],
        [*headers, b"X: " + b"a" * 70_000],
        [b"Host: " + random.choice(ODD_HOSTS), *headers[1:]],
        headers[1:],
        [line.replace(b"application/json", b"text/plain") for line in headers],
        [b" folded", *headers],
    )
    words = [method, path, version]
    place, some = random.choice(((0, ODD_METHODS), (1, ODD_PATHS), (1, ODD_TAILS), (2, ODD_VERSIONS)))
    odd = random.choice(some)
    words[place] = path + odd if some is ODD_TAILS else odd
    if random.random() < 0.5:
        headers = random.choice(odd_headers)
    else:
        first = random.choice((b" ".join(words),) * 4 + (random.randbytes(30),))
    changed = b"\r\n".join([first, *headers]) + random.choice((b"\r\n\r\n", b"\r\n\r\n", b"\n\n")) + body
    return random.choice((changed, changed, changed, changed + data, changed[: len(changed) // 2]))
