"""Small models of transformers with random weights and a tokenizer of bytes, saved as on the hub."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.reader.soft_targets import object_actions
from teacher_cache.teachers.base import TeacherImage
from teacher_cache.teachers.load import TeacherConfig, load_teacher
from teacher_cache.teachers.vlm import QUESTIONS, draw_pair

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
tokenizers = pytest.importorskip("tokenizers")

CPU = torch.device("cpu")
SIZE = 56
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Larger than usual, so that the outputs differ clearly from input to input.
    "initializer_range": 0.3,
}
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
QWEN_TOKENS += ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>")
QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TOKENS = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>")
IDEFICS_TOKENS += ("<global-img>", "<pad>")
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}User:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def make_tokenizer(special, merges=("Ye s", "N o", "ye s", "n o", "Y e", "y e"), **options):
    """A tokenizer of bytes that has tokens for the two answers."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(each.split()) for each in sorted(merges, key=len)]
    names = [*letters, *map("".join, merges), *special]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(each, special=True) for each in special])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def make_qwen(merges=("Ye s", "N o", "ye s", "n o", "Y e", "y e")):
    tokenizer = make_tokenizer(QWEN_TOKENS, merges, pad_token="<|endoftext|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_TOKENS}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )
    return model, processor


def make_idefics3():
    """SmolVLM is the same model with another processor, which needs the package num2words."""
    tokenizer = make_tokenizer(
        IDEFICS_TOKENS,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
    )
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "initializer_range": 0.3,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    model = transformers.Idefics3ForConditionalGeneration(config)
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, do_image_splitting=False
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    )
    return model, processor


MAKERS = {"qwen2_5_vl": make_qwen, "idefics3": make_idefics3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the models, by their architecture."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, make in MAKERS.items():
            for part in make():
                part.save_pretrained(root / name)
    return {name: root / name for name in MAKERS}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def load(folder, **settings):
    settings = {"model": folder, "size": SIZE, "precision": "float32", **settings}
    texts = tuple((name, str(value)) for name, value in settings.items())
    return load_teacher(TeacherConfig("vlm", texts), CPU)


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


def plain_pass(folder, picture, question, answer=""):
    """Log-probabilities after each token of one pass of transformers' own model, and the ids."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
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
        for words in (("yes", "Yes"), ("no", "No"))
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
