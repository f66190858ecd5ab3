import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.teachers.word_tokenizer import WordTokenizer

WORDS = ("a", "ball", "kicking", "person")


@pytest.fixture
def tokenizer():
    return WordTokenizer(WORDS, 6)


def test_no_texts(tokenizer):
    assert tokenizer([]).shape == (0, 6)


def test_words_become_numbers_between_start_and_end(tokenizer):
    tokens = tokenizer(["a person kicking", "ball"])
    assert tokens.tolist() == [[5, 1, 4, 3, 6, 0], [5, 2, 6, 0, 0, 0]]
    assert tokenizer("ball").tolist() == [[5, 2, 6, 0, 0, 0]]
    assert tokenizer("").tolist() == [[5, 6, 0, 0, 0, 0]]


def test_the_end_is_the_largest_number(tokenizer):
    tokens = tokenizer(["a person", "kicking a ball"])
    assert tokens.argmax(1).tolist() == [3, 4]
    assert tokenizer.vocab_size == tokens.max() + 1


def test_a_longer_context_may_be_asked_for(tokenizer):
    assert tokenizer("a ball", context_length=9).shape == (1, 9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a person riding", "expected only the words a, ball, kicking, person, found 'riding'"),
        ("a a a a a", "expected at most 4 words"),
    ],
)
def test_what_it_cannot_say(tokenizer, text, says):
    assert tokenizer("a a a a").shape == (1, 6)
    with pytest.raises(InputError, match=says):
        tokenizer(text)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "words.json")
    again = WordTokenizer.load(tmp_path / "words.json")
    assert again.words == tokenizer.words and again.context_length == 6
    assert again(["a ball"]).equal(tokenizer(["a ball"]))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "words: expected"),
        ({"context_length": 6}, "words: expected"),
        ({"words": "a ball", "context_length": 6}, "words: expected"),
        ({"words": ["a"]}, "context_length: expected"),
        ({"words": ["a"], "context_length": "6"}, "context_length: expected"),
    ],
)
def test_other_files(tmp_path, value, says):
    file = tmp_path / "words.json"
    write_json(file, value)
    with pytest.raises(InputError, match=f"words.json: {says}"):
        WordTokenizer.load(file)
