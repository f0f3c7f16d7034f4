"""Continue a text, printing it as it comes."""

import codegen2

model = codegen2.load()  # the model in the box; codegen2.load("1B") fetches a released one
prompt = "try:\n    import numpy as np\nexcept "

print(prompt, end="")
for chunk in model.stream_complete(prompt, max_new_tokens=40, stop="\n\n"):
    print(chunk.text, end="", flush=True)
    if chunk.result:
        print(f"\n# ended by: {chunk.finish_reason}, {len(chunk.result.tokens)} tokens")
