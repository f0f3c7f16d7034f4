"""lm-evaluation-harness: `local-completions` against codegen2 serve, and `hf` on the same weights, request by request.

    codegen2 convert box box-hf --to hf
    codegen2 serve --dtype float32 --port 8012 &
    python benchmarks/lm_eval_agreement.py box-hf [--server http://127.0.0.1:8012 ...] [--n 40]

Needs lm_eval[api], transformers 5 and PyTorch in the environment that runs it, codegen2 not. The requests are made by
hand, so that no data set is fetched: passages of Python's standard library, cut at random places with a fixed seed. Of
each kind it prints the largest difference of a request, nats, and how many greedy verdicts or texts differ. Exits with
1 where a difference is above --most, or a greedy verdict or a text differs.

`hf` computes in float64: in float32 its own log-softmax is off by 3e-3 in 560 nats. Texts end at <eom> on both sides,
which `hf` would write as letters.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
from pathlib import Path
from typing import Any

MODULES = (
    "json/decoder.py",
    "textwrap.py",
    "heapq.py",
    "bisect.py",
    "shlex.py",
    "fnmatch.py",
    "csv.py",
    "queue.py",
)
SEED = 14


def passages(n: int, shortest: int, longest: int) -> list[str]:
    """Return n passages of the standard library, so many characters long."""
    rng = random.Random(SEED)
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [(folder / module).read_text("utf-8") for module in MODULES]
    found = []
    for i in range(n):
        text, size = texts[i % len(texts)], rng.randint(shortest, longest)
        at = rng.randrange(len(text) - size)
        found.append(text[at : at + size])
    return found


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Return the harness's requests of one kind."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def requests(n: int) -> dict[str, list[Any]]:
    """Return n requests of each kind; one continuation in ten follows nothing."""
    pairs = []
    for i, text in enumerate(passages(n, 40, 800)):
        cut = 0 if i % 10 == 9 else len(text) * 3 // 4
        pairs.append((text[:cut], text[cut:]))
    options = {
        "until": ["\n\n", "\nclass ", "<eom>"],
        "max_gen_toks": 48,
        "do_sample": False,
        "temperature": 0,
    }
    return {
        "loglikelihood": instances("loglikelihood", pairs),
        "loglikelihood_rolling": instances(
            "loglikelihood_rolling", [(text,) for text in passages(n, 40, 800)]
        ),
        "generate_until": instances(
            "generate_until", [(text, dict(options)) for text in passages(n, 40, 800)]
        ),
    }


def answers(model: Any, n: int) -> dict[str, list[Any]]:
    """Return what a model of the harness answers, by kind."""
    return {kind: getattr(model, kind)(asked) for kind, asked in requests(n).items()}


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", help="what convert --to hf wrote")
    parser.add_argument("--server", nargs="+", default=["http://127.0.0.1:8012"])
    parser.add_argument("--n", type=int, default=40, help="requests of each kind (default: %(default)s)")
    parser.add_argument("--most", type=float, default=5e-3, help="nats a request (default: %(default)s)")
    args = parser.parse_args()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    theirs = HFLM(pretrained=args.directory, device="cpu", dtype="float64", batch_size=1)
    wanted = answers(theirs, args.n)
    failed = False
    for server in args.server:
        # The tokenizer is the server's too: tokenizer_backend is "auto".
        ours = LocalCompletionsAPI(
            base_url=f"{server}/v1/completions", model="codegen2", max_length=2048, batch_size=4
        )
        assert ours.tokenizer_backend == "remote", "the server's tokenizer was not found"
        got = answers(ours, args.n)
        for kind, expected in wanted.items():
            found = compared(kind, got[kind], expected)
            print(json.dumps({"server": server, "kind": kind, **found}), flush=True)
            failed |= found.pop("largest_difference", 0.0) > args.most or any(found.values())
    return int(failed)


def compared(kind: str, got: list[Any], expected: list[Any]) -> dict[str, Any]:
    """Return how far answers of one kind lie from those expected."""
    pairs = list(zip(got, expected, strict=True))
    if kind == "generate_until":
        return {"texts_that_differ": sum(a != b for a, b in pairs)}
    if kind == "loglikelihood_rolling":
        return {"largest_difference": max(abs(a - b) for a, b in pairs)}
    return {
        "largest_difference": max(abs(a[0] - b[0]) for a, b in pairs),
        "greedy_verdicts_that_differ": sum(a[1] != b[1] for a, b in pairs),
    }


if __name__ == "__main__":
    sys.exit(main())
