"""Random damage to plain data, for tests that nothing a user writes ends in a traceback."""

import copy
import datetime
import random
from collections.abc import Callable, Mapping
from typing import Any

from evomerge.errors import EvomergeError

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**40, 10**400, -0.0, 0.5, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), "", " ", "0.5", "1e-5", "*", "ties", "linear", "a\0b", "x" * 3000,
    "~nobody", "org/model@", "+", "@", "\ud800", [], {}, [[]], [None], [0, 1], [0.5, 0.1, 0.9],
    [True, False], ["0.5"], {"value": 0.5}, [{"value": 0.5}], {"filter": None, "value": 1},
    [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], {1: 2}, {None: None},
    {"range": [0, 1]}, {"range": [1, 0]}, {"range": [0, float("inf")]}, {"range": [0, 10**400]},
    {"range": [-1e308, 1e308]}, {"range": [0, 1], "step": 1e-300}, {"range": "01"},
    {"range": [1, 2], "log": True}, {"range": [0, 1], "log": 1}, {"range": [0, 1], "init": "x"},
    {"curve": 4}, {"curve": 10**9, "range": [0, 1]}, {"curve": "layers", "range": [0, 1]},
    {"curve": 2, "over": ["attention", "other"], "range": [0, 1]}, {"curve": True, "over": 3},
    {"choice": [1, 2]}, {"choice": [True, False]}, {"choice": [[], {}]}, {"choice": [1, True]},
    {"product": [1, 2]}, {"product": ["depth", {"range": [0, 1]}]}, {"product": [[1], [2]]},
    {"product": [{"product": [1, 2]}, 3]}, "depth", "own", "inputs[0]", "inputs[-99999999]",
    datetime.date(2024, 1, 2), b"bytes", (1, 2), {1, 2}, frozenset(),
)  # fmt: skip


def refusal(action: Callable[[], object]) -> str | None:
    """Do something; return what it says to the user if it refuses."""
    try:
        action()
    except EvomergeError as problem:
        return str(problem)
    return None


def mutated(data: Mapping[str, Any], draw: random.Random) -> Any:
    """Return a copy with one to three places replaced, removed, doubled, renamed or nested."""
    found: Any = copy.deepcopy(dict(data))
    containers = _containers(found)  # before any damage, which may make them contain themselves
    for _ in range(draw.randint(1, 3)):
        _damage(draw.choice(containers), draw)
    return found if draw.random() > 0.02 else copy.deepcopy(draw.choice(ODD))


