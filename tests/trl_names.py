"""TRL 1.16 uses names of its own accord that transformers 5.23 calls old; layercard does not, and is not excused."""

from __future__ import annotations

import pytest

uses_trl = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing(_enable|_disable)?` is deprecated and will be removed in v6:FutureWarning"
)
