import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layercard.cost.memory import LiveBytes, memory_method, peak_bytes

CPU = torch.device("cpu")


class Stack(nn.Module):
    def __init__(self, checkpointing=False, train_from=0):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(6))
        self.checkpointing = checkpointing
        for i, block in enumerate(self.blocks):
            block.requires_grad_(i >= train_from)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return x.sum()


def _peak(model):
    x = torch.randn(50, 16)
    return peak_bytes(lambda: model(x).backward(), model, CPU)


def test_freed_tensors_stop_counting_and_views_count_once():
    with LiveBytes() as live:
        a = torch.ones(1000)
        b = a.view(10, 100)
        c = b + 1
        del a, b
        c.add_(1)
        d = c * 2
    assert (live.peak, d.numel()) == (8000, 1000)


def test_the_count_is_deterministic():
    assert _peak(Stack()) == _peak(Stack())


def test_checkpointing_and_a_frozen_prefix_lower_the_peak():
    whole = _peak(Stack())
    assert _peak(Stack(checkpointing=True)) < whole
    assert _peak(Stack(train_from=4)) < whole


def test_the_peak_holds_the_model_itself():
    model = Stack()
    assert peak_bytes(lambda: None, model, CPU) == sum(p.numel() * 4 for p in model.parameters())


def test_the_method_is_named():
    assert "approximation" in memory_method(CPU) and "CUDA" in memory_method(torch.device("cuda"))