def _containers(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return [data] + [one for value in data.values() for one in _containers(value)]
    if isinstance(data, list):
        return [data] + [one for value in data for one in _containers(value)]
    return []


def _damage(container: Any, draw: random.Random) -> None:
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    odd = copy.deepcopy(draw.choice(ODD))
    if not keys:
        if isinstance(container, dict):
            container["key"] = odd
        else:
            container.append(odd)
        return
    key = draw.choice(keys)
    action = draw.choice(["replace", "replace", "replace", "remove", "rename", "nest", "itself"])
    if action == "replace":
        container[key] = odd
    elif action == "remove":
        del container[key]
    elif action == "nest":
        container[key] = draw.choice([[container[key]], {"value": container[key]}])
    elif action == "itself":
        container[key] = draw.choice([container, [container], {"product": [container, 1]}])
    elif isinstance(container, dict):
        other = draw.choice([f"{key}s", str(key)[1:], "model", 7, None, ("a",)])
        container[other] = container.pop(key)
    else:
        container.append(container[key])


def varied(data: Mapping[str, Any], draw: random.Random, others: Mapping[Any, Any]) -> Any:
    """Return a copy with one to three of its values changed to other values of their kind.

    `others` has, for a value that stands for a kind (a name of a model, a dtype), the whole kind.
    """
    found: Any = copy.deepcopy(dict(data))
    places = [
        (container, key)
        for container in _containers(found)
        for key in (container if isinstance(container, dict) else range(len(container)))
        if not isinstance(container[key], (dict, list))
    ]
    for container, key in draw.sample(places, min(len(places), draw.randint(1, 3))):
        value = container[key]
        if isinstance(value, bool):
            container[key] = not value
        elif isinstance(value, int):
            container[key] = max(0, value + draw.choice([-1, 1]))
        elif isinstance(value, float):
            container[key] = draw.choice([0.0, 0.25, 0.5, 0.9, 1.0, value / 2, -value, 1.5])
        elif value in others:
            container[key] = draw.choice(others[value])
        else:
            container[key] = draw.choice(["layers.1", "self_attn", "*", "lm_head", "no such"])
    return found


def damaged_text(text: str, draw: random.Random) -> bytes:
    """Return a YAML document after one or two accidents: of editors, disks, encodings or malice."""
    content = text.encode()
    for _ in range(draw.choice([1, 1, 1, 2])):
        content = draw.choice(_ACCIDENTS)(content, draw)
    return content


def _cut(content: bytes, draw: random.Random) -> bytes:
    first, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return draw.choice([content[:end], content[first:], content[:first] + content[end:]])


def _flip(content: bytes, draw: random.Random) -> bytes:
    bits = bytearray(content or b" ")
    for _ in range(draw.choice([1, 1, 2, 8])):
        bits[draw.randrange(len(bits))] ^= 1 << draw.randrange(8)
    return bytes(bits)


def _lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    action = draw.choice(["swap", "repeat", "remove", "indent", "dedent", "comment", "blank"])
    if action == "swap":
        lines[one], lines[other] = lines[other], lines[one]
    elif action == "repeat":
        lines.insert(other, lines[one])
    elif action == "remove":
        del lines[one]
    elif action == "indent":
        lines[one] = draw.choice([b" ", b"  ", b"\t"]) + lines[one]
    elif action == "dedent":
        lines[one] = lines[one].removeprefix(b" ")
    else:
        lines.insert(one, {"comment": b"# a note", "blank": b""}[action])
    return b"\n".join(lines)


def _insert(content: bytes, draw: random.Random) -> bytes:
    """Put something of YAML's, or of no text at all, somewhere, mostly before a value."""
    values = [at + 2 for at in range(len(content)) if content[at : at + 2] in (b": ", b"- ")]
    at = draw.choice([*values, draw.randrange(len(content) + 1)])
    return content[:at] + draw.choice(_INSERTED) + content[at:]


_INSERTED = (
    b"\xef\xbb\xbf", b"\0", b"\t", b"\r", b"\x7f", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"\xff",
    b"\xed\xa0\x80", "é".encode(), "é".encode("latin-1"), "\U0001f600".encode(), b"\x1b[31m",
    b"&a ", b"*a ", b"&a [*a] ", b"!!str ", b"!!int ", b"!!float ", b"!!bool ", b"!!null ",
    b"!!binary ", b"!!set ", b"!!omap ", b"!!timestamp ", b"!x ", b"!!python/tuple ",
    b"!!python/object/apply:os.system [\"touch executed\"]\n", b"!!python/name:os.system ",
    b"!!python/object/new:os.system [touch executed]\n", b"? ", b"| ", b"> ", b"<<: ", b"--- ",
    b"...\n", b"%YAML 3.0\n", b"@", b"`", b"'", b'"', b"[", b"{", b"}", b"]", b",", b"#", b" #",
    b".inf ", b"0x1F", b"1_0", b"19:20:30 ", b"2001-02-30 ", b"9" * 5000, b"[" * 3000,
    b"{a: " * 3000, b"- " * 3000, b"1e999 ", b"~ ", b"yes ", b"\n---\n", b"\\", b"x" * 70000,
)  # fmt: skip


def _encode(content: bytes, draw: random.Random) -> bytes:
    text = content.decode("utf-8", errors="replace")
    found = draw.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp037", "crlf", "cr"])
    if found in ("crlf", "cr"):
        return content.replace(b"\n", {"crlf": b"\r\n", "cr": b"\r"}[found])
    return text.encode(found, errors="replace")


def _expand(content: bytes, draw: random.Random) -> bytes:
    """Make a value one of a few lines that stand for millions."""
    opening, closing = draw.choice([(b"[", b"]"), (b"{<<: [", b"]}")])
    levels = [b"&l0 " + (b"[1, 1]" if closing == b"]" else b"{weight: 1}")]
    for level in range(1, 12):
        many = b", ".join([b"*l%d" % (level - 1)] * 9)
        levels.append(b"&l%d " % level + opening + many + closing)
    values = [at + 2 for at in range(len(content)) if content[at : at + 2] == b": "]
    at = draw.choice([*values, len(content)])
    end = content.find(b"\n", at) if b"\n" in content[at:] else len(content)
    return content[:at] + b"[%s]" % b", ".join(levels) + content[end:]


_ACCIDENTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut, _flip, _flip, _lines, _lines, _insert, _insert, _insert, _encode, _expand,
)  # fmt: skip
