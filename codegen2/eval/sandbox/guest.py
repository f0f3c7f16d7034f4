"""The candidate's side of a judgement: runs its program, answers calls with plain data, and the encoding of that data.

Runs as a program of its own in a fresh `python -I -S`, so it imports nothing of the package and next to nothing else.
Nothing here is trusted: the candidate may change all of it. What protects the verdict is that only bytes leave this
process, and that `decode`, on the other side, builds nothing but exact plain types from them.

A value is a tag and a body; lengths and counts are four bytes, big-endian. A frame is a length and one value.
"""

from __future__ import annotations

import builtins
import posix
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the real import costs a fresh interpreter as much as its whole start
    from typing import Any

MAX_DEPTH = 100
MAX_FRAME = 8 << 20  # bytes of one request or reply
_SEQUENCES: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_BUILDERS: dict[int, type] = {tag[0]: kind for kind, tag in _SEQUENCES.items()}


def encode(value: Any, max_bytes: int = MAX_FRAME) -> bytes:
    """Return the bytes of plain data: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset.

    Exact types only, since a subclass brings code. Raises TypeError naming another type, ValueError for too much.
    """
    out: list[bytes] = []
    _put(value, out, max_bytes, MAX_DEPTH)
    return b"".join(out)


def _put(value: Any, out: list[bytes], room: int, depth: int) -> int:
    if depth < 0:
        raise ValueError(f"a value nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool:
        head, body = (b"N" if value is None else b"T" if value else b"F"), b""
    elif kind in _SEQUENCES or kind is dict:
        items = list(value.items()) if kind is dict else list(value)
        room = _append(b"d" if kind is dict else _SEQUENCES[kind], b"", out, room, len(items))
        for item in items:
            if kind is dict:
                room = _put(item[0], out, room, depth - 1)
                item = item[1]
            room = _put(item, out, room, depth - 1)
        return room
    elif kind is int:
        size = value.bit_length() // 8 + 1
        if size > room:  # before a copy of that size is made
            raise ValueError("a value too large to send")
        head, body = b"i", value.to_bytes(size, "big", signed=True)
    elif kind is float:
        head, body = b"f", value.hex().encode()
    elif kind is complex:
        head, body = b"c", f"{value.real.hex()} {value.imag.hex()}".encode()
    elif kind is str:
        head, body = b"s", value.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        head, body = b"b", value
    else:
        raise TypeError(f"{kind.__name__} is not plain data")
    return _append(head, body, out, room, None if head in b"NTF" else len(body))


def _append(head: bytes, body: bytes, out: list[bytes], room: int, count: int | None) -> int:
    piece = head + (b"" if count is None else count.to_bytes(4, "big")) + body
    if len(piece) > room:
        raise ValueError("a value too large to send")
    out.append(piece)
    return room - len(piece)


def decode(data: bytes) -> Any:
    """Return the value of encoded bytes; the inverse of encode, for bytes from anybody. Raises ValueError.

    >>> decode(encode({"a": [1, -2.5, (None, True)], 3: {b"x"}}))
    {'a': [1, -2.5, (None, True)], 3: {b'x'}}
    """
    value, at = _take(data, 0, MAX_DEPTH)
    if at != len(data):
        raise ValueError("bytes after the value")
    return value


def _take(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth < 0 or at >= len(data):
        raise ValueError("a value cut short or nested too deep")
    tag, at = data[at], at + 1
    if tag in b"NTF":
        return (None if tag == 78 else tag == 84), at
    if tag not in b"ltSZdifcsb" or at + 4 > len(data):
        raise ValueError("no such value")
    count, at = int.from_bytes(data[at : at + 4], "big"), at + 4
    if count > len(data) - at:  # also for items: each takes a byte or more
        raise ValueError("a length beyond the end")
    if tag not in b"ltSZd":
        return _scalar(tag, data[at : at + count]), at + count
    items = []
    for _ in range(count * (2 if tag == 100 else 1)):
        item, at = _take(data, at, depth - 1)
        items.append(item)
    try:
        value = dict(zip(items[::2], items[1::2], strict=True)) if tag == 100 else _BUILDERS[tag](items)
    except TypeError:
        raise ValueError("a key or element that cannot be one") from None
    if len(value) != count:
        raise ValueError("a key or element twice")
    return value, at


def _scalar(tag: int, body: bytes) -> Any:
    if tag == 105:
        number = int.from_bytes(body, "big", signed=True)
        if len(body) != number.bit_length() // 8 + 1:
            raise ValueError("an integer of the wrong length")
        return number
    if tag == 115:
        return body.decode("utf-8", "surrogatepass")  # its error is a ValueError
    if tag == 98:
        return body
    parts = body.decode("ascii").split(" ")
    floats = [float.fromhex(part) for part in parts]
    if len(floats) != (2 if tag == 99 else 1) or [x.hex() for x in floats] != parts:
        raise ValueError("a float in another form")
    return complex(*floats) if tag == 99 else floats[0]


def read_frame(fd: int, max_bytes: int = MAX_FRAME) -> bytes | None:
    """Read one frame from a pipe; None at its end, also inside a frame. Raises ValueError for too long a frame."""
    head = _read(fd, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "big")
    if size > max_bytes:
        raise ValueError(f"a reply of {size} bytes; the limit is {max_bytes}")
    return _read(fd, size)


def _read(fd: int, size: int) -> bytes | None:
    pieces = []
    while size:
        piece = posix.read(fd, min(size, 1 << 16))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def write_frame(fd: int, data: bytes) -> None:
    """Write one frame to a pipe. Raises OSError when nobody reads it."""
    rest = memoryview(len(data).to_bytes(4, "big") + data)
    while rest:
        rest = rest[posix.write(fd, rest) :]


def describe_error(error: BaseException) -> tuple[str, str, str, str]:
    """Return ("raise", the nearest built-in exception's name, its own name, its text) of an exception."""
    # By identity: a class of a program without __name__ says that it is of the module builtins, or of none.
    kinds = [k.__name__ for k in type(error).__mro__ if getattr(builtins, k.__name__, None) is k]
    try:
        text = str(error)[:500]
    except BaseException:
        text = "(its text cannot be had)"
    return "raise", kinds[0], type(error).__name__, text


def serve(requests: int, replies: int) -> None:
    """Run the program of the first request, then answer calls to its names until nobody asks any more.

    Requests: ("load", program), then ("call", name, args, kwargs) each; or ("run", program) alone.
    Replies: ("ok", value), or what describe_error gives; ("unfit", why) for a value that is not plain.
    """
    first = read_frame(requests, 1 << 30)
    if first is None:
        return
    kind, program = decode(first)
    names: dict[str, Any] = {}  # as the published harness does: no __name__, so no `if __name__ == ...` runs
    try:
        # Without dont_inherit the future statement at the top of this file would hold in the program too.
        exec(compile(program, "<candidate>", "exec", dont_inherit=True), names)
        reply: tuple[Any, ...] = ("ok", None)
    except BaseException as e:  # SystemExit too: leaving is no answer
        reply = describe_error(e)
    write_frame(replies, encode(reply))
    while kind == "load" and (request := read_frame(requests)) is not None:
        _, name, args, kwargs = decode(request)
        write_frame(replies, _answer(names, name, args, kwargs))


def _answer(names: dict[str, Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        if name not in names:
            raise NameError(f"name {name!r} is not defined")
        value = names[name](*args, **kwargs)
    except BaseException as e:
        return encode(describe_error(e))
    try:
        return encode(("ok", value))
    except BaseException as e:
        return encode(("unfit", str(e)[:500]))


if __name__ == "__main__":
    serve(3, 4)
    posix._exit(0)
