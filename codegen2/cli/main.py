"""The command line: arguments and errors; each program is imported only when it was chosen.

Not here: what the programs do (commands.py, housekeeping.py). Exit status: 0 done, 2 a user's error (one sentence on
standard error), 130 interrupted, 141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ..generation.params import PARAMS


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        help="a directory, a size such as 1B, or a hub name; default: the model in the box",
    )
    group.add_argument(
        "--engine",
        choices=["native", "reference"],
        help="what computes: compiled for the CPU, or PyTorch (default: native on a CPU)",
    )
    group.add_argument(
        "--dtype",
        choices=["int8", "int4", "bfloat16", "float32", "float16"],
        help="default: native int8; reference float32 on a CPU, else bfloat16",
    )
    group.add_argument(
        "--head-dtype", choices=["int8", "int4"], help="of an int4 model's head (default: int8)"
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="cores to use (default: all that are allowed)"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument(
        "--no-check", action="store_true", help="skip the self-check of the weights' QKV grouping"
    )
    group.add_argument(
        "--max-prompt-tokens", type=int, metavar="N", help="show the model no more text than this, for speed"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    for name, entry in PARAMS.items():
        default = "" if entry["default"] is None else f" (default: {entry['default']})"
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=entry["kind"], help=entry["help"] + default, metavar="X")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )


def _add_json(parser: argparse.ArgumentParser, keys: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print one JSON object: {keys}")


def build_parser(evaluation: bool = True) -> argparse.ArgumentParser:
    """Describe all subcommands; imports nothing but what says eval's arguments, which others need not wait for."""
    parser = argparse.ArgumentParser(prog="codegen2", description="Complete and infill code with CodeGen2.")
    parser.add_argument("--version", action="version", version=f"codegen2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    p = commands.add_parser(
        "complete", help="continue a text", description="Continue a text from left to right."
    )
    p.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="the text before; - is standard input (default)"
    )
    p.add_argument("--prompt", help="the text before, instead of a file")
    p.add_argument("--echo", action="store_true", help="print the prompt too")
    _add_json(p, "model, choices [text, tokens, finish_reason], prompt_tokens, dropped_chars")
    _add_sampling(p)
    _add_model(p)

    p = commands.add_parser(
        "infill",
        help="fill holes in a file",
        description="Fill the holes of a file: at --at positions, or where it says <FILL>. Prints the filled file.",
    )
    p.add_argument("file", metavar="FILE", help="- is standard input")
    p.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="LINE:COL",
        help="1-based, columns in characters; may be repeated",
    )
    p.add_argument(
        "--hole", default="<FILL>", metavar="TEXT", help="the text that marks a hole (default: %(default)s)"
    )
    p.add_argument(
        "--stop-at",
        choices=["line", "block"],
        help="end after the line, or where the block closes (one hole)",
    )
    p.add_argument("--no-trim", action="store_true", help="keep what repeats the text after the hole")
    p.add_argument("--write", action="store_true", help="change the file instead of printing it")
    p.add_argument(
        "--mark", action="store_true", help="mark the new text: in colour on a terminal, else by brackets"
    )
    _add_json(
        p,
        "model, text, holes [text, raw, cuts, finish_reason, line, column], prompt_tokens, dropped_prefix_chars,"
        " dropped_suffix_chars",
    )
    _add_sampling(p)
    _add_model(p)

    p = commands.add_parser(
        "score", help="bits per byte of files", description="Say how well the model predicts files."
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="- is standard input")
    p.add_argument(
        "--tokens", action="store_true", help="with --json: each token's id and log-probability (nats) too"
    )
    _add_json(p, "model, files [file, bits_per_byte, nats, bytes, tokens], bits_per_byte")
    _add_model(p)

    p = commands.add_parser(
        "embed", help="hidden states of a file", description="Give the last hidden states of a text."
    )
    p.add_argument("file", metavar="FILE", help="- is standard input")
    p.add_argument("--pooling", choices=["mean", "last"], help="one vector instead of one a token")
    p.add_argument("--out", metavar="X.npy", help="write a numpy file instead of printing JSON")
    _add_model(p)

    p = commands.add_parser(
        "convert", help="write a checkpoint in another form", description="Convert a checkpoint, streaming."
    )
    p.add_argument(
        "source", metavar="SRC", help="a directory, a size or a hub name; box: the model in the box"
    )
    p.add_argument("destination", metavar="DST", help="a directory that does not exist yet")
    p.add_argument(
        "--to",
        required=True,
        choices=["codegen2", "hf", "gptj", "native"],
        help="our form, a repaired Hugging Face directory, GPT-J's names and order, or packed for the native engine",
    )
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8", "int4"],
        help="default: as stored; native has float32, bfloat16, int8 (default) and int4",
    )
    p.add_argument("--head-dtype", choices=["int8", "int4"], help="of lm_head in native int4 (default: int8)")
    p.add_argument(
        "--calibrate",
        nargs="+",
        metavar="FILE",
        help="texts like those to be read, by which native int4 is rounded better (small models: done unasked)",
    )
    p.add_argument("--revision", help="branch, tag or commit on the hub")
    p.add_argument("--overwrite", action="store_true", help="replace DST when it is done")
    p.add_argument("--no-check", action="store_true", help="skip the self-check of the QKV grouping")

    p = commands.add_parser(
        "models", help="the sizes there are", description="List the models, their memory, and which are here."
    )
    _add_json(p, "models [name, hub_name, parameters, float32_bytes, bfloat16_bytes, local]")

    p = commands.add_parser(
        "cache", help="what is kept on this disk", description="List or remove what codegen2 keeps."
    )
    p.add_argument("action", choices=["ls", "rm"])
    p.add_argument("names", nargs="*", metavar="NAME", help="with rm: what ls lists, or all")
    _add_json(p, "entries [name, kind, path, bytes]")

    p = commands.add_parser(
        "bench",
        help="how fast this machine is",
        description="Measure the native engine against what this machine's memory allows, with synthetic weights.",
    )
    p.add_argument("--preset", default="1B", help="nano, 1B, 3.7B, 7B or 16B (default: %(default)s)")
    p.add_argument("--dtype", default="int8", choices=["int8", "int4", "bfloat16", "float32"])
    p.add_argument("--head-dtype", choices=["int8", "int4"], help="of an int4 model's head (default: int8)")
    p.add_argument("--threads", type=int, metavar="N", help="default: all cores that are allowed")
    p.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="medians of so many (default: %(default)s)"
    )
    p.add_argument(
        "--decode", type=int, default=64, metavar="N", help="tokens to write (default: %(default)s)"
    )
    p.add_argument(
        "--no-prefill", action="store_true", help="leave out the reading of a prompt of 1,024 tokens"
    )
    _add_json(
        p,
        "decode_tok_s, prefill_tok_s, ttft_s, gb_s, limit_gb_s, fraction (of the limit), peak_rss_gib, load_s,"
        " gb_a_token, and the single measurements",
    )

    p = commands.add_parser("eval", help="how good a model is")
    if evaluation:
        from ..eval.cli import add_eval

        add_eval(p, _add_model)

    from ..data.cli import add_data
    from ..train.cli import add_train

    add_data(commands)
    add_train(commands)

    p = commands.add_parser(
        "serve",
        help="answer editors over HTTP",
        description="Answer editors in the protocols of OpenAI, Mistral, llama.cpp and Ollama.",
    )
    from ..serve.cli import add_serve

    add_serve(p, _add_model)

    p = commands.add_parser(
        "lsp",
        help="complete inside editors",
        description="Speak LSP 3.18 on standard input and output: inline completions, for editors to start.",
    )
    p.add_argument(
        "--server",
        metavar="URL",
        help="ask this server instead of running the model here; its key, if it wants one, in CODEGEN2_API_KEY",
    )
    p.add_argument(
        "--max-new-tokens", type=int, default=128, help="budget of an answer (default: %(default)s)"
    )
    p.add_argument(
        "--cache-gib",
        type=float,
        default=1.0,
        metavar="X",
        help="memory for what was read (default: %(default)s)",
    )
    _add_model(p)

    p = commands.add_parser("info", help="version, machine, model", description="Say what would run here.")
    _add_json(p, "version, python, platform, cores, memory_available_bytes, torch, engines, model {...}")
    _add_model(p)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    evaluation = list(argv[:1]) == ["eval"]
    if evaluation:
        from ..eval.cli import with_default

        argv = with_default(argv)
    args = build_parser(evaluation).parse_args(argv)
    try:
        if args.command in ("complete", "infill", "score", "embed"):
            from . import generate as programs
        elif args.command == "bench":
            from . import bench as programs  # type: ignore[no-redef]
        elif args.command == "eval":
            from ..eval import cli as programs  # type: ignore[no-redef]
        elif args.command == "data":
            from ..data import cli as programs  # type: ignore[no-redef]
        elif args.command in ("train", "finetune", "plot-run"):
            from ..train import cli as programs  # type: ignore[no-redef]
        elif args.command == "serve":
            from ..serve import run as programs  # type: ignore[no-redef]
        elif args.command == "lsp":
            from ..serve import lsp as programs  # type: ignore[no-redef]
        else:
            from . import manage as programs  # type: ignore[no-redef]
        status: int = getattr(programs, f"run_{args.command.replace('-', '_')}")(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("codegen2: interrupted", file=sys.stderr)
        return 130
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
