"""Muon: torch's where a weight is one matrix, and Q, K and V each for itself where it is three."""

import copy

import pytest
import torch

from codegen2.checkpoint.layout import group_qkv, ungroup_qkv
from codegen2.config import ModelConfig
from codegen2.model import CodeGen2
from codegen2.train.config import TrainConfig
from codegen2.train.optim import Muon, make_optimizers, orthogonalised

C = 32


def stepped(make, shapes, steps=3):
    """Return weights after steps with fixed gradients."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = make(weights)
    for _ in range(steps):
        for p in weights:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in weights]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon to compare with")
def test_whole_matrices_go_as_with_torchs_own():
    shapes = [(C, C), (C, C), (4 * C, C), (C, 4 * C)]
    ours = stepped(lambda ws: Muon([{"params": ws}], lr=0.02, weight_decay=0.05), shapes)
    torchs = stepped(lambda ws: torch.optim.Muon(ws, lr=0.02, weight_decay=0.05, momentum=0.95), shapes)
    for mine, other in zip(ours, torchs, strict=True):
        assert (mine - other).norm() < 2e-3 * 0.02 * 3 * other.norm() + 0.02 * 3 * 0.03 * C**0.5
        torch.testing.assert_close(mine, other, rtol=0, atol=0.02 * 3 * 0.02)  # bfloat16 of an update


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_q_k_and_v_are_orthogonalised_apart_however_a_file_groups_them(groups):
    generator = torch.Generator().manual_seed(2)
    in_file, gradient = torch.randn(2, 3 * C, C, generator=generator)
    p = torch.nn.Parameter(torch.from_numpy(ungroup_qkv(in_file.numpy(), groups)))
    p.grad = torch.from_numpy(ungroup_qkv(gradient.numpy(), groups))
    Muon([{"params": [p], "parts": 3}], lr=0.1, weight_decay=0.0).step()
    found = torch.from_numpy(group_qkv(p.detach().numpy(), groups)).view(groups, 3, C // groups, C)
    # The file's own order, said otherwise: in each group rows of Q, V and K.
    before = in_file.view(groups, 3, C // groups, C)
    momentum = gradient.lerp(gradient * 0.05, 0.95).view(groups, 3, C // groups, C)
    for i in range(3):
        update = orthogonalised(momentum[:, i].reshape(1, C, C))[0].float()
        expected = before[:, i].reshape(C, C) - 0.1 * update
        torch.testing.assert_close(found[:, i].reshape(C, C), expected, rtol=0, atol=2e-3)


def test_an_update_is_nearly_orthogonal_for_every_shape():
    for shape in [(5, C, C), (2, 4 * C, C), (2, C, 4 * C)]:
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        values = torch.linalg.svdvals(orthogonalised(matrices).float())
        assert values[:, : C // 2].min() > 0.3 and values.max() < 1.3
        alone = torch.cat([orthogonalised(m[None]) for m in matrices])
        torch.testing.assert_close(orthogonalised(matrices).float(), alone.float(), rtol=0, atol=0.02)


def test_a_saved_state_goes_on_exactly():
    model = CodeGen2(ModelConfig(n_ctx=32, n_embd=16, n_layer=2, n_head=1, rotary_dim=8))
    model.init_weights(torch.Generator().manual_seed(0))
    config = TrainConfig(model=ModelConfig(), matrix_lr=0.02)

    def run(model, steps, states=None):
        optimizers = make_optimizers(model, config)
        for optimizer, state in zip(optimizers, states or [], strict=bool(states)):
            optimizer.load_state_dict(state)
        for step in steps:
            for n, p in enumerate(model.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + n))
            for optimizer in optimizers:
                optimizer.step()
        return [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]

    stopped = copy.deepcopy(model)
    run(model, range(4))
    run(stopped, range(2, 4), run(stopped, range(2)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), stopped.parameters(), strict=True))
    muon = make_optimizers(model, config)[0]
    assert [(g["parts"], len(g["params"]), g["peak_lr"]) for g in muon.param_groups] == [
        (3, 2, 0.02),
        (1, 6, 0.02),
    ]
