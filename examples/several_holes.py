"""Fill all holes of examples/inventory.py in one pass, each with sight of the others."""

from pathlib import Path

import codegen2
from codegen2 import HOLE

texts = Path(__file__).with_name("inventory.py").read_text("utf-8").split("<FILL>")
pieces = [texts[0]]
for text in texts[1:]:
    pieces += [HOLE, text]

model = codegen2.load()
answer = model.infill_spans(pieces, max_new_tokens=32)
for number, middle in enumerate(answer.choices, start=1):
    print(f"hole {number}: {middle.text!r} (ended by: {middle.finish_reason})")
