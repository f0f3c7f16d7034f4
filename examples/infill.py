"""Write what belongs between two texts, as an editor would ask for it at the cursor."""

import codegen2

model = codegen2.load()
prefix = """\
def count_words(text):
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    """
suffix = "\n\n\nprint(count_words(open('README.md').read()))\n"

answer = model.infill(prefix, suffix, stop_at="line", max_new_tokens=32)
print(prefix + answer.text + suffix)
sure = answer.choices[0].confidence  # None of a model whose config says nothing of it
print(f"# likely right: {sure and round(sure, 2)}")
print(f"# the model wrote {answer.raw!r}, ended by: {answer.finish_reason}")
for cut in answer.choices[0].cuts:
    print(f"# cut: {cut}")

# Several tries, the likeliest first: judged by how well the suffix follows.
best = model.infill(
    prefix, suffix, stop_at="line", max_new_tokens=32, temperature=0.8, seed=1, best_of=4, n=2
)
for number, choice in enumerate(best.choices, start=1):
    print(f"# try {number}: {choice.text!r}, log-probability {choice.logprob:.1f}")
