"""The arguments of `codegen2 eval` and which program each of its subcommands is; imports nothing heavy.

Not here: what they do (problems.py, repo.py, judge.py, bpb.py, compare.py).
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence

from ..problems.sets import SETS
from .sandbox.limits import Limits

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
            about = "JSON lines (or .gz) with the keys of HumanEval, HumanEval-Infill or MBPP"
            p.add_argument("--data", required=True, metavar="FILE", help=about)
        _add_set(p)
        _add_peers(p)
        add_model(p)
    p = kinds.add_parser(
        "repo", help="holes in your own repository", description="Fill holes in a repository."
    )
    _add_repo(p)
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


def _add_set(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--k", default="1", metavar="K,K", help="pass@k for these k (default: %(default)s)")
    add("--limit", type=int, metavar="M", help="only M problems, chosen at random, always the same")
    about = "what an editor asks for, for `shown` (default: humaneval block, single-line line, else none)"
    add("--stop-at", choices=["line", "block", "none"], help=about)
    _add_published(parser)
    _add_answers(parser)
    group = parser.add_argument_group("judging")
    _add_execution(group, "run what the model wrote, in the sandbox")
    group.add_argument(
        "--no-judge", action="store_true", help="run nothing: answers, likeness and times only"
    )
    group.add_argument("--timeout", type=float, metavar="S", help="CPU seconds of a program")
    _add_output(parser, "keep the run here, and go on with it if it was interrupted")


def _add_published(parser: argparse.ArgumentParser) -> None:
    about = "judge also as the published harness does, and count where the two differ"
    parser.add_argument("--published-semantics", action="store_true", help=about)


def _add_execution(group: argparse._ActionsContainer, about: str) -> None:
    group.add_argument("--allow-code-execution", action="store_true", help=about)
    about = "weak: where there are no namespaces"
    group.add_argument("--sandbox", choices=["strong", "weak"], default="strong", help=about)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answers").add_argument
    add("--n", type=int, default=1, metavar="N", help="answers to each problem (default: %(default)s)")
    about = "0 is greedy (default); the paper: 0.2, 0.6, 0.8"
    add("--temperature", type=float, default=0.0, metavar="X", help=about)
    add("--top-p", type=float, default=1.0, metavar="X", help="the paper: 0.95 (default: %(default)s)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="budget (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of all random choices (default: %(default)s)")
    add("--no-baselines", action="store_true", help="leave out the empty middle and the previous line")


def _add_output(parser: argparse.ArgumentParser, about: str) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="DIR", help=about)
    add("--html", metavar="FILE", help="write the report here, too")
    add("--json", action="store_true", help="print the result file instead of a table")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("another model than ours").add_argument
    add("--model-transformers", metavar="DIR", help="any causal model that transformers loads")
    about = "an OpenAI-compatible server; /completions is added unless it is there"
    add("--endpoint", metavar="URL", help=about)
    add("--endpoint-model", metavar="NAME", help="the model's name there")
    add("--api-key-env", metavar="VAR", help="the environment variable that holds the key")
    about = "of a request (default: %(default)s)"
    add("--endpoint-timeout", type=float, default=120.0, metavar="S", help=about)


def _add_repo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="a git checkout (its tracked files are used) or any folder")
    about = "of hole (default: %(default)s)"
    add("--kind", choices=["line", "block", "argument"], default="line", help=about)
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
    _add_execution(group, "run the command on what the model wrote")
    _add_answers(parser)
    _add_output(parser, "keep the run here, and go on with it if it was interrupted")


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `eval judge` takes."""
    add = parser.add_argument
    add("samples", metavar="SAMPLES.jsonl[.gz]", help='a line each: {"task_id": ..., "completion": ...}')
    about = f"the problems: JSON lines in HumanEval's form (or .gz), {', '.join(list(SETS)[:-1])} or {list(SETS)[-1]}"
    add("--data", required=True, metavar="FILE|SET", help=about)
    about = "seconds of CPU time of each sample (default: %(default)s)"
    add("--timeout", type=float, default=Limits().timeout_s, metavar="S", help=about)
    _add_execution(parser, "run the samples, in the sandbox")
    _add_published(parser)
    about = "samples judged at once (default: all cores that are allowed)"
    add("--workers", type=int, metavar="N", help=about)
    about = "print one JSON object: scores, problem_set, sandbox, samples [...]"
    add("--json", action="store_true", help=about)


def add_bpb_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `eval bpb` takes, without the model's arguments."""
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="files, and folders to look through")
    about = "at most N files of a language, chosen at random, always the same"
    add("--per-language", type=int, metavar="N", help=about)
    about = "skip larger files in folders (default: %(default)s)"
    add("--max-bytes", type=int, default=200_000, metavar="N", help=about)
    _add_output(parser, "write result.json and report.html here")


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `eval compare` takes."""
    add = parser.add_argument
    add("a", metavar="A", help="a result file, or the folder of a run: what is compared with")
    add("b", metavar="B", nargs="+", help="one or more others, each compared with A")
    add("--html", metavar="FILE", help="write a page, too")
    about = "print one JSON object: a, comparisons [b, problems, differences]"
    add("--json", action="store_true", help=about)


def run_eval(args: argparse.Namespace) -> int:
    """Run what was chosen and return the exit status."""
    if args.what in ("judge", "bpb", "compare"):
        module = importlib.import_module(f".{args.what}", __package__)
        status: int = getattr(module, f"run_{args.what}")(args)
        return status
    from .run import run_suite

    if args.what == "repo":
        from .repo import repo_suite

        return run_suite(args, repo_suite(args))
    from .problems import problem_suite

    return run_suite(args, problem_suite(args))
