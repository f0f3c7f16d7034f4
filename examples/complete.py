"""Continue a text, printing it as it comes."""

import codegen2

model = codegen2.load()  # the model in the box; codegen2.load("1B") fetches a released one
prompt = 'def read_lines(path):\n    """Return the lines of a file."""\n'

print(prompt, end="")
for chunk in model.stream_complete(prompt, max_new_tokens=40):
    print(chunk.text, end="", flush=True)
    if chunk.result:
        print(f"\n# ended by: {chunk.finish_reason}, {len(chunk.result.tokens)} tokens")
