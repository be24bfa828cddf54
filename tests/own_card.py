"""A tiny model with adapters on every layer, and a Layer Card measured on the very data that its trainer holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as hf

import layercard
from adapted import LIKE_LLAMA, lora_config, with_adapters
from layercard.cards.card import LayerCard
from layercard.cards.fingerprint import model_fingerprint
from layercard.cards.library import save_card
from layercard.probing.statistics import Array
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, arguments
from transfer_cards import reference

LAYERS = 8
KEPT = {"high": (0.99, 0.9), "mid": (0.96, 0.7), "low": (0.7, 0.5)}


def deep_model() -> Any:
    """Return a model of eight layers, the same every time."""
    return tiny_model("llama", num_layers=LAYERS)


def deep_trainer(folder: Path, **changes: Any) -> hf.Trainer:
    """Return a trainer over that model with fresh adapters on every layer, and forty examples."""
    planned = {"max_steps": 1000} | changes  # long enough to pay for a whole probe
    model, args = with_adapters(deep_model(), lora_config("llama")), arguments(folder, **planned)
    return hf.Trainer(model=model, args=args, train_dataset=Rows(tiny_examples(40)), data_collator=collate)


def resnorm_of(folder: Path, **settings: Any) -> Array:
    """Return the resnorm that a full probe of that trainer finds."""
    scores = layercard.place(deep_trainer(folder), lora_layers="high", **settings).scores
    assert scores is not None
    found: Array = scores["resnorm"].importance
    return found


def own_card(resnorm: Array, dataset: str = "numbers", **changes: Any) -> dict[str, Any]:
    """Return the document of a card of that model whose data rank its layers so."""
    model = {"model": model_fingerprint(deep_model(), model_id="org/tiny")}
    lora = {"lora": {"rank": 4, "alpha": 8, "targets": LIKE_LLAMA}}
    return reference(dataset, **({"resnorm": resnorm, "kept": KEPT} | model | lora | changes))


def put(folder: Path, document: dict[str, Any]) -> Path:
    """Save a card in a folder of cards; return its path."""
    card = LayerCard(document, "test")
    path = folder / f"{card.key}.json"
    save_card(card, path)
    return path
