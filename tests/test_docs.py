"""README and documentation: their commands, links and TOML examples are valid."""

import json
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from evaluation.cli import evaluation
from evaluation.tables import format_percent
from pipeline.annotations.load import load_annotations
from pipeline.cli import data
from pipeline.splits import load_split
from pipeline.vocabulary import load_vocabulary, vocabulary_from_dict
from student.cli import train
from student.inference.cli import predict
from student.weights.zoo import read_zoo
from teacher_cache.cli import cache

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [ROOT / "README.md", ROOT / "teacher_cache/FORMAT.md", *ROOT.glob("docs/**/*.md")]
    if "_build" not in page.parts
)
COMMANDS = {
    "eoid-data": data,
    "eoid-cache": cache,
    "eoid-train": train,
    "eoid-eval": evaluation,
    "eoid-predict": predict,
}


def code_blocks(page, language=""):
    """The code blocks in this language."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^ *```([^\n]*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in blocks if name == language]


def commands(page):
    """Words of every command line in the code blocks without a language."""
    # Pages can also show what a command prints.
    shown = re.findall(r"^```\{command-output\} (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    for block in [*code_blocks(page), *shown]:
        for line in re.sub(r"\\\n", " ", block).splitlines():
            found = re.search(rf"(?<!\S)({'|'.join(COMMANDS)})\s", line)
            if found:
                yield shlex.split(line[found.start() :], comments=True)


ALL_COMMANDS = [
    pytest.param(words, id=f"{page}-{' '.join(words[:3])}-{i}")
    for page in PAGES
    for i, words in enumerate(commands(page))
]


def test_documentation_shows_every_command():
    shown = {tuple(param.values[0][:2]) for param in ALL_COMMANDS}
    for name, command in COMMANDS.items():
        for sub_name in getattr(command, "commands", ()):
            assert (name, sub_name) in shown, f"{name} {sub_name} is in no code block"


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_commands_in_documentation_are_valid(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = words
    command = COMMANDS[name]
    if isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    context = click.Context(command, info_name=name, resilient_parsing=True)
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert not rest
    types = {parameter.name: parameter.type for parameter in command.params}
    for key, value in values.items():
        # Files of the examples do not exist.
        if isinstance(types[key], (click.Choice, click.types.FuncParamType)) or (
            isinstance(types[key], click.ParamType)
            and isinstance(value, str)
            and value[:1].isdigit()
        ):
            types[key].convert(value, None, context)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#", "mailto:")):
            path = (ROOT / page).parent / target.partition("#")[0]
            assert path.exists(), f"{page}: {target}"


def test_readme_is_short_and_names_no_missing_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 200


@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page}-{i}")
        for page in PAGES
        for i, block in enumerate(code_blocks(page, "toml"))
    ],
)
def test_toml_examples_are_valid(page, block, tmp_path):
    value = tomllib.loads(block)
    if any(key.startswith("unseen") for key in value):
        file = tmp_path / "split.toml"
        file.write_text(re.sub('"(push|touch)"', '"ride"', block))
        assert load_split(load_vocabulary("toy"), str(file)).unseen


def test_example_of_a_vocabulary_is_valid():
    (block,) = code_blocks("docs/reference/vocabulary.md", "json")
    vocabulary = vocabulary_from_dict(json.loads(block), "example")
    assert vocabulary.interaction_name(0) == "ride bicycle"
    assert vocabulary.no_interaction is not None


def test_example_in_the_hoia_format_is_valid(tmp_path):
    block = code_blocks("docs/reference/annotations.md", "json")[0]
    file = tmp_path / "annotations.json"
    file.write_text(block)
    vocabulary = load_vocabulary("hico-det")
    (annotation,) = load_annotations(file, vocabulary, "train", strict=True).annotations
    assert vocabulary.verbs[annotation.hois[0, 2]] == "ride"
    assert vocabulary.objects[annotation.labels[1]] == "horse"


def test_the_table_of_weights_is_that_of_the_package():
    text = (ROOT / "docs/reference/zoo.md").read_text()
    table = text.partition("licence |\n|---")[2].partition("\n\n")[0].splitlines()[1:]
    rows = []
    for name, row in read_zoo().items():
        scores = [format_percent(value) for value in (row.unseen, row.seen, row.full)]
        numbers = [f"{row.parameters:,}", f"{row.images_per_second:.0f}"]
        cells = [f"`{name}`", row.description, *scores, *numbers, row.licence]
        rows.append(f"| {' | '.join(cells)} |")
    assert table == rows
