"""Tokenized examples of records: `tokenize_records`, by what the model is trained to do.

Language models learn what their trainer would have them learn, where a plugin answers for it (`tokenize_examples`). All
others are tokenized as transformers' own training examples do: cut by the tokenizer, so that end tokens stay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from layercard.data.chat import IGNORED, renamed, text_tokenizer, tokenize_by_template
from layercard.data.conversations import REFUSALS, check_beside, check_part, template_error
from layercard.data.forms import BESIDE, Form, Task, form_of
from layercard.data.label_columns import labels_of
from layercard.data.labels import LABELLED, Labels
from layercard.errors import DataError
from layercard.records import Record, place_of
from layercard.registry import TokenizeExamples

Tokens: TypeAlias = dict[str, Any]
"""`input_ids`: a list of ids; `labels`: as many (-100 where nothing is learned), for encoder-decoders a list of their
own, for classifiers one number or a list of floats. Perhaps `token_type_ids`, as many."""

TALKS = ("messages", "conversations", "prompt")
"""Parts that may be messages, and make an example a conversation."""
MASKED_SHARE = 0.15
"""The share of tokens to predict under `masked`, as BERT was trained."""


def tokenize_records(
    records: Sequence[Record | dict[str, Any]],
    tokenizer: Any,
    *,
    task: Task = "causal",
    max_length: int = 1024,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    source: str = "the dataset",
    labels: Labels | None = None,
    tokenize: TokenizeExamples = tokenize_by_template,
) -> list[Tokens]:
    """Return each record's tokens, at most `max_length`; of which some may hold nothing to learn (`teaches`).

    Parameters: `tokenizer` is a transformers tokenizer or processor; `columns` says which column plays which part, such
    as `{"prompt": "question", "completion": "answer"}`; `seed` draws the hidden tokens of a masked model; `source` is
    named in messages where records do not know their place; `labels` as of `labels_of`, by default of these very records;
    `tokenize` is who tokenizes examples of language modelling (`Extensions.tokenize_examples`), by default layercard alone.
    Raises `DataError` where columns are missing or hold something else, naming place, column and value.
    """
    form = form_of(records[0], task, columns)
    placed = [(record, place_of(record, source, i)) for i, record in enumerate(records)]
    if task == "causal":
        return _causal(placed, form, tokenizer, max_length, tokenize)
    if task in LABELLED and labels is None:
        column = form.columns["label"]
        labels = labels_of(((place, record.get(column)) for record, place in placed), column, task=task)
    make = _Encoder(form, text_tokenizer(tokenizer), max_length, random.Random(seed), labels)
    return [make.tokens(record, place) for record, place in placed]


def _causal(
    placed: Sequence[tuple[Record | dict[str, Any], str]],
    form: Form,
    tokenizer: Any,
    max_length: int,
    tokenize: TokenizeExamples,
) -> list[Tokens]:
    examples = [_example(record, form, place) for record, place in placed]
    talks = [any(isinstance(example.get(part), list) for part in TALKS) for example in examples]
    if odd := [place for talk, (_, place) in zip(talks, placed, strict=True) if talk != talks[0]]:
        raise DataError(
            f"{odd[0]}: the example is {'text' if talks[0] else 'messages'}, and those before are "
            f"{'messages' if talks[0] else 'text'}. Give all alike, for a trainer goes by the first."
        )
    if talks[0] and tokenizer.chat_template is None:
        raise DataError(
            "The examples are messages, and the tokenizer has no chat template. Use the model's chat version, or examples "
            "with `text`, or with `prompt` and `completion` as strings."
        )
    try:
        made = tokenize(tokenizer, examples)
    except REFUSALS as error:
        raise _explained(examples, placed, form, tokenizer, tokenize, error) from error
    return [{name: ids[:max_length] for name, ids in tokens.items()} for tokens in made]


def _example(record: Mapping[str, Any], form: Form, place: str) -> dict[str, Any]:
    """Return the checked parts of a record under their own names, without those that it lacks."""
    example = {part: record.get(column) for part, column in form.columns.items()}
    for part, value in example.items():
        check = check_beside if part in BESIDE["causal"] else check_part
        check(value, part, form.columns[part], place)
    if isinstance(example.get("prompt", ""), str) != isinstance(example.get("completion", ""), str):
        raise DataError(
            f"{place}: the prompt is text and the completion messages, or the other way round. Give both alike."
        )
    return {part: value for part, value in example.items() if value is not None}


def _explained(
    examples: Sequence[dict[str, Any]],
    placed: Sequence[tuple[Any, str]],
    form: Form,
    tokenizer: Any,
    tokenize: TokenizeExamples,
    error: Exception,
) -> DataError:
    """Return the error for the first example that is refused by itself, or for all where each is taken alone."""

    def render(example: dict[str, Any]) -> Any:
        return tokenize(tokenizer, [example])

    for example, (_, place) in zip(examples, placed, strict=True):
        try:
            render(example)
        except REFUSALS as own:
            return _refusal(example, place, form, own, render)
    return DataError(
        f"The examples are taken alone and not together: {_sentence(error)} Give every row the same fields."
    )


def _refusal(
    example: dict[str, Any], place: str, form: Form, error: Exception, render: Callable[[dict[str, Any]], Any]
) -> DataError:
    part = next((p for p in TALKS if isinstance(example.get(p), list)), None)
    if part is None:
        return DataError(f"{place}: the example cannot be tokenized: {_sentence(error)}")
    messages = example[part] + example.get("completion", [])
    messages = renamed(messages) if part == "conversations" else messages
    beside = {p: value for p, value in example.items() if p in BESIDE["causal"]}
    column = form.columns[part] if len(messages) == len(example[part]) else f"{form.columns[part]} + completion"
    return template_error(messages, column, place, error, lambda some: render({"messages": some, **beside}))


def _sentence(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if said.endswith((".", "!", "?")) else f"{said}."


class _Encoder:
    """Makes the tokens of one record after another, for all but causal language models."""

    def __init__(
        self, form: Form, tokenizer: Any, max_length: int, generator: random.Random, labels: Labels | None
    ) -> None:
        self.form, self.tokenizer, self.generator, self.labels = form, tokenizer, generator, labels
        self.cut = {"truncation": True, "max_length": max_length}

    def tokens(self, record: Mapping[str, Any], place: str) -> Tokens:
        """Return the tokens of a record."""
        if self.form.task == "seq2seq":
            return self._translated(self._text(record, "prompt", place), self._text(record, "completion", place))
        if self.form.task == "token-classification":
            return self._tagged(record, place)
        text = self._text(record, "text", place)
        if self.form.task == "masked":
            return self._masked(self.tokenizer(text, **self.cut)["input_ids"])
        pair = self._text(record, "text_pair", place) if self.form.has("text_pair") else None
        return self._inputs(self.tokenizer(text, pair, **self.cut), pair) | {"labels": self._label(record, place)}

    def _text(self, record: Mapping[str, Any], part: str, place: str) -> str:
        column = self.form.columns[part]
        value = record.get(column)
        if not isinstance(value, str):
            raise DataError(f"{place}: `{column}` is {value!r:.60}. Every example needs a string there.")
        return value

    def _label(self, record: Mapping[str, Any], place: str) -> Any:
        assert self.labels is not None  # a form with a label has them
        return self.labels.read(record.get(self.form.columns["label"]), place)

    def _inputs(self, encoded: Any, pair: str | None = None) -> Tokens:
        kept = ("input_ids", "token_type_ids") if pair is not None else ("input_ids",)
        return {name: list(encoded[name]) for name in kept if name in encoded}

    def _translated(self, source: str, target: str) -> Tokens:
        """Tokens of the encoder's text, and of the decoder's as labels."""
        labels = self.tokenizer(text_target=target, **self.cut)["input_ids"]
        return self._inputs(self.tokenizer(source, **self.cut)) | {"labels": list(labels)}

    def _tagged(self, record: Mapping[str, Any], place: str) -> Tokens:
        """Label the first token of each word."""
        column = self.form.columns["tokens"]
        words = record.get(column)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{place}: `{column}` is {words!r:.60}. Every example needs a list of words there.")
        classes = self._label(record, place)
        if len(classes) != len(words):
            raise DataError(
                f"{place}: there are {len(words)} words in `{column}` and {len(classes)} labels in "
                f"`{self.form.columns['label']}`. Give one label a word."
            )
        encoded = self.tokenizer(words, is_split_into_words=True, **self.cut)
        numbers = encoded.word_ids()
        starts = [n is not None and n != before for before, n in pairwise([None, *numbers])]
        labels = [classes[n] if first else IGNORED for n, first in zip(numbers, starts, strict=True)]
        return self._inputs(encoded) | {"labels": labels}

    def _masked(self, ids: list[int]) -> Tokens:
        """Hide a share of the tokens, at least one, and label only those."""
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise DataError(
                "The model predicts masked tokens, and its tokenizer has no mask token. Give the model's own tokenizer."
            )
        ordinary = [i for i, token in enumerate(ids) if token not in self.tokenizer.all_special_ids]
        many = min(len(ordinary), max(1, round(MASKED_SHARE * len(ordinary))))
        hidden = set(self.generator.sample(ordinary, many))
        return {
            "input_ids": [mask if i in hidden else token for i, token in enumerate(ids)],
            "labels": [token if i in hidden else IGNORED for i, token in enumerate(ids)],
        }


def teaches(example: Tokens, task: Task) -> bool:
    """Whether the example holds a label to learn from."""
    labels = example["labels"]
    if task in {"classification", "regression", "multi-label"}:
        return bool(example["input_ids"])
    predicted = labels[1:] if task == "causal" else labels  # nothing predicts a text's first token
    return any(label != IGNORED for label in predicted)
