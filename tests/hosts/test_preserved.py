from collections import defaultdict, deque

import pytest
import torch

from layercard.hosts.preserved import attributes_preserved


class Counters:
    def __init__(self):
        self.count = 1
        self.name = "a"
        self.metrics = {"train": defaultdict(list, loss=[1.0]), "eval": defaultdict(list)}
        self.recent = deque([1, 2], maxlen=4)
        self.seen = {1}
        self.total = torch.ones(3)
        self.model = torch.nn.Linear(2, 2)
        self.itself = self.metrics
        self.metrics["self"] = self.metrics


def test_everything_a_step_moves_is_put_back_as_the_same_objects():
    owner = Counters()
    held = {name: id(value) for name, value in vars(owner).items()}
    inner = owner.metrics["train"]["loss"]

    def step():
        owner.count += 5
        owner.name = "b"
        owner.metrics["train"]["loss"].append(2.0)
        owner.metrics["train"]["new"].append(3.0)
        del owner.metrics["eval"]
        owner.recent.extend([3, 4, 5])
        owner.seen.add(2)
        owner.total += 1
        owner.total = owner.total * 2
        owner.added = 1
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"), attributes_preserved(owner):
        step()
    assert {name: id(value) for name, value in vars(owner).items()} == held
    assert owner.metrics["train"]["loss"] is inner
    assert inner == [1.0]
    assert dict(owner.metrics["train"]) == {"loss": [1.0]}
    assert owner.metrics.keys() == {"train", "eval", "self"}
    assert (list(owner.recent), owner.seen, owner.total.tolist()) == ([1, 2], {1}, [1.0, 1.0, 1.0])


def test_other_objects_are_left_to_themselves():
    owner = Counters()
    with attributes_preserved(owner):
        owner.model.weight.data.zero_()
    assert not owner.model.weight.any()


def test_data_are_not_copied():
    owner = Counters()
    owner.rows = [{"ids": list(range(1000))} for _ in range(200)]
    with attributes_preserved(owner):
        owner.rows.append("kept")
        owner.count += 1
    assert owner.rows[-1] == "kept"
    assert owner.count == 1
