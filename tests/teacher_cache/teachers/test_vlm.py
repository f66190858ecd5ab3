"""Small models of transformers with random weights, saved as on the hub."""

import json
import sys
from functools import cache, partial

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image

from benchmarks.vlm_passes import prompt_texts, train_tokenizer, write_random_qwen
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.cli import main
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.soft_targets import object_actions
from teacher_cache.teachers.base import TeacherImage
from teacher_cache.teachers.load import TeacherConfig, load_teacher
from teacher_cache.teachers.vlm import QUESTIONS, draw_pair

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
pytestmark = pytest.mark.usefixtures("offline")

CPU = torch.device("cpu")
SIZE = 56
# Weights larger than usual, so that the outputs differ clearly from input to input.
SCALE = 0.3
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "initializer_range": SCALE}
IDEFICS_TOKENS = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>")
IDEFICS_TOKENS += ("<global-img>", "<pad>")
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}User:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def write_idefics3(folder, texts):
    """SmolVLM is the same model with another processor, which needs the package num2words."""
    tokenizer = train_tokenizer(
        texts,
        IDEFICS_TOKENS,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
    )
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **SIZES, "vocab_size": len(tokenizer)},
        vision_config={**SIZES, "image_size": SIZE, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    transformers.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    side = {"longest_edge": SIZE}
    images = transformers.Idefics3ImageProcessor(
        size=side, max_image_size=side, do_image_splitting=False
    )
    transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabulary):
    """Folders of the models, by their architecture."""
    root, texts = tmp_path_factory.mktemp("models"), prompt_texts(vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        write_random_qwen(root / "qwen2_5_vl", texts, scale=SCALE)
        write_idefics3(root / "idefics3", texts)
    return {name: root / name for name in ("qwen2_5_vl", "idefics3")}


def load(folder, device=CPU, **settings):
    settings = {"model": folder, "size": SIZE, "precision": "float32", **settings}
    texts = tuple((name, str(value)) for name, value in settings.items())
    return load_teacher(TeacherConfig("vlm", texts), device)


@pytest.fixture(scope="module")
def inputs(vocabulary):
    """An image, and five pairs of three regions and three objects; the last repeats the first."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    humans = [[0, 0, 30, 40], [5, 5, 80, 50], [0, 0, 30, 40], [40, 20, 90, 60], [0, 0, 30, 40]]
    objects = [[20, 20, 60, 60], [8, 6, 50, 40], [20, 20, 60, 60], [50, 20, 60, 55]]
    labels = [vocabulary.objects.index(name) for name in ("ball", "chair", "dog", "ball", "ball")]
    boxes = np.array([[0, 0, 60, 60], [5, 5, 80, 50], [40, 20, 90, 60]], np.float32)
    image = TeacherImage("1.jpg", Image.fromarray(pixels), boxes, np.array([0, 1, 0, 2, 0]))
    pairs = Pairs(
        human_boxes=np.array(humans, np.float32),
        object_boxes=np.array([*objects, objects[0]], np.float32),
        object_labels=np.array(labels),
        human_scores=np.ones(5, np.float32),
        object_scores=np.ones(5, np.float32),
        sources=np.zeros(5, np.uint8),
    )
    return image, pairs


def run(teacher, inputs, vocabulary):
    """(P, V) probabilities."""
    image, pairs = inputs
    ((probabilities, embeddings),) = teacher.score_batches([([image], [pairs])], vocabulary)
    assert embeddings is None
    return probabilities


@cache
def load_plain(folder):
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, transformers.AutoProcessor.from_pretrained(folder)


def plain_pass(folder, picture, question, answer=""):
    """Log-probabilities after each token of one pass of transformers' own model, and the ids."""
    model, processor = load_plain(folder)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    tokens = processor(
        text=[text + answer], images=[picture], return_tensors="pt", add_special_tokens=False
    )
    with torch.inference_mode():
        logits = model(**tokens).logits[0]
    return logits.log_softmax(1), tokens["input_ids"][0].tolist(), processor.tokenizer


def plain_yes(folder, picture, question):
    outputs, _, tokenizer = plain_pass(folder, picture, question)
    yes, no = (
        sum(outputs[-1, tokenizer.convert_tokens_to_ids(word)].exp() for word in words)
        for words in (("yes", "Yes", "Ġyes", "ĠYes"), ("no", "No", "Ġno", "ĠNo"))
    )
    return float(yes / (yes + no))


def plain_likelihood(folder, picture, question, answer):
    start = len(plain_pass(folder, picture, question)[1])
    outputs, ids, _ = plain_pass(folder, picture, question, answer)
    return float(np.mean([outputs[place - 1, ids[place]] for place in range(start, len(ids))]))


def pictures(image, pairs, kind):
    """What the model gets for each pair, made by PIL alone."""
    if kind == "boxes":
        boxes = zip(pairs.human_boxes, pairs.object_boxes, strict=True)
        return [draw_pair(image.pixels, *each, SIZE) for each in boxes]
    made = []
    for row in image.region_indices:
        crop = image.pixels.crop(image.region_boxes[row].tolist())
        square = Image.new("RGB", (max(crop.size),) * 2)
        square.paste(crop, tuple((square.width - side) // 2 for side in crop.size))
        made.append(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return made


def actions(vocabulary, label):
    """Verbs of an object and their forms."""
    valid = object_actions(vocabulary)[label]
    return [(verb, vocabulary.verb_ings[verb]) for verb in np.flatnonzero(valid)]


@pytest.mark.parametrize(("name", "kind"), [("qwen2_5_vl", "region"), ("idefics3", "boxes")])
def test_yes_no_equals_a_loop_of_whole_passes(folders, inputs, vocabulary, name, kind):
    teacher = load(folders[name], image=kind)
    assert teacher.probabilities == "independent"
    found = run(teacher, inputs, vocabulary)
    expected = np.zeros_like(found)
    image, pairs = inputs
    for row, picture in enumerate(pictures(image, pairs, kind)[:3]):
        label = pairs.object_labels[row]
        for verb, ing in actions(vocabulary, label):
            question = QUESTIONS["yes-no", kind].format(ing=ing, object=vocabulary.objects[label])
            expected[row, verb] = plain_yes(folders[name], picture, question)
    np.testing.assert_allclose(found[:3], expected[:3], atol=1e-4)
    # The probabilities depend on image and text.
    assert np.ptp(expected[0][expected[0] > 0]) > 1e-2 and np.abs(found[0] - found[3]).max() > 1e-2
    np.testing.assert_array_equal(found[0], found[4])


@pytest.mark.parametrize(("name", "kind"), [("qwen2_5_vl", "boxes"), ("idefics3", "region")])
def test_likelihood_equals_a_loop_of_whole_passes(folders, inputs, vocabulary, name, kind):
    teacher = load(folders[name], image=kind, score="likelihood", temperature=0.5)
    assert teacher.probabilities == "softmax"
    found = run(teacher, inputs, vocabulary)
    image, pairs = inputs
    label = pairs.object_labels[0]
    question = QUESTIONS["likelihood", kind].format(object=vocabulary.objects[label])
    # The generation prompt of Idefics3 ends without a space.
    gap = " " if name == "idefics3" else ""
    expected, blank = np.zeros_like(found[0]), Image.new("RGB", (SIZE, SIZE), (127,) * 3)
    verbs = actions(vocabulary, label)
    for verb, ing in verbs:
        phrase = f"{gap}{ing} the {vocabulary.objects[label]}"
        scores = [
            plain_likelihood(folders[name], picture, question, phrase)
            for picture in (pictures(image, pairs, kind)[0], blank)
        ]
        expected[verb] = np.exp((scores[0] - scores[1]) / 0.5)
    expected /= expected.sum()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert np.ptp([expected[verb] for verb, _ in verbs]) > 1e-2


def test_batches_change_nothing_and_share_the_image(folders, inputs, vocabulary, monkeypatch):
    """Regions with equal object are scored once, and each encodes its image once."""
    teacher = load(folders["qwen2_5_vl"], score="likelihood")
    expected, encoded = run(teacher, inputs, vocabulary), []
    encode = teacher._model.model.get_image_features
    monkeypatch.setattr(
        teacher._model.model,
        "get_image_features",
        lambda *words, **options: encoded.append(1) or encode(*words, **options),
    )
    for size in (1, 3):
        teacher.batch_size = size
        encoded.clear()
        np.testing.assert_allclose(run(teacher, inputs, vocabulary), expected, atol=1e-5)
        assert len(encoded) == 4, "the blank image's are kept"
    image, pairs = inputs
    other = TeacherImage("2.jpg", image.pixels.rotate(90), image.region_boxes, image.region_indices)
    both = [([image, other], [pairs, pairs])]
    ((found, _),) = load(folders["qwen2_5_vl"], score="likelihood").score_batches(both, vocabulary)
    np.testing.assert_array_equal(found[:5], expected)
    assert np.abs(found[5:] - expected).max() > 1e-2


@pytest.mark.parametrize("score", ["yes-no", "likelihood"])
def test_an_emulated_gpu_gives_the_same(folders, inputs, vocabulary, emulate_cuda, score):
    """Not with Qwen, whose code in transformers asks for a driver that is not there."""
    expected = run(load(folders["idefics3"], score=score), inputs, vocabulary)
    image, pairs = inputs
    with emulate_cuda() as gpu:
        teacher = load(folders["idefics3"], torch.device("cuda", 0), score=score)
        found = run(teacher, (image, pairs), vocabulary)
    assert gpu.kernels.total() > 0
    # Regions are resized by torch there, with grey levels that differ by 1 at most.
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_the_fingerprint(folders, folder):
    first = load(folders["qwen2_5_vl"]).fingerprint_parts()
    assert first["teacher"] == "vlm" and first["teacher.model"] == "qwen2_5_vl"
    assert first["teacher.question"] == QUESTIONS["yes-no", "region"]
    # A copy, and settings that equal the defaults.
    same = load(folder, score="yes-no", image="region", temperature=1).fingerprint_parts()
    assert same == first and json.dumps(first)
    for name, value in {
        "score": "likelihood",
        "image": "boxes",
        "question": "{ing} {object}?",
        "size": 84,
        "precision": "bfloat16",
    }.items():
        assert load(folder, **{name: value}).fingerprint_parts()[f"teacher.{name}"] == value
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "brief"))
    changed = load(folder).fingerprint_parts()
    assert {name for name in first if first[name] != changed[name]} == {"teacher.configuration"}


def test_a_temperature_divides_the_log_odds(folders, inputs, vocabulary):
    plain, divided = (
        run(load(folders["qwen2_5_vl"], temperature=value), inputs, vocabulary)[0]
        for value in (1, 2)
    )
    asked = plain > 0
    odds = [np.log(each[asked] / (1 - each[asked])) for each in (plain, divided)]
    np.testing.assert_allclose(odds[1], odds[0] / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for x in %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        ("hello", "(Found total 0|tokens: 0)"),
        ("{{ messages[0].content[1].text }}<image>", "ValueError"),
    ],
)
def test_chat_templates_that_fail(folder, inputs, vocabulary, template, text):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=f"--teacher-set: model: expected an image-.*{text}") as no:
        run(load(folder), inputs, vocabulary)
    assert "\n" not in str(no.value)


