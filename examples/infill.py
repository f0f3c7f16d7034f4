"""Write what belongs between two texts, as an editor would ask for it at the cursor."""

import codegen2

model = codegen2.load()
prefix = "def mean(values):\n    total = sum(values)\n    "
suffix = "\n    return total / count\n"

answer = model.infill(prefix, suffix, stop_at="line", max_new_tokens=32)
print(prefix + answer.text + suffix)
print(f"# the model wrote {answer.raw!r}, ended by: {answer.finish_reason}")
for cut in answer.choices[0].cuts:
    print(f"# cut: {cut}")

# Several tries, the likeliest first: judged by how well the suffix follows.
best = model.infill(
    prefix, suffix, stop_at="line", max_new_tokens=32, temperature=0.8, seed=1, best_of=4, n=2
)
for number, choice in enumerate(best.choices, start=1):
    print(f"# try {number}: {choice.text!r}, log-probability {choice.logprob:.1f}")
