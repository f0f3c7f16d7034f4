"""Who answers problems: our own model, and peers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...api import Model
    from .base import Generator


def load_own(args: argparse.Namespace, threads: int | None) -> tuple[Model, dict[str, Any]]:
    """Load the model of ours that the arguments name, and describe on what it runs."""
    from ...loading import choose_engine, from_args

    model = from_args(argparse.Namespace(**{**vars(args), "threads": threads}))
    engine = choose_engine(args.engine, args.dtype, args.device)
    default = "int8" if engine == "native" else "float32" if args.device == "cpu" else "bfloat16"
    return model, {"engine": engine, "dtype": args.dtype or default, "device": args.device}


def from_args(args: argparse.Namespace, threads: int | None) -> Generator:
    """Return the generator that the arguments name. Raises ValueError where they name two."""
    from ...loading import OPTIONS

    given = [name for name in ("model", "model_transformers", "endpoint") if getattr(args, name)]
    if len(given) > 1:
        named = " and ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{named} name two models; give one, and compare runs by codegen2 eval compare")
    theirs = {"threads"} if args.endpoint else {"threads", "device", "dtype"}
    ours = [n for n in OPTIONS if n not in theirs and getattr(args, n, None) not in (None, "cpu")]
    if ours and (args.endpoint or args.model_transformers):
        raise ValueError(f"--{ours[0].replace('_', '-')} goes with a model of ours; give that by --model")
    if args.endpoint:
        from .endpoint import Endpoint

        return Endpoint(args.endpoint, args.endpoint_model, args.api_key_env, args.endpoint_timeout)
    if args.endpoint_model or args.api_key_env:
        raise ValueError("--endpoint-model and --api-key-env go with --endpoint URL; give that, too")
    if args.model_transformers:
        from .transformers_model import TransformersModel

        return TransformersModel(args.model_transformers, args.device, args.dtype, threads)
    from .own import OwnModel

    return OwnModel(*load_own(args, threads))
