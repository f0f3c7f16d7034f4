"""Adapters: what their settings mean, by the values that are merged; every other setting is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen2.checkpoint.adapter import CONFIG_FILE, merged_directory, read_adapter, write_adapter
from codegen2.checkpoint.layout import load_config
from codegen2.checkpoint.reader import weight_file
from codegen2.checkpoint.write import json_bytes
from codegen2.cli.main import main
from codegen2.config import ModelConfig

SHAPE = ModelConfig(n_ctx=32, n_embd=16, n_layer=2, n_head=4, rotary_dim=4)
# As peft 0.21.2 writes LoraConfig(task_type="CAUSAL_LM"), and what an adapter of a model without a task_type adds.
PEFT_DEFAULTS: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "bias": "none", "corda_config": None,
    "auto_mapping": {"base_model_class": "CodeGenForCausalLM", "parent_library": "transformers.models.codegen"},
    "base_model_name_or_path": None, "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None,
    "fan_in_fan_out": False, "inference_mode": False, "init_lora_weights": True, "kasa_config": None,
    "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
    "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0, "lora_ga_config": None, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None, "peft_type": "LORA",
    "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": None,
    "target_modules": None, "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False, "velora_config": None,
}  # fmt: skip
REFUSED: list[tuple[str, Any]] = [
    *(("init_lora_weights", kind) for kind in (
        "pissa", "pissa_niter_4", "PiSSA", "olora", "OLoRA", "loftq", "eva", "corda", "lora_ga", "mica", "next_year"
    )),
    *(("bias", kind) for kind in ("all", "lora_only")),
    *(("task_type", kind) for kind in ("SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION")),
    *(("peft_type", kind) for kind in ("ADALORA", "LOHA", "IA3", "VERA", "XLORA", "lora", None, "")),
    *((switch, True) for switch in (
        "use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora", "ensure_weight_tying", "merge_weights"
    )),
    *((settings, {"rho": 1}) for settings in (
        "arrow_config", "corda_config", "eva_config", "kasa_config", "loftq_config", "lora_ga_config",
        "megatron_config", "monteclora_config", "velora_config", "use_bdlora", "a_setting_of_next_year",
    )),
    ("alora_invocation_tokens", [5, 6]), ("alpha_pattern", {"fc_in": 4}), ("rank_pattern", {"fc_in": 4}),
    ("exclude_modules", ["fc_in"]), ("layer_replication", [[0, 2]]), ("layers_pattern", "h"),
    ("layers_to_transform", [0]), ("layers_to_transform", 1), ("megatron_core", "mine.core"),
    ("modules_to_save", ["lm_head"]), ("qalora_group_size", 32), ("target_parameters", ["h.0.mlp.fc_in.weight"]),
    ("trainable_token_indices", [7]), ("trainable_token_indices", {"wte": [7]}), ("target_modules", ["qkv_proj"]),
    ("r", 4.0), ("r", True), ("r", 0), ("r", None), ("lora_alpha", None), ("lora_alpha", True), ("lora_alpha", 10**400),
    ("use_rslora", "no"), ("another_of_next_year", 0.5), ("another_of_next_year", "on"),
]  # fmt: skip


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pair = (rng.normal(size=(4, 16)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32))
    write_adapter(tmp_path, {"transformer.h.1.mlp.fc_in.weight": pair}, 8.0, "base")
    return tmp_path


def settings(adapter: Path, **more: Any) -> dict[str, Any]:
    values = json.loads((adapter / CONFIG_FILE).read_text()) | more
    (adapter / CONFIG_FILE).write_bytes(json_bytes(values))
    return values


def added(adapter: Path) -> np.ndarray:
    (values,) = read_adapter(adapter, SHAPE).values()
    return values


@pytest.mark.parametrize(
    "more",
    [
        PEFT_DEFAULTS | {"r": 4, "target_modules": ["fc_in", "qkv_proj"]},
        PEFT_DEFAULTS | {"r": 4, "target_modules": r".*\.mlp\.fc_in"},
        PEFT_DEFAULTS | {"r": 4},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "inference_mode": False, "revision": "main"},
        {"init_lora_weights": False, "task_type": None, "target_modules": ["transformer.h.1.mlp.fc_in"]},
        {"a_setting_of_next_year": None, "another": False, "one_more": {}, "and_another": []},
    ],
)
def test_settings_that_change_nothing_are_read(adapter: Path, more: dict[str, Any]) -> None:
    expected = added(adapter)  # alpha / r is 2
    settings(adapter, **(more | {"lora_alpha": 4}))
    np.testing.assert_allclose(added(adapter), expected / 2, rtol=1e-6)


def test_rslora_divides_by_the_root_of_the_rank(adapter: Path) -> None:
    expected = added(adapter) / 2 * (8 / 4**0.5)
    settings(adapter, use_rslora=True)
    np.testing.assert_allclose(added(adapter), expected, rtol=1e-6)


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_every_other_setting_is_refused_by_name(adapter: Path, key: str, value: Any) -> None:
    settings(adapter, **{key: value})
    with pytest.raises(ValueError, match=f"{CONFIG_FILE}: .*{key} .*; (merge|train)") as caught:
        read_adapter(adapter, SHAPE)
    assert repr(value)[:200] in str(caught.value)


def test_an_adapter_without_a_type_is_refused(adapter: Path) -> None:
    values = settings(adapter)
    del values["peft_type"]
    (adapter / CONFIG_FILE).write_bytes(json_bytes(values))
    with pytest.raises(ValueError, match="peft_type is None, expected 'LORA'"):
        read_adapter(adapter, SHAPE)


def test_what_an_older_version_merged_is_refused(adapter: Path, tmp_path: Path) -> None:
    """The settings are read before the cache is looked into, and before the model."""
    settings(adapter, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="init_lora_weights is 'pissa'"):
        merged_directory(tmp_path / "no model", adapter)


def test_the_directory_of_an_adapter_is_no_model(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for read in (load_config, weight_file):
        with pytest.raises(
            ValueError, match="holds an adapter, and no model's weights; give its model by --model"
        ):
            read(adapter)
    assert main(["complete", "--model", str(adapter), "--prompt", "x"]) == 2
    assert "this directory by --adapter" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["infill", "complete", "score", "embed", "info", "eval bpb"])
def test_the_command_line_hands_the_adapter_on(
    adapter: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings of the adapter are what is refused, so it was read."""
    settings(adapter, init_lora_weights="pissa")
    text = adapter / "text.py"
    text.write_text("x = <FILL>\n")
    files = [] if command == "info" else [str(text)]
    assert main([*command.split(), *files, "--adapter", str(adapter)]) == 2
    assert "init_lora_weights is 'pissa'" in capsys.readouterr().err
