"""The main job with the model in the box, without a network."""

import numpy as np
import pytest

import codegen2
from codegen2.cli import main as cli
from codegen2.text.infill import build_prompt

PREFIX = "class Point:\n    def __init__(self, x, y):\n        self.x = x\n"
SUFFIX = "\n    def get_x(self):\n        return self.x\n"

both_engines = pytest.mark.parametrize(
    "engine",
    ["native", pytest.param("reference", marks=[pytest.mark.torch, pytest.mark.slow])],
    indirect=True,
    scope="session",
)
pytestmark = pytest.mark.usefixtures("no_network")


def test_the_network_is_blocked():
    import socket

    with pytest.raises(AssertionError, match="tried to look up"):
        socket.create_connection(("example.org", 80))
    with socket.socket() as s, pytest.raises(AssertionError, match="tried to reach"):
        s.connect(("192.0.2.1", 80))


@both_engines
def test_complete_infill_score_embed(box_model):
    model = box_model  # the test below loads it without a network, too
    assert model.infill(PREFIX, SUFFIX, max_new_tokens=40).raw.strip()
    params = codegen2.SamplingParams(max_new_tokens=40)
    asked = codegen2.Request(PREFIX, SUFFIX, anchor="cursor", raw=True, heal=False, params=params)
    [done] = model.answer([asked])
    ids = build_prompt([model.tokenizer.encode(PREFIX), model.tokenizer.encode(SUFFIX)])
    assert model.generate(ids, max_new_tokens=40).tokens == done.tokens
    assert model.complete("import os\n", max_new_tokens=8).text
    assert 0.5 < model.score(PREFIX + SUFFIX).bits_per_byte < 4
    assert np.isfinite(model.embed(PREFIX, "mean")).all()


@both_engines
def test_the_command_line(engine, tmp_path, capsys):
    path = tmp_path / "x.py"
    path.write_text(PREFIX + "        <FILL>" + SUFFIX)
    assert (
        cli.main(["infill", str(path), "--stop-at", "line", "--max-new-tokens", "20", "--engine", engine])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith(PREFIX)
    assert out.endswith(SUFFIX)
    assert "<" not in out


@pytest.mark.torch
def test_a_device_that_is_not_there(capsys):
    for device in ("cuda:7", "nonsense"):
        assert cli.main(["complete", "--prompt", "x", "--device", device]) == 2
        assert "choose" in capsys.readouterr().err
