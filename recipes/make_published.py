"""Writes the published Layer Cards from `published/tables.json`, the one place where their figures stand.

    python recipes/make_published.py            # write recipes/cards/<model>/<dataset>.json
    python recipes/make_published.py --check    # exit with 1 where a file there is not what the tables give

It transcribes and divides, and measures nothing: published cards hold no scores of layers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from published import activation_norm, residual_norm

from layercard.cards.schema import check_card
from layercard.cards.writing import card_text, save_card

CARDS = Path(__file__).parent / "cards"


def main() -> int:
    """Write every published card, or with `--check` compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the published Layer Cards from their tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    check = parser.parse_args().check
    different = 0
    for document in (*residual_norm.cards(), *activation_norm.cards()):
        card = check_card(document, "published/tables.json")
        path = CARDS / f"{card.key}.json"
        same = path.is_file() and path.read_text(encoding="utf-8") == card_text(document)
        different += not same
        if not same and not check:
            save_card(card, path)
        print(f"{'as it was' if same else 'differs' if check else 'written'}: {card.key}")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
