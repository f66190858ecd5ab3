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


def test_words_become_ids_between_start_and_end(tokenizer):
    tokens = tokenizer(["a person kicking", "ball"])
    assert tokens.tolist() == [[5, 1, 4, 3, 6, 0], [5, 2, 6, 0, 0, 0]]
    assert tokenizer("ball").tolist() == [[5, 2, 6, 0, 0, 0]]
    assert tokenizer("").tolist() == [[5, 6, 0, 0, 0, 0]]


def test_the_end_of_text_has_the_largest_id(tokenizer):
    tokens = tokenizer(["a person", "kicking a ball"])
    assert tokens.argmax(1).tolist() == [3, 4]
    assert tokenizer.vocab_size == tokens.max() + 1


def test_another_context_length(tokenizer):
    assert tokenizer("a ball", context_length=9).shape == (1, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a person riding", "expected only the words a, ball, kicking, person, found 'riding'"),
        ("a a a a a", "expected at most 4 words"),
    ],
)
def test_unknown_words_and_long_texts(tokenizer, text, message):
    assert tokenizer("a a a a").shape == (1, 6)
    with pytest.raises(InputError, match=message):
        tokenizer(text)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "words.json")
    again = WordTokenizer.load(tmp_path / "words.json")
    assert again.words == tokenizer.words and again.context_length == 6
    assert again(["a ball"]).equal(tokenizer(["a ball"]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "words: expected"),
        ({"context_length": 6}, "words: expected"),
        ({"words": "a ball", "context_length": 6}, "words: expected"),
        ({"words": ["a"]}, "context_length: expected"),
        ({"words": ["a"], "context_length": "6"}, "context_length: expected"),
    ],
)
def test_wrong_files(tmp_path, value, message):
    file = tmp_path / "words.json"
    write_json(file, value)
    with pytest.raises(InputError, match=f"words.json: {message}"):
        WordTokenizer.load(file)
