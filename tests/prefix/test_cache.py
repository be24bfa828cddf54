"""The prefix cache: same weights as without it, the prefix not run again, and refusal where that would not hold."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from adapted import adapted, lora_config, with_adapters
from caching import LIMIT, NO_DROPOUT, apart, shuffled
from layercard.anatomy.checkpoint_names import OLD, current_name
from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.errors import PlacementError
from layercard.prefix.cache import PrefixCache, PrefixCacheUse, find_prefix_obstacle
from tiny import CAUSAL, ENCODERS, FAMILIES, collate, pack, tiny_examples, tiny_model

ENTRY = 2


def placed(family: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    base = tiny_model(family, dtype=dtype, **(NO_DROPOUT.get(family, {}) | changes))
    base.config.use_cache = False  # as a trainer sets it
    return with_adapters(base, lora_config(family, layers_to_transform=[2, 3], lora_dropout=0.1)).train()


def train(
    model: Any, batches: Any, *, limit: int | None = LIMIT, directory: Path | None = None
) -> tuple[list[torch.Tensor], PrefixCacheUse | None]:
    """Weights after one step a batch, and what the cache did; without a cache where `limit` is None."""
    stack = find_layers(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(3)
    cache = None if limit is None else PrefixCache(model, stack, ENTRY, limit, directory)
    with GradientEntry(model, stack, ENTRY), cache or nullcontext():
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        use = None if cache is None else cache.use
    return [p.detach().clone() for p in model.parameters() if p.requires_grad], use


@pytest.mark.parametrize(("alike", "bound"), [(True, 1e-6), (False, 1e-4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_without_the_cache(family: str, alike: bool, bound: float) -> None:
    if family == "opt" and current_name() == OLD:
        pytest.skip("in older transformers OPT draws a random number a layer, and dropout above the prefix others")
    examples = tiny_examples(8, encoder=family in ENCODERS)
    expected, _ = train(placed(family), shuffled(examples, 5, alike=alike), limit=None)
    found, use = train(placed(family), shuffled(examples, 5, alike=alike))
    assert apart(found, expected) < bound
    assert use is not None
    if (
        family == "modernbert" and current_name() == OLD
    ):  # it hands its layers a number of rows, which the cache does not read
        assert (use.hits, sum(use.bypassed.values())) == (0, 20)
        return
    assert (use.hits, use.misses, use.off, use.bypassed) == (32, 8, None, {})


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_half_precision_stays_within_its_stated_bound(dtype: torch.dtype, bound: float) -> None:
    examples = tiny_examples(8)
    expected, _ = train(placed(dtype=dtype), shuffled(examples, 5), limit=None)
    found, use = train(placed(dtype=dtype), shuffled(examples, 5))
    assert apart(found, expected) < bound
    assert use is not None
    assert (use.hits, use.off) == (32, None)
    assert use.bytes_in_memory == sum(len(e["input_ids"]) for e in examples) * 32 * 2


def test_the_prefix_runs_once_an_example() -> None:
    model = placed()
    ran: list[int] = []
    for index, layer in enumerate(find_layers(model).layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    batch = collate(tiny_examples(2))
    train(model, [batch, batch])  # the second is computed both ways and compared
    ran.clear()
    with GradientEntry(model, find_layers(model), ENTRY), PrefixCache(model, find_layers(model), ENTRY, LIMIT):
        for _ in range(2):
            model(**batch)
        ran.clear()
        model(**batch).loss.backward()
        assert ran == [2, 3]
        mixed = collate([*tiny_examples(2), *tiny_examples(1, seed=5)])
        ran.clear()
        model(**mixed)
        assert ran == [0, 1, 2, 3]


def test_memory_then_disk_then_computing_give_the_same_weights(tmp_path: Path) -> None:
    batches = list(shuffled(tiny_examples(100, low=12, high=20), 2))
    expected, _ = train(placed(), batches, limit=None)
    found, use = train(placed(), batches, limit=2**16, directory=tmp_path / "cache")
    assert apart(found, expected) < 1e-4
    assert use is not None
    assert use.bytes_in_memory <= 2**16
    assert use.bytes_on_disk > 2**16
    assert use.hits == 100
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_in_a_warning_and_a_correct_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", str(tmp_path)], check=True)
    try:
        batches = list(shuffled(tiny_examples(150, low=12, high=20), 2))
        expected, _ = train(placed(), batches, limit=None)
        with caplog.at_level(logging.WARNING, "layercard"):
            found, use = train(placed(), batches, limit=2**16, directory=tmp_path / "cache")
        assert caplog.text.count("stops growing") == 1
        assert apart(found, expected) < 1e-4
        assert use is not None
        assert 0 < use.hits < 150
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_files_of_a_killed_run_are_used_again(tmp_path: Path) -> None:
    examples = tiny_examples(100, low=12, high=20)
    model = placed()
    stack = find_layers(model)
    killed = tmp_path / "killed"
    with GradientEntry(model, stack, ENTRY), PrefixCache(model, stack, ENTRY, 1, tmp_path / "first"):
        for batch in shuffled(examples, 1):
            model(**batch)
        shutil.copytree(tmp_path / "first", killed)
    _, use = train(placed(), shuffled(examples, 1), limit=1, directory=killed)
    assert use is not None
    assert use.hits > 50
    assert use.off is None
    other = tiny_model("llama", seed=1)
    model = with_adapters(other, lora_config("llama", layers_to_transform=[2, 3]))
    with PrefixCache(model, find_layers(model), ENTRY, 1, tmp_path / "killed") as cache:
        assert cache.use.bytes_on_disk == 0  # another model: its files do not count


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = placed()
    stack = find_layers(model)

    def state() -> list[Any]:
        hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
        return [hooks, ["forward" in vars(m) for m in model.modules()]]

    found = state()
    with PrefixCache(model, stack, ENTRY, 1):
        assert state() != found
        for batch in shuffled(tiny_examples(100, low=12, high=20), 1):
            model(**batch)
        assert list(tmp_path.rglob("*prefix*"))
    assert state() == found
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexError), PrefixCache(model, stack, ENTRY, 1):
        model(input_ids=torch.tensor([[10**6]]))
    assert state() == found
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_by_a_trainer_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = placed()
    PrefixCache(model, find_layers(model), ENTRY, 1).__enter__()  # no callback is called to leave it
    for batch in shuffled(tiny_examples(100, low=12, high=20), 1):
        model(**batch)
    assert list(tmp_path.rglob("*prefix*"))
    del model
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padding_changes_no_key_of_rotary_models(family: str) -> None:
    model, examples = placed(family), tiny_examples(2)
    batches = [collate(examples, side=side, extra=extra) for side, extra in (("right", 0), ("right", 3), ("left", 4))]
    expected, _ = train(placed(family), batches, limit=None)
    found, use = train(model, batches)
    assert use is not None
    assert (use.hits, use.misses, use.off) == (4, 2, None)
    assert apart(found, expected) < 1e-4


def test_absolute_positions_are_part_of_the_key() -> None:
    examples = tiny_examples(2, low=8, high=8)
    batches = [collate(examples, side="left", extra=extra) for extra in (0, 3)]
    expected, _ = train(placed("gpt2"), batches, limit=None)
    found, use = train(placed("gpt2"), batches)
    assert use is not None
    assert (use.hits, use.misses) == (0, 4)
    assert apart(found, expected) < 1e-6


@pytest.mark.parametrize(("masked", "hits"), [(False, 5), (True, 0)])
def test_documents_of_a_packed_row(masked: bool, hits: int) -> None:
    """Where attention separates documents each is an example; with a plain mask it mixes them, and the row is one."""
    examples = tiny_examples(5)
    rows = [pack(examples), pack([examples[i] for i in (3, 1, 4, 0, 2)])]
    if masked:
        rows = [row | {"attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    expected, _ = train(placed(), rows, limit=None)
    found, use = train(placed(), rows)
    assert use is not None
    assert (use.hits, use.off) == (hits, None)
    assert apart(found, expected) < (1e-4 if hits else 1e-6)


def test_the_first_hit_is_compared_and_a_wrong_one_never_used(caplog: pytest.LogCaptureFixture) -> None:
    batch = collate(tiny_examples(2))
    model = placed()
    stack = find_layers(model)
    model.eval()
    expected = model(**batch).loss
    with PrefixCache(model, stack, ENTRY, LIMIT) as cache, caplog.at_level(logging.WARNING, "layercard"):
        model(**batch)
        for hidden in cache._store._memory.values():
            hidden.mul_(1.01)
        assert torch.equal(model(**batch).loss, expected)
        assert cache.use.off is not None
        assert "switched off" in caplog.text
        assert torch.equal(model(**batch).loss, expected)


def test_what_upper_layers_read_beside_hidden_states_shows_in_the_comparison() -> None:
    """A model that no rule knows: its last layer reads what its first one left behind."""
    model = placed().eval()
    stack = find_layers(model)
    left: list[torch.Tensor] = []
    stack.layers[0].self_attn.register_forward_hook(lambda module, inputs, output: left.append(output[0]))
    stack.layers[3].register_forward_hook(lambda module, inputs, output: output + left.pop() if left else output)
    batch = collate(tiny_examples(2))
    expected = model(**batch).loss
    with PrefixCache(model, stack, ENTRY, LIMIT) as cache:
        for _ in range(3):
            left.clear()
            loss = model(**batch).loss
        assert cache.use.off is not None
        assert torch.equal(loss, expected)


def test_a_changed_base_model_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    batch = collate(tiny_examples(2))
    model = placed().eval()
    with PrefixCache(model, find_layers(model), ENTRY, LIMIT) as cache:
        for _ in range(2):
            model(**batch)
        with torch.no_grad(), caplog.at_level(logging.WARNING, "layercard"):
            model.get_base_model().model.layers[0].mlp.up_proj.weight.mul_(1.5)
            cached = model(**batch).loss
        assert "changed" in caplog.text
        assert (cache.use.hits, cache.use.misses) == (2, 4)
    assert torch.equal(model(**batch).loss, cached)


def test_autocast_is_part_of_the_key() -> None:
    batch = collate(tiny_examples(2))
    model = placed().eval()
    with PrefixCache(model, find_layers(model), ENTRY, LIMIT) as cache:
        for _ in range(2):
            model(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch)
        assert (cache.use.hits, cache.use.misses) == (2, 4)


def test_generation_and_embeddings_pass_by() -> None:
    model = placed().eval()
    ids = collate(tiny_examples(2, low=6, high=6))["input_ids"]
    greedy = {"max_new_tokens": 5, "do_sample": False, "use_cache": True}
    expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
    embedded = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=embedded).logits
    with PrefixCache(model, find_layers(model), ENTRY, LIMIT) as cache:
        model(input_ids=ids, use_cache=False)
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
        assert torch.equal(model(inputs_embeds=embedded).logits, logits)
        assert sum(cache.use.bypassed.values()) == 6
    assert torch.equal(found, expected)


def with_token_adapter() -> Any:
    return adapted("llama", trainable_token_indices=[3], layers_to_transform=[2, 3])


def with_kv_sharing() -> Any:
    import transformers as hf

    config = hf.Gemma3nTextConfig(
        vocab_size=120,
        vocab_size_per_layer_input=120,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=4,
    )
    return hf.Gemma3nForCausalLM(config).requires_grad_(False)


def with_images() -> Any:
    import transformers as hf

    text = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    heads = {"num_attention_heads": 4}
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**text, **heads), vision_config=hf.CLIPVisionConfig(**vision, **heads)
    )
    return hf.LlavaForConditionalGeneration(config).requires_grad_(False)


def frozen(family: str, **changes: Any) -> Callable[[], Any]:
    return lambda: tiny_model(family, **(NO_DROPOUT.get(family, {}) | changes)).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "entry", "words"),
    [
        (frozen("llama"), 0, "no prefix"),
        (frozen("llama", attention_dropout=0.1), 2, "Dropout is active"),
        (frozen("gpt2", embd_pdrop=0.1), 2, "Dropout is active"),
        (frozen("bert", hidden_dropout_prob=0.1), 2, "Dropout is active"),
        (frozen("opt", dropout=0.1), 2, "Dropout is active"),
        (frozen("opt", layerdrop=0.1), 2, "layerdrop"),
        (lambda: tiny_model("llama"), 2, "trained"),
        (lambda: adapted("llama", layers_to_transform=[1, 2]), 2, "below layer 2"),
        (with_token_adapter, 2, "trainable_token_indices"),
        (with_kv_sharing, 2, "num_kv_shared_layers"),
        (with_images, 2, "images"),
        (
            frozen("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            2,
            "longest row",
        ),
    ],
)
def test_refuses_where_it_would_not_be_exact(make: Callable[[], Any], entry: int, words: str) -> None:
    model = make()
    stack = find_layers(model, path="language_model.layers" if hasattr(model.config, "vision_config") else None)
    assert words in str(find_prefix_obstacle(model, stack, entry))
    with pytest.raises(PlacementError, match="prefix_cache: off"):
        PrefixCache(model, stack, entry, LIMIT).__enter__()


def test_refuses_a_position_bias_made_in_layer_0_and_a_decoder_with_encoder() -> None:
    import transformers as hf

    config = hf.T5Config(vocab_size=120, d_model=32, d_ff=48, num_layers=3, num_heads=4, d_kv=8, dropout_rate=0.0)
    model = hf.T5EncoderModel(config).requires_grad_(False)
    stack = find_layers(model)
    assert "position bias" in str(find_prefix_obstacle(model, stack, 1))


def test_neftune_is_refused() -> None:
    neftune_post_forward_hook = pytest.importorskip("transformers.integrations.neftune").neftune_post_forward_hook

    model = placed()
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    embeddings.register_forward_hook(neftune_post_forward_hook)
    assert "NEFTune" in str(find_prefix_obstacle(model, find_layers(model), ENTRY))


def test_can_be_entered_again() -> None:
    model = placed().eval()
    batch = collate(tiny_examples(2))
    cache = PrefixCache(model, find_layers(model), ENTRY, LIMIT)
    expected = model(**batch).loss
    for _ in range(2):
        with ExitStack() as inside:
            inside.enter_context(cache)
            for _ in range(2):
                assert torch.allclose(model(**batch).loss, expected, rtol=1e-5)
    assert cache.use.hits == 4
    assert set(CAUSAL)  # every family above is a causal model or an encoder
