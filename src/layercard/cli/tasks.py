"""What a model is to do for a command: as it was saved, as `--task` says, or as the dataset's columns tell.

Offers `Purpose` and `purpose_of`. An encoder that was saved without a classifier becomes one where rows hold labels, as
it would in a fine-tune. Which class of transformers a model is loaded with follows its tables of auto classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from layercard.cli.options import DataSource
from layercard.data import LABELLED, Labels, SavedHead, Task
from layercard.data.batches import dataset_labels
from layercard.data.forms import LABEL_NAMES, form_of
from layercard.errors import DataError, ModelError, one_of
from layercard.records import first_record

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
PICTURED = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
SEQ2SEQ = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
CLASSIFYING = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

HEADS: tuple[tuple[Task, Mapping[str, Any], Any], ...] = (
    ("causal", CAUSAL, transformers.AutoModelForCausalLM),
    ("causal", PICTURED, transformers.AutoModelForImageTextToText),
    ("seq2seq", SEQ2SEQ, transformers.AutoModelForSeq2SeqLM),
    ("masked", MASKED, transformers.AutoModelForMaskedLM),
    ("classification", CLASSIFYING, transformers.AutoModelForSequenceClassification),
    (
        "token-classification",
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        transformers.AutoModelForTokenClassification,
    ),
    (
        "question-answering",
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        transformers.AutoModelForQuestionAnswering,
    ),
    (
        "multiple-choice",
        modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
        transformers.AutoModelForMultipleChoice,
    ),
)
"""Tasks with transformers' tables of classes by model type; the first table that holds a class says what it does."""
PROBLEMS: dict[Task, str] = {
    "classification": "single_label_classification",
    "regression": "regression",
    "multi-label": "multi_label_classification",
}


@dataclass(frozen=True)
class Purpose:
    """What a model is to do, and the auto class that loads it so."""

    task: Task
    auto: Any
    labels: Labels | None = None
    """Of a head that is new; None where the model's own stays."""
    said: tuple[str, ...] = ()
    """What a person should know of how it was decided."""

    def configured(self, config: Any) -> Any:
        """Return the configuration with the new head's labels."""
        if self.labels is None:
            return config
        changed = copy.deepcopy(config)
        names = self.labels.names or {f"LABEL_{i}": i for i in range(self.labels.count)}
        changed.id2label = {number: name for name, number in names.items()}
        changed.label2id = dict(names)
        if self.task in PROBLEMS:
            changed.problem_type = PROBLEMS[self.task]
        return changed


def purpose_of(config: Any, name: str, *, asked: Task | None = None, data: DataSource | None = None) -> Purpose:
    """Return what the model `name` is to do; `asked` is `--task`, `data` decides where neither that nor the model does.

    Raises `ModelError` for models that cannot be probed on text or have no such head, `DataError` for unusable labels.
    """
    saved = _saved(config, name)
    if saved is not None and (asked is None or asked in _kinds(config, saved.task)):
        made = _classifier(config, data) if asked is None and saved.task == "masked" else None
        own = SavedHead.of(config).task if saved.task == "classification" else None
        return made or Purpose(asked or own or saved.task, saved.auto)
    if asked is not None:
        return _asked(config, name, asked, data)
    return _classifier(config, data) or _headless(config, name)


def _kinds(config: Any, task: Task) -> set[Task]:
    """Return what a saved head can be trained on: a classifier of several classes without a problem type on one or more."""
    if task != "classification":
        return {task}
    own = SavedHead.of(config).task
    return {"classification", "multi-label"} if own is None else {own}


