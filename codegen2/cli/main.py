"""The command line: arguments and errors; each program is imported only when it was chosen.

Not here: what the programs do (generate.py, manage.py, bench.py). Exit status: 0 done, 2 a user's error (one sentence
on standard error), 130 interrupted (143 by SIGTERM), 141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

from .._version import __version__
from ..files.arguments import Parser
from ..files.arguments import add_option as option
from ..generation.params import PARAMS

Commands: TypeAlias = "argparse._SubParsersAction[Any]"
_REVISION = "branch, tag or commit on the hub"
_NO_CHECK = "skip the self-check of the weights' QKV grouping"


def _add_which(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_argument_group("model")
    where = "a directory, a size such as 1B, or a hub name; default: the model in the box"
    option(group, "--model", str, "NAME_OR_DIR", where)
    option(group, "--adapter", str, "DIR", "merge in what finetune --lora or peft wrote for this model")
    option(group, "--revision", str, None, _REVISION)
    return group


def _add_model(parser: argparse.ArgumentParser, prompts: bool = True) -> None:
    """Add what chooses a model; prompts: and how much of a prompt it is shown, for commands that have one."""
    group = _add_which(parser)
    what = "what computes: compiled for the CPU, or PyTorch (default: native on a CPU)"
    option(group, "--engine", str, None, what, choices=["native", "reference"])
    what = "default: native int8; reference float32 on a CPU, else bfloat16"
    option(group, "--dtype", str, None, what, choices=["int8", "int4", "bfloat16", "float32", "float16"])
    _add_head_dtype(group)
    option(group, "--threads", int, "N", "cores to use (default: all that are allowed)")
    option(group, "--device", str, None, "cpu, cuda or mps", "cpu")
    group.add_argument("--no-check", action="store_true", help=_NO_CHECK)
    if prompts:
        option(group, "--max-prompt-tokens", int, "N", "show the model no more text than this, for speed")


def _add_head_dtype(group: Any) -> None:
    what = "of a native int4 model's head (default: int8)"
    option(group, "--head-dtype", str, None, what, choices=["int8", "int4"])


def _add_sampling(parser: argparse.ArgumentParser, without: str = "") -> None:
    group = parser.add_argument_group("generation")
    for name, entry in PARAMS.items():
        if name in ("top_logprobs", without):  # no command prints the former
            continue
        default = "" if entry["default"] is None else f" (default: {entry['default']})"
        option(group, "--" + name.replace("_", "-"), entry["kind"], "X", entry["help"] + default)
    option(group, "--stop", str, "TEXT", "end before this text; may be repeated", [], action="append")


def _add_json(parser: argparse.ArgumentParser, keys: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print one JSON object: {keys}")


def _add_complete(commands: Commands) -> None:
    about = "Continue a text from left to right."
    p = commands.add_parser("complete", help="continue a text", description=about)
    option(p, "file", str, "FILE", "the text before; - is standard input (default)", nargs="?")
    option(p, "--prompt", str, None, "the text before, instead of a file")
    p.add_argument("--echo", action="store_true", help="print the prompt too")
    _add_json(p, "model, choices [text, tokens, finish_reason], prompt_tokens, dropped_chars")
    _add_sampling(p, without="suggest_above")
    _add_model(p)


def _add_infill(commands: Commands) -> None:
    about = "Fill the holes of a file: at --at positions, or where it says <FILL>. Prints the filled file."
    p = commands.add_parser("infill", help="fill holes in a file", description=about)
    option(p, "file", str, "FILE", "- is standard input")
    option(p, "--at", str, "LINE:COL", "1-based, columns in characters; may be repeated", [], action="append")
    option(p, "--hole", str, "TEXT", "the text that marks a hole (default: <FILL>)")
    stop = "end after the line, or where the block closes (one hole)"
    option(p, "--stop-at", str, None, stop, choices=["line", "block"])
    add = p.add_argument
    add("--no-trim", action="store_true", help="keep what repeats the text after the hole")
    add("--write", action="store_true", help="change the file instead of printing it")
    add("--mark", action="store_true", help="mark the new text: in colour on a terminal, else by brackets")
    holes = "holes [text, raw, cuts, confidence, finish_reason, line, column]"
    _add_json(p, f"model, text, {holes}, prompt_tokens, dropped_prefix_chars, dropped_suffix_chars")
    _add_sampling(p)
    _add_model(p)


def _add_score(commands: Commands) -> None:
    about = "Say how well the model predicts files."
    p = commands.add_parser("score", help="bits per byte of files", description=about)
    option(p, "files", str, "FILE", "- is standard input", nargs="+")
    tokens = "with --json: each token's id and log-probability (nats) too"
    p.add_argument("--tokens", action="store_true", help=tokens)
    _add_json(p, "model, files [file, bits_per_byte, nats, bytes, tokens], bits_per_byte")
    _add_model(p, prompts=False)

    about = "Give the last hidden states of a text."
    p = commands.add_parser("embed", help="hidden states of a file", description=about)
    option(p, "file", str, "FILE", "- is standard input")
    option(p, "--pooling", str, None, "one vector instead of one a token", choices=["mean", "last"])
    option(p, "--out", str, "X.npy", "write a numpy file instead of printing JSON")
    _add_model(p, prompts=False)


def _add_convert(commands: Commands) -> None:
    about = "Convert a checkpoint, streaming."
    p = commands.add_parser("convert", help="write a checkpoint in another form", description=about)
    option(p, "source", str, "SRC", "a directory, a size or a hub name; box: the model in the box")
    option(p, "destination", str, "DST", "a directory that does not exist yet")
    forms = "our form, a repaired Hugging Face directory, GPT-J's names and order, or packed for the native engine"
    option(p, "--to", str, None, forms, required=True, choices=["codegen2", "hf", "gptj", "native"])
    kinds = "default: as stored; native has float32, bfloat16, int8 (default) and int4"
    option(p, "--dtype", str, None, kinds, choices=["float32", "bfloat16", "float16", "int8", "int4"])
    _add_head_dtype(p)
    texts = "texts like those to be read, by which native int4 is rounded better (small models: done unasked)"
    option(p, "--calibrate", str, "FILE", texts, nargs="+")
    p.add_argument("--overwrite", action="store_true", help="replace DST when it is done")
    option(p, "--revision", str, None, _REVISION)
    p.add_argument("--no-check", action="store_true", help=_NO_CHECK)


def _add_housekeeping(commands: Commands) -> None:
    about = "List the models, their memory, and which are here."
    p = commands.add_parser("models", help="the sizes there are", description=about)
    _add_json(p, "models [name, hub_name, parameters, float32_bytes, bfloat16_bytes, local]")

    about = (
        "List, verify or remove what codegen2 keeps. prune removes packed and merged models whose source is gone, and"
        " those that its options name; they are made again when they are asked for. Downloads go by rm alone."
    )
    p = commands.add_parser("cache", help="what is kept on this disk", description=about)
    p.add_argument("action", choices=["ls", "rm", "verify", "prune"])
    option(p, "names", str, "NAME", "what ls lists; rm takes all, too, and verify none for all", nargs="*")
    group = p.add_argument_group("prune")
    option(group, "--unused-days", float, "N", "remove what was not used for so long, too")
    option(group, "--max-gb", float, "X", "remove what was not used longest, until so much is left")
    group.add_argument("--dry-run", action="store_true", help="only list what would go")
    entry = "name, kind, path, bytes, source, last_used, of prune why"
    _add_json(p, f"entries [{entry}], of verify [name, damaged]")

    p = commands.add_parser("info", help="version, machine, model", description="Say what would run here.")
    keys = "version, python, platform, cores, memory_available_bytes, torch, engines, instruction_sets, model"
    _add_json(p, keys)
    _add_which(p)


def _add_bench(commands: Commands) -> None:
    about = "Measure the native engine against what this machine's memory allows, with synthetic weights."
    p = commands.add_parser("bench", help="how fast this machine is", description=about)
    option(p, "--preset", str, None, "nano, 1B, 3.7B, 7B or 16B", "1B")
    p.add_argument("--dtype", default="int8", choices=["int8", "int4", "bfloat16", "float32"])
    _add_head_dtype(p)
    option(p, "--threads", int, "N", "default: all cores that are allowed")
    option(p, "--repeats", int, "N", "medians of so many", 5)
    option(p, "--decode", int, "N", "tokens to write", 64)
    p.add_argument(
        "--no-prefill", action="store_true", help="leave out the reading of a prompt of 1,024 tokens"
    )
    rates = "decode_tok_s, prefill_tok_s, ttft_s, gb_s, limit_gb_s, fraction (of the limit)"
    _add_json(p, f"{rates}, peak_rss_gib, load_s, gb_a_token, and the single measurements")


def _add_lsp(commands: Commands) -> None:
    about = "Speak LSP 3.18 on standard input and output: inline completions, for editors to start."
    p = commands.add_parser("lsp", help="complete inside editors", description=about)
    server = "ask this server instead of running the model here; its key, if any, in CODEGEN2_API_KEY"
    option(p, "--server", str, "URL", server)
    option(p, "--max-new-tokens", int, None, "of an answer", 128)
    option(p, "--cache-gib", float, "X", "memory for what was read", 1.0)
    _add_model(p)


def build_parser(evaluation: bool = True) -> argparse.ArgumentParser:
    """Describe all subcommands; imports nothing but what says eval's arguments, which others need not wait for."""
    parser = Parser(prog="codegen2", description="Complete and infill code with CodeGen2.")
    parser.add_argument("--version", action="version", version=f"codegen2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_complete, _add_infill, _add_score, _add_convert, _add_housekeeping, _add_bench):
        add(commands)

    p = commands.add_parser("eval", help="how good a model is")
    if evaluation:
        from ..eval.cli import add_eval

        add_eval(p, _add_model)

    from ..data.cli import add_data
    from ..serve.cli import add_serve
    from ..train.cli import add_train

    add_data(commands)
    add_train(commands)
    about = "Answer editors in the protocols of OpenAI, Mistral, llama.cpp, Ollama and Tabby."
    add_serve(commands.add_parser("serve", help="answer editors over HTTP", description=about), _add_model)
    _add_lsp(commands)
    return parser


# Where the function run_COMMAND of each subcommand is.
_PROGRAMS = {
    "complete": "cli.generate", "infill": "cli.generate", "score": "cli.generate", "embed": "cli.generate",
    "convert": "cli.manage", "models": "cli.manage", "cache": "cli.manage", "info": "cli.manage",
    "bench": "cli.bench", "eval": "eval.cli", "data": "data.cli", "train": "train.cli", "finetune": "train.cli",
    "plot-run": "train.cli", "serve": "serve.run", "lsp": "lsp.server",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    evaluation = list(argv[:1]) == ["eval"]
    if evaluation:
        from ..eval.cli import with_default

        argv = with_default(argv)
    args = build_parser(evaluation).parse_args(argv or ["--help"])
    try:
        program = importlib.import_module(f"..{_PROGRAMS[args.command]}", __package__)
        status: int = getattr(program, f"run_{args.command.replace('-', '_')}")(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as e:
        print(": ".join(("codegen2: interrupted", *map(str, e.args))), file=sys.stderr)
        return 128 + int(getattr(e, "signum", signal.SIGINT))  # what a shell says of a program that it killed
    except BrokenPipeError:
        # The interpreter would flush once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as e:
        print(f"codegen2: {_sentence(e)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
