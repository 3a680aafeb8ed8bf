"""What the tables of the default pipeline say of words by themselves."""

from __future__ import annotations

import pytest
import spacy

from analysis.dictionary import Dictionary
from analysis.lemmas import DEFAULT_PIPELINE


@pytest.fixture(scope="module")
def english() -> Dictionary:
    dictionary = Dictionary.of(spacy.load(DEFAULT_PIPELINE))
    assert dictionary is not None
    return dictionary


@pytest.mark.parametrize(
    ("form", "nouns"),
    [
        ("dog", ["dog"]),
        ("dogs", ["dog"]),
        ("women", ["woman"]),
        ("leaves", ["leaf", "leave"]),
        ("axes", ["axis", "ax", "axe"]),
        ("glasses", ["glass"]),
        ("bus", ["bus"]),  # not some of the "bu"
        ("clothes", ["clothes"]),
        ("labradoodles", ["labradoodle"]),  # unknown
        ("saw", ["saw"]),
        ("tallest", ["tallest"]),
    ],
)
def test_a_form_may_be_the_plural_of(form: str, nouns: list[str], english: Dictionary) -> None:
    assert nouns == english.nouns(form)


@pytest.mark.parametrize(
    ("form", "readings"),
    [
        ("leaves", ["leaf"]),
        ("vases", ["vas", "vase"]),
        ("saw", ["saw"]),
        ("running", ["running", "run.v"]),
        ("king", ["king"]),
        ("vlogging", ["vlogging"]),
    ],
)
def test_a_form_with_no_word_beside_it_may_mean(
    form: str, readings: list[str], english: Dictionary
) -> None:
    assert readings == list(english.lone_readings(form))


def test_a_pipeline_without_a_rule_lemmatizer_has_no_dictionary() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("lemmatizer", config={"mode": "lookup"})

    assert Dictionary.of(nlp) is None
