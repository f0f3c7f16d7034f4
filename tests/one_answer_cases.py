"""Two hundred requests of every kind, on ordinary code in six languages, for tests that compare who answers them."""

from __future__ import annotations

import dataclasses

from codegen2.generation.params import SamplingParams
from codegen2.generation.request import Request
from codegen2.text.tokenizer import Tokenizer

# Cursors (§) stand in the middle of a line, behind half a word or a blank at a line's end, and on a blank line.
FILES = {
    "python": """\
import math


class Circle:
    def __init__(self, radius):
        self.radius = radius

    def area(self):
        return math.pi * §self.radius ** 2

    def grow(self, factor):
        self.rad§
        return self


def total(circles):
    result = 0
    for circle in circles:
        §
    return result
""",
    "c++": """\
#include <vector>

int sum(const std::vector<int>& values) {
  int total = 0;
  for (int value : §values) {
    total += va§
  }
  §
}
""",
    "go": """\
package stack

type Stack struct {
\titems []int
}

func (s *Stack) Push(item int) {
\ts.items = append(s.items, §item)
}

func (s *Stack) Len() int {
\treturn §
}

func (s *Stack) Empty() bool {
\t§
}
""",
    "javascript": """\
export function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(§item);
    if (!groups.has(name)) groups.s§
    §
  }
  return groups;
}
""",
    "rust": """\
pub fn clamp(value: i32, low: i32, high: i32) -> i32 {
    if value < low {
        return §low;
    }
    if value > hi§
        return high;
    }
    §
}
""",
    "ruby": """\
class Queue
  def initialize
    @items = []
  end

  def push(item)
    @items.push(§item)
    self
  end

  def size
    @items.§
  end

  def empty?
    §
  end
end
""",
}
TOKENIZER = Tokenizer()
N_NEW = 6  # tokens of an answer: enough to end in many ways, few enough to ask a thousand times
GREEDY = SamplingParams(max_new_tokens=N_NEW)
DRAWN = dataclasses.replace(GREEDY, temperature=0.8, top_p=0.95, seed=7)


def around(text: str, number: int) -> tuple[str, str]:
    """Return the text before and after a cursor."""
    pieces = text.split("§")
    return "".join(pieces[: number + 1]), "".join(pieces[number + 1 :])


def cases() -> list[tuple[str, Request]]:
    """Return 200 requests with their names."""
    made: list[tuple[str, Request]] = []
    for language, text in FILES.items():
        for number in range(3):
            prefix, suffix = around(text, number)
            hole = Request(prefix, suffix, params=GREEDY, stop_at="block", language=language)
            crlf, cr = (
                dataclasses.replace(hole, prefix=prefix.replace("\n", end), suffix=suffix.replace("\n", end))
                for end in ("\r\n", "\r")
            )
            kinds = {
                "plain": Request(prefix, params=GREEDY, language=language),
                "block": hole,
                "line": dataclasses.replace(hole, stop_at="line"),
                "crlf": crlf if number else dataclasses.replace(crlf, suffix=None),
                "cr": cr if number else dataclasses.replace(cr, suffix=None),
                "bom": dataclasses.replace(hole, prefix="\ufeff" + prefix),
                "stop": Request(prefix, params=dataclasses.replace(GREEDY, stop=("\n", ")", "e"))),
                "n": dataclasses.replace(hole, params=dataclasses.replace(DRAWN, n=2)),
                "best_of": dataclasses.replace(
                    hole, suffix=suffix if number else None, params=dataclasses.replace(DRAWN, best_of=2)
                ),
                "raw": dataclasses.replace(hole, raw=True),
                "tokens": Request(tokens=tuple(TOKENIZER.encode(prefix)), params=GREEDY),
            }
            sessions = [dataclasses.replace(r, session=f"{language} {number} {k}") for k, r in kinds.items()]
            made += [(f"{language} {number} {k}", r) for k, r in zip(kinds, sessions, strict=True)]
    first, second, last = (
        FILES["python"].split("§")[0],
        FILES["go"].split("§")[0],
        FILES["rust"].split("§")[-1],
    )
    return [
        *made,
        ("empty file", Request("", "", params=GREEDY, stop_at="block")),
        ("two holes", Request(first, last, (second,), params=GREEDY)),
    ]
