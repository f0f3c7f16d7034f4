"""The arguments of `codegen2 eval` and which program each of its subcommands is; imports nothing heavy.

Not here: what they do (problems.py, repo.py, judge.py, bpb.py, compare.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from .bpb import add_bpb_arguments
from .compare import add_compare_arguments
from .judge import add_judge_arguments

SETS = {
    "humaneval": "HumanEval: 164 functions to write",
    "single-line": "HumanEval-Infill: 1,033 lines to fill in",
    "multi-line": "HumanEval-Infill: 5,815 spans of lines",
    "random-span": "HumanEval-Infill: 1,640 spans of characters",
}
OWN = "problems"
_DESCRIPTION = """\
Pose problems to a model, judge its answers in a sandbox, and say how sure the scores are. For problems of your own:
codegen2 eval --data FILE."""


def with_default(argv: Sequence[str]) -> list[str]:
    """Put in the subcommand that `eval --data FILE` leaves out.

    >>> with_default(["eval", "--data", "x.jsonl"]), with_default(["eval", "repo", "."])
    (['eval', 'problems', '--data', 'x.jsonl'], ['eval', 'repo', '.'])
    """
    given = list(argv)
    if given[:1] == ["eval"] and given[1:] and given[1].startswith("--") and given[1] != "--help":
        given.insert(1, OWN)
    return given


def add_eval(parser: argparse.ArgumentParser, add_model: Callable[..., None]) -> None:
    """Add eval's subcommands to its parser; add_model adds the arguments that choose one of our models."""
    parser.description = _DESCRIPTION
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, text in (*SETS.items(), (OWN, "your own, by --data FILE; the word may be left out")):
        p = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == OWN:
            p.add_argument(
                "--data", required=True, metavar="FILE",
                help="JSON lines (or .gz) with the keys of HumanEval, HumanEval-Infill or MBPP",
            )  # fmt: skip
        p.add_argument("--k", default="1", metavar="K,K", help="pass@k for these k (default: %(default)s)")
        p.add_argument(
            "--limit", type=int, metavar="M", help="only M problems, chosen at random, always the same"
        )
        p.add_argument(
            "--stop-at", choices=["line", "block", "none"],
            help="what an editor asks for, for `shown` (default: humaneval block, single-line line, else none)",
        )  # fmt: skip
        p.add_argument(
            "--published-semantics", action="store_true",
            help="judge also as the published harness does, and count where the two differ",
        )  # fmt: skip
        _add_answers(p)
        _add_judging(p)
        _add_output(p)
        _add_peers(p)
        add_model(p)
    p = kinds.add_parser(
        "repo", help="holes in your own repository", description="Fill holes in a repository."
    )
    _add_repo(p)
    _add_answers(p)
    _add_output(p)
    _add_peers(p)
    add_model(p)
    p = kinds.add_parser("judge", help="judge samples that are there", description="Judge existing samples.")
    add_judge_arguments(p)
    p = kinds.add_parser("bpb", help="bits per byte, by language", description="Bits per byte of files.")
    add_bpb_arguments(p)
    add_model(p, prompts=False)
    p = kinds.add_parser(
        "compare", help="two runs, paired", description="Compare two runs problem by problem."
    )
    add_compare_arguments(p)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    add = group.add_argument
    add("--n", type=int, default=1, metavar="N", help="answers to each problem (default: %(default)s)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="0 is greedy (default); the paper: 0.2, 0.6, 0.8",
    )
    add("--top-p", type=float, default=1.0, metavar="X", help="the paper: 0.95 (default: %(default)s)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="budget (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of all random choices (default: %(default)s)")
    add("--no-baselines", action="store_true", help="leave out the empty middle and the previous line")


def _add_judging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judging")
    add = group.add_argument
    add("--allow-code-execution", action="store_true", help="run what the model wrote, in the sandbox")
    add("--no-judge", action="store_true", help="run nothing: answers, likeness and times only")
    add("--sandbox", choices=["strong", "weak"], default="strong", help="weak: where there are no namespaces")
    add("--timeout", type=float, metavar="S", help="CPU seconds of a program")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", metavar="DIR", help="keep the run here, and go on with it if it was interrupted")
    add("--html", metavar="FILE", help="write the report here, too")
    add("--json", action="store_true", help="print the result file instead of a table")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("another model than ours")
    add = group.add_argument
    add("--model-transformers", metavar="DIR", help="any causal model that transformers loads")
    add(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible server; /completions is added unless it is there",
    )
    add("--endpoint-model", metavar="NAME", help="the model's name there")
    add("--api-key-env", metavar="VAR", help="the environment variable that holds the key")
    add(
        "--endpoint-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="of a request (default: %(default)s)",
    )


def _add_repo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="a git checkout (its tracked files are used) or any folder")
    add(
        "--kind", choices=["line", "block", "argument"], default="line", help="of hole (default: %(default)s)"
    )
    add("--holes", type=int, default=200, metavar="N", help="how many (default: %(default)s)")
    add("--language", action="append", metavar="NAME", help="only files of this language; may be repeated")
    add("--per-file", type=int, default=5, metavar="N", help="holes of a file at most (default: %(default)s)")
    group = parser.add_argument_group("the repository's tests")
    add = group.add_argument
    add(
        "--test-command",
        metavar="CMD",
        help="run this in a copy for each answer; it passes where CMD succeeds",
    )
    add("--test-timeout", type=float, default=120.0, metavar="S", help="of one run (default: %(default)s)")
    add("--test-show", action="append", default=[], metavar="PATH", help="let the command read this, too")
    add("--allow-code-execution", action="store_true", help="run the command on what the model wrote")
    add("--sandbox", choices=["strong", "weak"], default="strong", help="weak: where there are no namespaces")


def run_eval(args: argparse.Namespace) -> int:
    """Run what was chosen and return the exit status."""
    if args.what == "judge":
        from .judge import run_judge

        return run_judge(args)
    if args.what == "bpb":
        from .bpb import run_bpb

        return run_bpb(args)
    if args.what == "compare":
        from .compare import run_compare

        return run_compare(args)
    from .run import run_suite

    if args.what == "repo":
        from .repo import repo_suite

        return run_suite(args, repo_suite(args))
    from .problems import problem_suite

    return run_suite(args, problem_suite(args))