def drop_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("edit", "settings", "text"),
    [
        (drop_template, {}, "it has no chat template"),
        (lambda folder: (folder / "config.json").unlink(), {}, "image-text-to-text model of tr"),
        (lambda folder: (folder / "model.safetensors").unlink(), {}, "image-text-to-text model"),
        (None, {"model": "owner/absent"}, "found owner/absent"),
        (None, {"score": "maybe"}, "score: expected .*found maybe"),
        (None, {"image": "crop"}, "image: expected .*found crop"),
        (None, {"precision": "int4"}, "precision: expected .*found int4"),
        (None, {"question": "Is it?"}, "question: expected a text with {ing} and {object}, found"),
        (None, {"question": "{", "score": "likelihood"}, "question: expected a text with {object}"),
        (
            None,
            {"phrase": "{ing}", "score": "likelihood"},
            "phrase: expected a text with {ing} and {object}, found",
        ),
        (None, {"phrase": "{object} {ing}"}, "phrase: expected none with the score yes-no"),
        (None, {"temperature": 0}, "temperature: expected a number above 0, found 0"),
        (None, {"temperature": "inf"}, "temperature: expected a number above 0, found inf"),
        (None, {"size": 8}, "size: expected a whole number from 32 to 4096, found 8"),
        (None, {"revision": "v2"}, "model: expected no revision of the folder .*, found v2"),
        (None, {"height": 8}, r"\(model, score, image, .*, found height"),
    ],
)
def test_wrong_models_and_settings(folder, edit, settings, text):
    if edit is not None:
        edit(folder)
    with pytest.raises(InputError, match=text) as caught:
        load(folder, **settings)
    assert "--teacher-set" in str(caught.value) and "\n" not in str(caught.value)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"--teacher-set: model: .*pip install '\.\[hf\]'"):
        load("owner/name")


