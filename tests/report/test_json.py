from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.files import json_text
from layercard.report.files import save_report
from reports import full_report

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(DOCUMENTS)
def test_the_text_is_the_document(document):
    assert json.loads(json_text(document)) == document


def test_lists_of_layers_stand_on_one_line_and_lists_of_objects_do_not(tmp_path):
    lines = save_report(full_report(), tmp_path).read_text().splitlines()
    assert '  "layers": [15, 17, 19, 21, 23, 25, 27, 29],' in lines
    assert json_text({"a": [{"b": [1, 2]}]}).splitlines() == [
        "{",
        '  "a": [',
        "    {",
        '      "b": [1, 2]',
        "    }",
        "  ]",
        "}",
    ]


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        json_text({"a": [float("nan")]})
