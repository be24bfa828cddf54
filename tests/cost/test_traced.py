"""What is counted on tensors without values, against real models: saved tensors, PEFT's parameters, AdamW's state, peaks."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, MixtralConfig, MixtralForCausalLM

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.cost.held import calls_of
from layercard.cost.memory import peak_bytes
from layercard.cost.packed import packed_bytes
from layercard.cost.peak import Training, predict_peak
from layercard.cost.traced import RunShape, trace_bytes
from layercard.errors import ModelError
from tiny import ENCODERS, FAMILIES, GQA, collate, tiny_examples, tiny_model

TARGETS = {
    "gpt2": ["c_attn", "c_proj"],
    "phi3": ["qkv_proj", "o_proj"],
    "bert": ["query", "value"],
    "modernbert": ["Wqkv", "Wo"],
    "opt": ["q_proj", "fc1"],
}
TRACED = [family for family in FAMILIES if family != "deberta"]  # its forward selects rows by value
CPU = torch.device("cpu")


def _names(family):
    return TARGETS.get(family, ["q_proj", "o_proj", "down_proj"])


def _batch(family, *, rows=4, width=48):
    return collate(tiny_examples(rows, low=width, high=width, encoder=family in ENCODERS))


def _full(batch):
    return {name: values for name, values in batch.items() if name != "attention_mask"}


def _traced(model, batch, names, **shape):
    bare = copy.deepcopy(model).to("meta")
    bare.tie_weights()
    shape = RunShape(**{"dtype": model.dtype, "tiled_head": False} | shape)
    return trace_bytes(bare, find_layers(bare), batch, shape, target_modules=names)


def _adapted(model, names, layers=None, rank=16):
    config = LoraConfig(r=rank, target_modules=names, layers_to_transform=layers, fan_in_fan_out="c_attn" in names)
    adapted = get_peft_model(copy.deepcopy(model), config)
    adapted.config.use_cache = False
    return adapted


def _measured(model, batch, layers=None, checkpointing=False, names=("q_proj",)):
    """The peak of one real step, adapters placed by PEFT, the entry moved where layers are named."""
    adapted = _adapted(model, list(names), layers)
    if checkpointing:
        adapted.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    step = lambda: adapted(**batch).loss.backward()  # noqa: E731
    if layers is None:
        return peak_bytes(step, adapted, CPU)
    with GradientEntry(adapted, find_layers(adapted), min(layers)):
        return peak_bytes(step, adapted, CPU)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", TRACED)
def test_predicted_peaks_are_those_of_real_steps(family, checkpointing):
    model, batch = tiny_model(family), _batch(family)
    counted = _traced(model, _full(batch), _names(family))
    for layers in (None, [2, 3], [1]):
        training = Training(checkpointing, gradient_entry=layers is not None or not checkpointing, optimizer_state=0)
        predicted = predict_peak(counted, layers or range(4), training).total
        assert predicted == pytest.approx(_measured(model, batch, layers, checkpointing, _names(family)), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_what_autograd_saves(dtype):
    model, batch = tiny_model("llama", dtype=dtype), _full(_batch("llama"))
    adapted = _adapted(model, ["q_proj", "down_proj"])
    layer = find_layers(adapted).layers[1]
    call = calls_of(adapted, find_layers(adapted).layers, batch, None)[1]
    outside = {p.untyped_storage().data_ptr() for p in layer.parameters()} | {
        tensor.untyped_storage().data_ptr() for tensor in call.tensors if tensor is not call.hidden
    }
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = call.hidden.detach().clone().requires_grad_()
        output = layer(hidden, *call.args[1:], **call.kwargs)
    kept = sum(size for size, _ in saved.values())
    assert _traced(model, batch, ["q_proj", "down_proj"]).layers[1].adapted.kept == pytest.approx(kept, rel=0.02)
    assert output.requires_grad


def test_weights_adapters_and_the_optimizers_state_are_those_of_a_real_peft_model():
    model, batch = tiny_model("llama", dtype=torch.bfloat16), _full(_batch("llama"))
    adapted = _adapted(model, ["q_proj", "down_proj"], [1, 3], rank=5)
    adapted(**batch).loss.backward()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
    optimizer.step()
    state = [t for held in optimizer.state.values() for name, t in held.items() if name != "step"]
    peak = predict_peak(_traced(model, batch, ["q_proj", "down_proj"], rank=5), (1, 3), Training(checkpointing=False))
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    assert peak.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert peak.adapters == sum(p.nbytes for p in trainable) == sum(4 * p.numel() for p in trainable)
    assert peak.optimizer == sum(tensor.nbytes for tensor in state)


def test_tied_weights_are_counted_once():
    model = tiny_model("qwen2", tie_word_embeddings=True)
    assert _traced(model, _full(_batch("qwen2")), ["q_proj"]).weights == sum(
        p.nbytes for p in model.parameters()
    ) + sum(b.nbytes for b in model.buffers())


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (96, 160), (2048, 512)])
def test_four_bit_weights_have_the_size_of_bitsandbytes(rows, columns):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.randn(rows, columns)
    values, state = bitsandbytes.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    tables = sum(t.nbytes for t in (state.code, state.state2.code, state.offset) if t is not None)  # one a module
    held = values.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert packed_bytes(columns, rows, 4) == held
    assert tables < 2000


def test_packed_weights_shrink_the_layers_and_not_the_head():
    model, batch = tiny_model("llama", dtype=torch.bfloat16), _full(_batch("llama"))
    whole, eight, four = (_traced(model, batch, ["q_proj"], bits=bits).weights for bits in (None, 8, 4))
    linear = [m for m in find_layers(model).layers[0].modules() if isinstance(m, torch.nn.Linear)]
    numbers = 4 * sum(m.weight.numel() for m in linear)
    assert whole - four == pytest.approx(numbers * (2 - 0.5 - 1 / 64), rel=0.02)
    scales = 4 * sum(4 * m.out_features for m in linear)
    assert whole - eight == numbers - scales


def test_rows_that_are_padded_hold_a_mask():
    model, batch = tiny_model("llama"), _batch("llama")
    padded = copy.deepcopy(batch)
    padded["attention_mask"][0, -5:] = 0
    counted = _traced(model, padded, ["q_proj"])
    predicted = predict_peak(counted, range(4), Training(checkpointing=False, optimizer_state=0)).total
    assert predicted == pytest.approx(_measured(model, padded), rel=0.1)
    assert predicted > predict_peak(_traced(model, _full(batch), ["q_proj"]), range(4), Training(False)).activations


def test_a_tiled_head_holds_less_than_all_logits_of_a_large_vocabulary():
    batch = {"input_ids": torch.zeros(8, 1024, dtype=torch.long), "labels": torch.zeros(8, 1024, dtype=torch.long)}
    with torch.device("meta"):
        model = tiny_model("llama", vocab_size=150_000, max_position_embeddings=1024)
    stack = find_layers(model)
    tiled, whole = (trace_bytes(model, stack, batch, RunShape(tiled_head=tiled)).head for tiled in (True, False))
    logits = 8 * 1024 * 150_000 * 4
    assert tiled < logits / 4 and logits < whole < 4 * logits


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama").to("meta")
    before = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    kept = model.config.to_dict()
    trace_bytes(model, find_layers(model), _batch("llama"), RunShape(bits=4), target_modules=["q_proj"])
    assert {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()} == before
    assert model.config.to_dict() == kept and all(p.is_meta for p in model.parameters())


def test_a_layer_without_target_modules_has_no_adapters():
    counted = _traced(tiny_model("llama"), _full(_batch("llama")), ["q_proj"])
    bare = _traced(tiny_model("gpt2"), _full(_batch("gpt2")), None)
    assert all(layer.adapters > 0 for layer in (*counted.layers, *bare.layers))
    assert counted.layers[0].frozen.kept < counted.layers[0].adapted.kept


def test_a_forward_that_reads_values_is_refused_in_a_sentence(caplog):
    with pytest.raises(ModelError, match=r"The memory of Deberta.* cannot be predicted.*Measure it in a run"):
        _traced(tiny_model("deberta"), _batch("deberta"), ["query_proj"])
    assert caplog.records == []


def test_routed_experts_are_counted():
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**GQA, num_local_experts=4)).to(torch.bfloat16)
    batch = _batch("llama")
    counted = _traced(model, _full(batch), ["q_proj"])
    predicted = predict_peak(counted, range(4), Training(checkpointing=False, optimizer_state=0)).total
    assert predicted == pytest.approx(_measured(model, batch), rel=0.25)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_an_encoders_gradients_come_through_the_decoder(stack):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=120, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, pad_token_id=0, dropout=0.0,
    )  # fmt: skip
    model, batch = BartForConditionalGeneration(config), _batch("llama")
    bare = copy.deepcopy(model).to("meta")
    bare.tie_weights()
    path = f"model.{stack}.layers"
    shape = RunShape(torch.float32, tiled_head=True)
    counted = trace_bytes(bare, find_layers(bare, path=path), _full(batch), shape, target_modules=["q_proj"])
    adapted = get_peft_model(model, LoraConfig(target_modules=rf".*{stack}\.layers\.\d+\..*q_proj", r=16))
    adapted.config.use_cache = False
    peak = peak_bytes(lambda: adapted(**_full(batch)).loss.backward(), adapted, CPU)
    predicted = predict_peak(counted, range(4), Training(checkpointing=False, optimizer_state=0)).total
    assert predicted == pytest.approx(peak, rel=0.1)
