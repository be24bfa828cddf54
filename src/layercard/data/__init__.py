"""From a dataset to tokenized examples and batches, where no trainer supplies them.

Labels and end-of-sequence tokens of language models are as TRL's SFTTrainer makes them: by TRL itself where layercard-trl
is installed. Reading files is `records`'s business.
"""

from layercard.data.batches import ProbeData, collate, pad_id, probe_data
from layercard.data.forms import Form, Task, form_of
from layercard.data.label_columns import labels_of
from layercard.data.labels import LABELLED, Labels, SavedHead
from layercard.data.tokens import IGNORED, Tokens, teaches, tokenize_records

__all__ = [
    "Form",
    "IGNORED",
    "LABELLED",
    "Labels",
    "ProbeData",
    "SavedHead",
    "Task",
    "Tokens",
    "collate",
    "form_of",
    "labels_of",
    "pad_id",
    "probe_data",
    "teaches",
    "tokenize_records",
]
