"""The sum over moments, by hand-counted models and invariants."""

import pytest

from layercard.cost.peak import LayerBytes, ModelBytes, PassBytes, Training, predict_peak

LAYER = LayerBytes(
    adapters=10,
    adapted=PassBytes(kept=100, forward=130, backward=160),
    entry=PassBytes(kept=80, forward=120, backward=140),
    frozen=PassBytes(kept=50, forward=70, backward=90),
    still=40,
)
MODEL = ModelBytes(weights=1000, layers=(LAYER,) * 4, hidden=20, shared=5, head=60)
PLAIN = Training(checkpointing=False, optimizer_state=0)


def test_the_head_is_highest_where_it_is_large_and_reads_what_every_passed_layer_kept():
    model = ModelBytes(weights=1000, layers=(LAYER,) * 4, hidden=20, shared=5, head=600)
    peak = predict_peak(model, (1, 3), PLAIN)
    assert (peak.weights, peak.adapters, peak.optimizer, peak.gradients) == (1000, 20, 0, 0)
    assert peak.activations == 5 + (80 + 50 + 100) + 600  # entry 1, frozen 2, adapted 3, and the head
    assert peak.total == 1000 + 20 + peak.activations


def test_a_small_head_leaves_the_peak_to_the_backward_of_the_topmost_layer():
    assert predict_peak(MODEL, (2, 3), PLAIN).activations == 5 + 80 + 160


def test_layers_below_the_entry_keep_nothing_and_pass_gradients_where_the_entry_stays():
    moved = predict_peak(MODEL, (3,), PLAIN)
    stays = predict_peak(MODEL, (3,), Training(checkpointing=False, gradient_entry=False, optimizer_state=0))
    assert moved.activations == 5 + 140
    assert stays.activations == 5 + 3 * 50 + 160


def test_checkpointing_keeps_inputs_and_runs_a_layer_again_beside_its_outputs_gradient():
    checkpointed = Training(checkpointing=True, optimizer_state=0)
    assert predict_peak(MODEL, (0, 1, 2, 3), checkpointed).activations == 5 + 3 * 20 + 160
    tall = LayerBytes(10, PassBytes(100, 150, 160), LAYER.entry, LAYER.frozen, 40)
    model = ModelBytes(1000, (tall,) * 4, hidden=20, shared=5, head=60)
    assert predict_peak(model, (0, 1, 2, 3), checkpointed).activations == 5 + 3 * 20 + 20 + 150


def test_gradients_are_those_of_the_layers_above_unless_micro_batches_are_accumulated():
    large = LayerBytes(1000, *[PassBytes(kept=1, forward=1, backward=1)] * 3, still=1)
    model = ModelBytes(0, (large,) * 4, hidden=1, shared=0, head=500)
    plain = predict_peak(model, (0, 1), PLAIN)
    assert (plain.gradients, plain.activations) == (2000, 0)  # the update, when nothing else is held
    held = predict_peak(model, (0, 1), Training(checkpointing=False, optimizer_state=0, accumulating=True))
    assert (held.gradients, held.activations) == (2000, 504)  # what four layers kept, and the head


def test_the_optimizers_state_is_held_at_every_moment():
    without, with_state = (
        predict_peak(MODEL, (2, 3), Training(checkpointing=False, optimizer_state=state)) for state in (0, 2)
    )
    assert (with_state.optimizer, with_state.total - without.total) == (40, 40)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_more_layers_and_a_lower_entry_never_need_less(checkpointing):
    training = Training(checkpointing=checkpointing)
    falling = [predict_peak(MODEL, layers, training).total for layers in [(0, 1, 2, 3), (1, 2, 3), (2, 3), (3,)]]
    assert falling == sorted(falling, reverse=True)
    assert predict_peak(MODEL, (1, 3), training).total <= predict_peak(MODEL, (1, 2, 3), training).total
