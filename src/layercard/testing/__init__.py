"""Checks for plugins: each takes what a plugin supplies, tries it on small real material, and raises `AssertionError`.

    from layercard.testing import check_scorer

    def test_my_score() -> None:
        check_scorer(MyScore())

Each message says what was tried, what came back and what is wanted. Everything runs offline, on a CPU, in seconds; the
built-in scorers, strategies, hosts and cards pass the same checks.
"""

from layercard.testing.card_folders import check_card_folder
from layercard.testing.hosts import check_host
from layercard.testing.scorers import check_scorer
from layercard.testing.strategies import check_strategy

__all__ = ["check_card_folder", "check_host", "check_scorer", "check_strategy"]
