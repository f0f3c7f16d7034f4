"""Write a GGUF of random weights in a CodeGen2 shape, for timing llama.cpp: pip install gguf, then

    python benchmarks/gguf_shape.py 1B q4_0 phi2-1B-q4_0.gguf

llama.cpp knows no CodeGen; its phi2 has the same parallel block and matrices (and biases more). One random block
pattern is repeated, as speed does not depend on the values.
"""

from __future__ import annotations

import argparse

import gguf
import numpy as np

from codegen2.config import PRESETS

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
SCALES = {"q4_0": 3e-3, "q8_0": 2e-4}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("type", choices=list(TYPES))
    parser.add_argument("out")
    args = parser.parse_args()
    config, kind = PRESETS[args.preset], TYPES[args.type]
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