def test_models_that_cannot_continue_a_prefix_are_refused(folders, inputs, vocabulary, monkeypatch):
    teacher = load(folders["qwen2_5_vl"])
    forward = teacher._forward

    def shifted(cache, **inputs):
        """As of a model that numbers the tokens in another way."""
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"] + 7
        return forward(cache, **inputs)

    monkeypatch.setattr(teacher, "_forward", shifted)
    with pytest.raises(InputError, match=r"found .*qwen2_5_vl \(.*a cached prefix differ"):
        run(teacher, inputs, vocabulary)
    monkeypatch.setattr(teacher, "_forward", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match="ZeroDivisionError"):
        run(teacher, inputs, vocabulary)


def test_images_with_boxes():
    image = Image.new("RGB", (2000, 6), "white")
    drawn = draw_pair(image, np.array([0, 0, 500, 6]), np.array([1000, 0, 1999, 6]), 448)
    assert drawn.size == (448, 28)
    pixels = np.asarray(drawn)
    assert pixels[14, 0].tolist() == [255, 0, 0] and pixels[14, 447].tolist() == [0, 0, 255]


command = partial(run_command, main, "eoid-cache")


def words(dataset, folder, out, *more):
    settings = {"model": folder, "size": SIZE, "precision": "float32"}
    options = [f"--teacher-set={name}={value}" for name, value in settings.items()]
    options += ["--candidates", "annotated", "--limit", 4, "--images-per-shard", 2]
    options += ["--device", "cpu", "--set", "threads=1", "--teacher", "vlm"]
    return ["build", dataset, "--out", out, *options, *more]


