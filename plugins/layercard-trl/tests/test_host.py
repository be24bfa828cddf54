from __future__ import annotations

import numpy as np
import pytest
import torch

from layercard import plugins
from layercard.anatomy.layers import find_layers
from layercard.errors import HostError
from layercard.probing.run import run_probe
from layercard_trl.host import DPOHost, SFTHost, locate
from tiny import tiny_model, tiny_tokenizer

KINDS = {
    "completion only": {},
    "all tokens": {"completion_only_loss": False},
    "assistant only": {"rows": "chat", "assistant_only_loss": True},
    "padding free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True},
    "packed wrapped": {"packing": True, "packing_strategy": "wrapped"},
    "prepared by the user": {"rows": "tokenized", "dataset_kwargs": {"skip_prepare_dataset": True}},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "dft": {"loss_type": "dft"},
}


def plain_nll(model, batch):
    """Mean NLL from materialised logits in float64."""
    arguments = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**arguments, use_cache=False).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_nll_of_label_terms(sft_trainer, kind):
    if kind == "label smoothing":
        with pytest.warns(FutureWarning, match="label_smoothing_factor"):
            trainer = sft_trainer(**KINDS[kind])
    else:
        trainer = sft_trainer(**KINDS[kind])
    host = locate(trainer)
    for batch in host.probe_batches(6, 3, seed=0):
        torch.testing.assert_close(
            host.loss(host.model, batch).double(), plain_nll(host.model, batch), rtol=1e-5, atol=1e-6
        )


def test_loss_leaves_metrics_and_counters(sft_trainer):
    host = locate(sft_trainer())
    for batch in host.probe_batches(6, 3, seed=0):
        host.loss(host.model, batch)
    assert host.trainer._total_train_tokens == 0
    assert not host.trainer._metrics["train"]


def test_preserved_puts_back_what_a_step_moves(sft_trainer):
    host = locate(sft_trainer())
    (batch, again) = host.step_batches(2)
    host.training_step(host.model, batch)
    tokens, metrics = host.trainer._total_train_tokens, {k: list(v) for k, v in host.trainer._metrics["train"].items()}
    assert tokens > 0
    assert metrics
    with host.preserved():
        host.training_step(host.model, again)
        assert host.trainer._total_train_tokens > tokens
    assert host.trainer._total_train_tokens == tokens
    assert {k: list(v) for k, v in host.trainer._metrics["train"].items()} == metrics
    host.training_step(host.model, again)  # the metrics still grow by themselves
    assert len(host.trainer._metrics["train"]["entropy"]) == len(metrics["entropy"]) + 1


@pytest.mark.parametrize("kind", ["padding free", "packed"])
def test_scores_do_not_change_when_documents_share_a_row(sft_trainer, kind):
    norms = []
    for settings in ({}, KINDS[kind]):
        trainer = sft_trainer(count=6, **settings)
        host = locate(trainer)
        statistics = run_probe(
            host.model,
            host.probe_batches(6, 3, seed=0),
            stack=find_layers(host.model),
            needs=["gradients", "energy"],
            loss=host.loss,
            show_progress=False,
        )
        assert statistics.examples == 6
        norms.append(statistics)
    np.testing.assert_allclose(norms[0].gradient_norm, norms[1].gradient_norm, rtol=1e-4)
    np.testing.assert_allclose(norms[0].energy, norms[1].energy, rtol=1e-4)


def test_probe_reads_float32_statistics_under_autocast(sft_trainer):
    norms = []
    for bf16 in (False, True):
        host = locate(sft_trainer(bf16=bf16))
        statistics = run_probe(
            host.model,
            host.probe_batches(6, 3, seed=0),
            stack=find_layers(host.model),
            needs=["gradients"],
            loss=host.loss,
            show_progress=False,
        )
        norms.append(statistics.gradient_norm)
    np.testing.assert_allclose(norms[0], norms[1], rtol=0.02)


@pytest.fixture
def dpo_trainer(tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": "x" * (1 + i % 4)} for i in range(8)]
    return DPOTrainer(
        tiny_model("llama"),
        args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=40),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def test_dpo_reads_the_chosen_responses(dpo_trainer):
    host = locate(dpo_trainer)
    assert isinstance(host, DPOHost)
    tokenizer = dpo_trainer.processing_class
    for batch in host.probe_batches(4, 2, seed=0):
        assert batch["input_ids"].shape[0] == 2
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            prompt = tokenizer.decode(ids[labels == -100], skip_special_tokens=True).replace(" ", "")
            chosen = tokenizer.decode(labels[labels != -100], skip_special_tokens=True).replace(" ", "")
            assert int(chosen) == 2 * int(prompt.split("+")[0])
        torch.testing.assert_close(host.loss(host.model, batch).double(), plain_nll(host.model, batch))


def test_dpo_is_judged_by_the_preference_loss_of_pairs(dpo_trainer):
    host = locate(dpo_trainer)
    held = host.heldout_batches(4)
    assert held.held_back == len(held.batches) == 2
    for batch in held.batches:
        assert host.heldout_loss(host.model, batch).item() == pytest.approx(np.log(2), rel=1e-5)
    assert not dpo_trainer._metrics["train"]


def test_the_plugin_answers_for_trl(sft_trainer):
    host = plugins.manager().hook.locate_host(trainer=sft_trainer())
    assert isinstance(host, SFTHost)
    assert host.name == "trl.SFTTrainer"


def test_subclass_of_a_user_is_taken_for_what_it_extends(sft_trainer):
    trainer = sft_trainer()
    trainer.__class__ = type("MyTrainer", (type(trainer),), {})
    assert isinstance(locate(trainer), SFTHost)


def test_other_trl_trainers_are_refused_by_name(tmp_path):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    config = tiny_model("llama").config
    config.num_labels = 1
    trainer = RewardTrainer(
        LlamaForSequenceClassification(config),
        args=RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"),
    )
    with pytest.raises(HostError, match=r"`RewardTrainer` cannot be placed into.*SFTTrainer.*layers_to_transform"):
        plugins.manager().hook.locate_host(trainer=trainer)
