"""What a word may be by itself, from the tables of a pipeline's own rule lemmatizer.

No word lists of ours: whatever a pipeline does not know, neither does picback. The one rule to
keep: forms and lemmas come in lower case and plain (`analysis.lemmas`), and the caller holds the
pipeline's lock, as a look-up fills the pipeline's vocabulary and cache. spaCy is imported where it
is needed, as in `analysis.lemmas`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spacy.language import Language
    from spacy.pipeline import Lemmatizer as TableLemmatizer
    from spacy.tokens import Token

#: Marks a word as a verb, so that the tag *fishing* (key `fish.v`) is in "men fish" (reading
#: `fish.v`), not in "two fish". No English word ends so.
VERB_MARK = ".v"

_GERUND = "ing"
_NOUNS = frozenset({"NOUN", "PROPN"})
# What stands right before a noun ("a red rose"), and after one that comes first ("rose garden",
# "rose in a vase"); a verb with a tense wants a subject before it or an object after it.
_BEFORE_NOUN = frozenset({"ADJ", "ADP", "DET", "NUM", "VERB"})
_AFTER_FIRST_NOUN = frozenset({"ADP", "CCONJ", "NOUN", "PUNCT"})

# Texts repeat words, and the lemmatizer takes 20 us for one. spaCy never empties its own cache of
# lemmas; both together take some 500 bytes a word.
_MOST_CACHED = 50_000


class Dictionary:
    """The words that a pipeline's rule lemmatizer knows, and its rules for a word by itself."""

    def __init__(self, rules: TableLemmatizer, *, language: str | None) -> None:
        from spacy.tokens import Doc  # noqa: PLC0415 - there by now

        known = rules.lookups.get_table("lemma_index", {})
        self._rules = rules
        self._make_doc = partial(Doc, rules.vocab)
        self._nouns = frozenset(known.get("noun", ()))
        self._verbs = frozenset(known.get("verb", ()))
        self._adjectives = frozenset(known.get("adj", ()))
        self._known: dict[tuple[str, str], list[str]] = {}
        self._has_gerunds = language == "en"

    @classmethod
    def of(cls, nlp: Language) -> Dictionary | None:
        """Return the dictionary of *nlp*, if it has a rule lemmatizer that knows nouns."""
        from spacy.pipeline import Lemmatizer as TableLemmatizer  # noqa: PLC0415 - there by now

        for _, component in nlp.pipeline:
            if isinstance(component, TableLemmatizer) and component.mode == "rule":
                dictionary = cls(component, language=nlp.lang)
                return dictionary if dictionary._nouns else None
        return None

    def nouns(self, form: str) -> list[str]:
        """Return what *form* may be the plural of, or *form*: axes -> axis, ax, axe."""
        lemmas = self._lemmas(form, "NOUN")
        known = [lemma for lemma in lemmas if lemma in self._nouns]
        return known or ([form] if form in self._nouns else lemmas)

    def lone_readings(self, form: str) -> Iterator[str]:
        """Yield what *form* may mean with no word beside it: a noun, the act a gerund names."""
        first, *others = self.nouns(form)
        yield first
        yield from (noun for noun in others if noun not in self._verbs)  # leaves: not the leave
        if self._has_gerunds and form.endswith(_GERUND):
            verbs = self._lemmas(form, "VERB")
            yield from (verb + VERB_MARK for verb in verbs if verb in self._verbs)

    def is_surely_verb(self, word: Token, *, form: str, lemma: str) -> bool:
        """Return whether *word*, a verb to the pipeline, cannot be the noun that is spelt like it.

        It is in "I saw a dog"; it is not in "a red rose", which the pipeline takes for how
        something red *rose*, nor in "autumn leaves", as no noun in the singular is spelt so.
        """
        is_homograph = form in self._nouns and form != lemma and lemma in self._verbs
        return is_homograph and not self._has_place_of_noun(word)

    def _has_place_of_noun(self, word: Token) -> bool:
        before = word.nbor(-1) if word.i else None
        if before is None or before.is_punct:
            after = word.nbor() if word.i + 1 < len(word.doc) else None
            return after is None or after.pos_ in _AFTER_FIRST_NOUN
        if before.pos_ in _NOUNS:  # colours are often taken for nouns
            return before.lower_ in self._adjectives
        return before.pos_ in _BEFORE_NOUN or "Poss=Yes" in before.morph

    def _lemmas(self, form: str, part_of_speech: str) -> list[str]:
        if len(self._rules.cache) > _MOST_CACHED:
            self._rules.cache.clear()
            self._known.clear()
        known = self._known.get((form, part_of_speech))
        if known is None:
            word = self._make_doc(words=[form], pos=[part_of_speech])[0]
            known = [lemma.lower() for lemma in self._rules.lemmatize(word)]
            self._known[form, part_of_speech] = known
        return known