def test_a_build_is_resumed_and_repaired(shared_dataset, folders, tmp_path, contents):
    out = tmp_path / "cache"
    build = words(shared_dataset, folders["qwen2_5_vl"], out)
    done = command(*build)
    assert done.returncode == 0, done.stderr
    opened, before = open_cache(out), contents(out)
    assert opened.probabilities == "independent" and opened.manifest["parts"]["teacher"] == "vlm"
    assert np.ptp([opened[name].probabilities.max() for name in opened.image_ids]) > 0
    (out / "shards/00001.h5").unlink()
    (out / "manifest.json").unlink()
    done = command(*build, "--teacher-set=score=likelihood")
    assert done.returncode == 2 and "teacher.score: yes-no, now likelihood" in done.stderr
    done = command(*build)
    assert done.returncode == 0 and "resuming" in done.stderr, done.stderr
    assert contents(out) == before
    shard = out / "shards/00000.h5"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert command("verify", out, "--repair").returncode == 0
    assert contents(out) == before
    done = command("rescore", out, "--temperature", 1, "--out", tmp_path / "other")
    assert done.returncode == 2 and "vlm has no text encoder" in done.stderr


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(shared_dataset, folders, tmp_path, contents):
    for out, more in {"one": (), "two": ("--workers", 2)}.items():
        build = words(shared_dataset, folders["qwen2_5_vl"], tmp_path / out, *more)
        assert command(*build, "--teacher-set=score=likelihood").returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_interrupted_and_shared_builds(shared_dataset, folders, build_config, check_interruptions):
    settings = (f"model={folders['qwen2_5_vl']}", f"size={SIZE}", "precision=float32")
    config = build_config(
        shared_dataset,
        candidates="annotated",
        limit=4,
        images_per_shard=2,
        threads=1,
        teacher="vlm",
        teacher_settings=settings,
    )
    check_interruptions(config)
