"""Write a GGUF of random weights in a CodeGen2 shape, for timing llama.cpp: pip install gguf, then

    python benchmarks/gguf_shape.py 1B q4_0 phi2-1B-q4_0.gguf [--tokenizer]

--tokenizer: with CodeGen2's vocabulary and three of its control tokens for llama-server's /infill. The preset `box` has
the shape of the model in the box.
llama.cpp knows no CodeGen; its phi2 has the same parallel block and matrices (and biases more). One random block
pattern is repeated, as speed does not depend on the values.
"""

from __future__ import annotations

import argparse
import json

import gguf
import numpy as np

from codegen2.box import box_dir
from codegen2.config import PRESETS, ModelConfig
from codegen2.text.tokenizer import Tokenizer, _load_merges

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
SCALES = {"q4_0": 3e-3, "q8_0": 2e-4}


def add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Write CodeGen2's vocabulary as llama.cpp reads GPT-2's."""
    tokenizer = Tokenizer()
    texts = {i: text for text, i in [*tokenizer._vocab.items(), *tokenizer.control.items()]}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(i, f"<unused {i}>") for i in range(vocab_size)])
    writer.add_token_types(
        [kinds.NORMAL if i in texts and i < 50_256 else kinds.CONTROL for i in range(vocab_size)]
    )
    writer.add_token_merges([" ".join(pair) for pair in _load_merges()])
    writer.add_eos_token_id(50_256)
    mask, sep = tokenizer.control["<mask_1>"], tokenizer.control["<sep>"]
    for key, token in ("fim_pre", tokenizer.control["<mask_2>"]), ("fim_suf", mask), ("fim_mid", sep):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("preset", choices=[*PRESETS, "box"])
    parser.add_argument("type", choices=list(TYPES))
    parser.add_argument("out")
    parser.add_argument("--tokenizer", action="store_true")
    args = parser.parse_args()
    kind = TYPES[args.type]
    if args.preset == "box":
        config = ModelConfig.from_dict(json.loads((box_dir() / "config.json").read_text("utf-8")))
    else:
        config = PRESETS[args.preset]
    C = config.n_embd
    writer = gguf.GGUFWriter(args.out, "phi2")
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(4 * C)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_vocab_size(config.vocab_size)
    if args.tokenizer:
        add_tokenizer(writer, config.vocab_size)
    else:
        writer.add_tokenizer_model("none")
    values, size = gguf.GGML_QUANT_SIZES[kind]
    block = np.random.default_rng(0).integers(0, 256, (1 << 16, size), dtype=np.uint8)
    block[:, :2] = np.array([SCALES[args.type]], np.float16).view(np.uint8)
    pattern = block.reshape(-1)
    shared: dict[tuple[int, int], np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        data = shared.setdefault((rows, columns), np.resize(pattern, (rows, columns // values * size)))
        writer.add_tensor(name, data, raw_dtype=kind)

    def vector(name: str, n: int, value: float = 0.0) -> None:
        writer.add_tensor(name, np.full(n, value, np.float32))

    matrix("token_embd.weight", config.vocab_size, C)
    vector("output_norm.weight", C, 1.0)
    vector("output_norm.bias", C)
    matrix("output.weight", config.vocab_size, C)
    vector("output.bias", config.vocab_size)
    for i in range(config.n_layer):
        at = f"blk.{i}."
        vector(at + "attn_norm.weight", C, 1.0)
        vector(at + "attn_norm.bias", C)
        for name, rows, columns in (
            ("attn_qkv", 3 * C, C), ("attn_output", C, C), ("ffn_up", 4 * C, C), ("ffn_down", C, 4 * C),
        ):  # fmt: skip
            matrix(f"{at}{name}.weight", rows, columns)
            vector(f"{at}{name}.bias", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
