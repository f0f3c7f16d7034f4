"""A peer under the same problems: any causal model of a directory, by transformers.

Not here: our own model (own.py), servers (endpoint.py). It answers one at a time, each answer with its own seed.
A checkpoint of CodeGen2 is asked as infill.py says; how other families ask for a hole is as their model cards give it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import EOT
from ...text.infill import EOM, PROMPT_OVERHEAD, build_prompt, mask
from .base import COMPLETION_STOPS, Answer, Decoding, Task, finished, seed_of


@dataclass(frozen=True)
class Format:
    """Name the tokens of a way to ask for a hole: begin prefix hole suffix end; stops end the answer."""

    begin: str
    hole: str
    end: str
    stops: tuple[str, ...]


# DeepSeek coder's have a bar and a blank that are not ASCII.
_DEEPSEEK = "<\uff5c{}\uff5c>"
FORMATS = (
    Format("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
           ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")),  # Qwen coder
    Format("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>")),  # StarCoder
    Format("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>",)),  # SantaCoder
    Format(_DEEPSEEK.format("fim\u2581begin"), _DEEPSEEK.format("fim\u2581hole"), _DEEPSEEK.format("fim\u2581end"),
           (_DEEPSEEK.format("end\u2581of\u2581sentence"),)),
    Format("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",)),  # Code Llama
)  # fmt: skip
Lookup = Callable[[str], int | None]


def choose_format(id_of: Lookup) -> tuple[Format, dict[str, int]] | None:
    """Return the first format of which all tokens but the stops are in a vocabulary, and the ids of those that are.

    >>> words = {"<fim_prefix>": 1, "<fim_suffix>": 2, "<fim_middle>": 3, "<|endoftext|>": 0}
    >>> choose_format(words.get)[1]
    {'<fim_prefix>': 1, '<fim_suffix>': 2, '<fim_middle>': 3, '<|endoftext|>': 0}
    """
    for form in FORMATS:
        needed = (form.begin, form.hole, form.end)
        ids = {token: id_of(token) for token in (*needed, *form.stops)}
        if all(ids[token] is not None for token in needed):
            return form, {token: i for token, i in ids.items() if i is not None}
    return None


def cut_ids(before: Sequence[int], after: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """Keep what is next to the hole, two thirds of the room before it unless the other side needs less.

    >>> cut_ids(range(10), range(10, 20), 6)
    ([6, 7, 8, 9], [10, 11])
    >>> cut_ids(range(10), [10], 6)
    ([5, 6, 7, 8, 9], [10])
    """
    share = max(room * 2 // 3, room - len(after))
    kept = list(before)[max(0, len(before) - share) :]
    return kept, list(after)[: room - len(kept)]


class TransformersModel:
    """Answer with a causal model of a directory, by transformers; its own code is never run."""

    def __init__(
        self, directory: str, device: str = "cpu", dtype: str | None = None, threads: int | None = None
    ) -> None:
        """Raises ValueError where transformers is missing, or the directory is no model that it can load."""
        try:
            import torch
            import transformers
        except ModuleNotFoundError as e:
            raise ValueError(
                f"--model-transformers needs {e.name}; install it: pip install 'codegen2[train]' transformers"
            ) from e
        if not Path(directory).is_dir():
            raise ValueError(f"--model-transformers {directory}: no such directory; download the model first")
        kinds = ("float32", "bfloat16", "float16")
        if dtype not in (None, *kinds):
            raise ValueError(
                f"dtype {dtype!r} is not for a transformers model; choose one of {', '.join(kinds)}"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch = torch
        self._dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        quiet: Any = transformers.utils.logging
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
        auto: Any = transformers.AutoModelForCausalLM
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            self._network = auto.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, dtype=getattr(torch, self._dtype)
            )
        except (OSError, ValueError, KeyError, ImportError) as e:
            raise ValueError(
                f"{directory}: transformers cannot load it as a causal model: {' '.join(str(e).split())[:200]}"
            ) from e
        self._network = self._network.to(device).eval()
        self._device = device
        self._name = Path(directory).resolve().name
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self._ours = vocabulary.get("<mask_1>") == mask(1)
        self._form = choose_format(vocabulary.get)
        config = self._network.config
        self._context: Any = getattr(config, "max_position_embeddings", None) or getattr(
            config, "n_positions", 2048
        )
        self._ends = _whole(config.eos_token_id) + _whole(
            getattr(self._network.generation_config, "eos_token_id", None)
        )
        self._fingerprint = self._measure()

    def _measure(self) -> str:
        ids = self._torch.tensor([self._encode("def add(a, b):\n    return a + b\n")], device=self._device)
        with self._torch.no_grad():
            logits = self._network(ids).logits[0, -1].float().cpu().numpy()
        return hashlib.sha256(logits.tobytes()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return which model, and in which form it is asked for holes."""
        return {
            "kind": "transformers",
            "name": self._name,
            "parameters": sum(p.numel() for p in self._network.parameters()),
            "context": self._context,
            "dtype": self._dtype,
            "device": self._device,
            "infill": "codegen2" if self._ours else self._form and self._form[0].hole,
            "fingerprint": self._fingerprint,
        }

    def answer(self, task: Task, numbers: range, how: Decoding) -> list[Answer]:
        """Generate each answer by itself. Raises ValueError for a hole where the model knows no infilling."""
        return [self._one(task, seed_of(how.seed, task.task_id, i), how) for i in numbers]

    def _encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _prompt(self, task: Task, room: int) -> tuple[list[int], list[int]]:
        """Return the prompt's ids and those that end the answer."""
        if task.suffix is None:
            ids = self._encode(task.prompt, special=True)
            return ids[max(0, len(ids) - room) :] or self._ends[:1], self._ends
        before, after = self._encode(task.prompt), self._encode(task.suffix)
        if self._ours:
            return build_prompt(cut_ids(before, after, room - PROMPT_OVERHEAD)), [EOM, EOT]
        if self._form is None:
            raise ValueError(
                f"{self._name}: its tokenizer has no infilling tokens that are known; pose completion problems to it"
            )
        form, ids_of = self._form
        start = [ids_of[form.begin]]
        document = getattr(self._tokenizer, "bos_token_id", None)
        if document is not None and self._encode("", special=True)[:1] == [
            document
        ]:  # where it does so by itself
            start = [document, *start]
        before, after = cut_ids(before, after, room - len(start) - 2)
        stops = [ids_of[token] for token in form.stops if token in ids_of]
        return [*start, *before, ids_of[form.hole], *after, ids_of[form.end]], [*stops, *self._ends]

    def _one(self, task: Task, seed: int, how: Decoding) -> Answer:
        torch = self._torch
        room = self._context - how.max_new_tokens
        if room < 32:
            raise ValueError(
                f"max_new_tokens {how.max_new_tokens} leave {max(room, 0)} tokens of the context of {self._context};"
                f" ask for at most {self._context - 32}"
            )
        started = time.perf_counter()
        prompt, ends = self._prompt(task, room)
        torch.manual_seed(seed)
        choosing: dict[str, Any] = {"do_sample": False}
        if how.temperature > 0:  # top_k: else generate takes 50 by itself
            choosing = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
        if task.suffix is None:
            choosing |= {"stop_strings": list(COMPLETION_STOPS), "tokenizer": self._tokenizer}
        ids = torch.tensor([prompt], device=self._device)
        with torch.no_grad():
            out = self._network.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=how.max_new_tokens, eos_token_id=ends or None,
                pad_token_id=(ends or [0])[0], **choosing,
            )  # fmt: skip
        new: list[int] = out[0, len(prompt) :].tolist()
        took = time.perf_counter() - started
        cut = next((i for i, token in enumerate(new) if token in ends), None)
        reason = "stop" if cut is not None or len(new) < how.max_new_tokens else "length"
        return finished(task, self._decode(prompt, new[:cut]), reason, len(new[:cut]), took, how)

    def _decode(self, prompt: list[int], new: list[int]) -> str:
        """Return the text of new tokens; read behind the prompt's last ones, as some decoders eat a first blank."""

        def text_of(ids: list[int]) -> str:
            text: str = self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return text

        head = text_of(prompt[-4:])
        both = text_of(prompt[-4:] + new)
        return both[len(head) :] if both.startswith(head) else text_of(new)


def _whole(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
