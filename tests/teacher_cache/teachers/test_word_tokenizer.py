import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.teachers.word_tokenizer import WordTokenizer


@pytest.fixture
def tokenizer():
    return WordTokenizer(("a", "ball", "kicking", "person"), 6)


def test_words_become_ids_between_start_and_end(tokenizer):
    tokens = tokenizer(["a person kicking", "ball", ""])
    assert tokens.tolist() == [[5, 1, 4, 3, 6, 0], [5, 2, 6, 0, 0, 0], [5, 6, 0, 0, 0, 0]]
    # open_clip takes a text's embedding at the position of the largest id.
    assert tokens.argmax(1).tolist() == [4, 2, 1] and tokenizer.vocab_size == tokens.max() + 1
    assert tokenizer([]).shape == (0, 6)
    assert tokenizer("a ball", context_length=9).shape == (1, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a person riding", "expected only the words a, ball, kicking, person, found 'riding'"),
        (
            "a " * 5000,
            r"prompt 'a a [a ]{70}.*\.\.\.': length: .* 4 words, found 5000",
        ),
        ("a a a a a", "expected at most 4 words, found 5"),
    ],
)
def test_unknown_words_and_long_texts(tokenizer, text, message):
    with pytest.raises(InputError, match=message):
        tokenizer(text)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "words.json")
    again = WordTokenizer.load(tmp_path / "words.json")
    assert again.words == tokenizer.words and again.context_length == 6


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "content"),
        ({"words": "a ball", "context_length": 6}, "words"),
        ({"words": ["a"]}, "context_length"),
    ],
)
def test_wrong_files(tmp_path, value, field):
    file = tmp_path / "words.json"
    write_json(file, value)
    with pytest.raises(InputError, match=rf"words\.json: {field}: expected"):
        WordTokenizer.load(file)
