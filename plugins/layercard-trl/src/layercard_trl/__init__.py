"""layercard for TRL: `layercard trl-sft`, the flags `--lora_layers…`, and the demo.

Importing this package imports neither torch nor TRL.
"""

from __future__ import annotations

__version__ = "0.1.0"