def _saved(config: Any, name: str) -> Purpose | None:
    """Return what the class named in the configuration does, None where it has no head or names none."""
    architecture = (config.architectures or [""])[0]
    kind = getattr(transformers, architecture, None)
    if kind is not None and getattr(kind, "main_input_name", "input_ids") != "input_ids":
        raise ModelError(
            f"The model {name} is a {architecture}, which reads `{kind.main_input_name}`; the command line reads text. In "
            'Python, `layercard.place` adapts layers by depth or by hand in such models (`lora_layers="last"`).'
        )
    for task, table, auto in HEADS:
        entry = table.get(config.model_type, ())
        if architecture in ([entry] if isinstance(entry, str) else entry):
            return Purpose("causal" if task == "seq2seq" and not config.is_encoder_decoder else task, auto)
    return None


def _asked(config: Any, name: str, task: Task, data: DataSource | None) -> Purpose:
    """Return the purpose that the user named, with a new head where the model has none of that kind."""
    head: Task = "classification" if task in {"regression", "multi-label"} else task
    found = [(table, auto) for t, table, auto in HEADS if t == head and config.model_type in table]
    if not found:
        able = dict.fromkeys(t for t, table, _ in HEADS if config.model_type in table)
        raise ModelError(
            f"`--task` is {task!r}, and transformers has no such head for `{config.model_type}` ({name}). It has "
            f"{one_of(able) or 'none'}."
        )
    if task not in LABELLED:
        return Purpose(task, found[0][1])
    return _new_head(config, task, found[0][1], data)


def _classifier(config: Any, data: DataSource | None) -> Purpose | None:
    """Return a classifier with a new head where the model has none and the dataset's rows hold labels."""
    if data is None or data.name is None or config.is_encoder_decoder:
        return None
    record = first_record(data.name, split=data.split, config=data.config)
    for task, table, auto in HEADS:
        if task in {"token-classification", "classification"} and config.model_type in table:
            try:
                form_of(record, task, data.columns)
            except (DataError, ValueError):  # the rows are not of this form
                continue
            return _new_head(config, None if task == "classification" else task, auto, data)
    return None


def _new_head(config: Any, task: Task | None, auto: Any, data: DataSource | None) -> Purpose:
    if data is None or data.name is None:
        return Purpose(task or "classification", auto)
    record = first_record(data.name, split=data.split, config=data.config)
    labels = dataset_labels(data.name, record, task=task, columns=data.columns, split=data.split, config=data.config)
    outputs = "1 output" if labels.task == "regression" and labels.count == 1 else f"{labels.count} classes"
    was = (config.architectures or [config.model_type])[0]
    said = f"{was} becomes a {labels.task} model with a new head of {outputs}, since rows hold `{labels.column}`."
    return Purpose(labels.task, auto, labels, (said, *([labels.shown] if labels.shown else ())))


def _headless(config: Any, name: str) -> Purpose:
    """Return the language model that a model without a head is the body of."""
    kind, architecture = config.model_type, (config.architectures or [None])[0]
    if config.is_encoder_decoder and kind in SEQ2SEQ:
        return Purpose("seq2seq", transformers.AutoModelForSeq2SeqLM)
    if kind in MASKED and not getattr(config, "is_decoder", False):
        return Purpose("masked", transformers.AutoModelForMaskedLM)
    if architecture is None or architecture.endswith(("CausalLM", "LMHeadModel", "ForConditionalGeneration")):
        for task, table, auto in HEADS[:3]:
            if kind in table and kind not in modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
                return Purpose(task, auto)
    what = f"is a {architecture}" if architecture else f"is of type `{kind}`"
    raise ModelError(
        f"The model {name} {what}, which has no head that layercard can probe on text. Supported are causal, masked and "
        "sequence-to-sequence language models and classifiers; save it with such a head, or name one with `--task`."
    )


def unread_labels(record: dict[str, Any], task: Task) -> str | None:
    """Return a line that says so where a language model is not trained on the labels that rows hold, else None."""
    labels = [name for name in LABEL_NAMES if name in record]
    if task not in {"causal", "masked"} or not labels or "text" not in form_of(record, task).columns:
        return None
    return f"The column {one_of(labels[:1])} is not read: the model learns `text`. For a classifier give `--task classification`."
