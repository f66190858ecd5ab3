import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from pipeline.splits import load_split
from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary, normalise_name
from student.config import Recipe
from student.weights.checkpoint_file import Checkpoint, save_checkpoint
from student.weights.pretrained import LoadReport, load_backbone, load_pretrained
from student.weights.published import to_published

HICO = load_vocabulary("hico-det")
COCO_IDS = list(HICO.category_ids)


@pytest.fixture(scope="module")
def config(small_config):
    """A small student of HICO-DET's classes."""
    return replace(small_config, num_objects=HICO.num_objects, num_verbs=HICO.num_verbs)


@pytest.fixture
def start(tmp_path, build):
    """`start(config, content, name=, vocabulary=)` returns model, report and content."""

    def make(config, content, name="start.pth", vocabulary=HICO):
        model = build(config)
        (save_file if name.endswith(".safetensors") else torch.save)(content, tmp_path / name)
        return model, load_pretrained(model, tmp_path / name, vocabulary), content

    return make


def assert_complete(report, entries, model):
    """Every tensor of the file is used or unused, every parameter loaded or missing."""
    assert report.used.keys() | report.unused.keys() == set(entries)
    assert not report.used.keys() & report.unused.keys()
    loaded = [name for names in report.used.values() for name in names]
    assert len(set(loaded)) == len(loaded)
    assert sorted([*loaded, *report.missing]) == sorted(model.state_dict())


# DETR's parts, and the student's parts that they initialise (EoID 3.1).
FROM_DETR = {
    "backbone.0.body.": ["backbone.body."],
    "input_proj.": ["input_projection."],
    "transformer.encoder.": ["encoder."],
    "transformer.decoder.": ["human_object_decoder.", "interaction_decoder."],
    "bbox_embed.layers.0.": ["human_box_head.0.", "object_box_head.0."],
    "bbox_embed.layers.1.": ["human_box_head.3.", "object_box_head.3."],
    "bbox_embed.layers.2.": ["human_box_head.6.", "object_box_head.6."],
}


def expected_from_detr(state, config):
    """The student's parameters that DETR's initialise."""
    found = {"query_source.embedding.weight": state["query_embed.weight"][: config.num_queries]}
    for name, value in state.items():
        if name.startswith("class_embed."):
            found[name.replace("class_embed", "object_head")] = value[[*COCO_IDS, 91]]
        for part, ours in FROM_DETR.items():
            inside = name.removeprefix(part)
            inside = inside.replace("multihead_attn", "cross_attention")
            inside = inside.replace("self_attn", "self_attention")
            if name.startswith(part):
                found |= dict.fromkeys([own + inside for own in ours], value)
    return found


@pytest.mark.parametrize("pre_norm", [False, True])
def test_detr_initialises_both_decoders_and_both_box_heads(
    start, build, config, detr_state, pre_norm
):
    config = replace(config, pre_norm=pre_norm, num_human_object_layers=3)
    state = detr_state(pre_norm=pre_norm)
    model, report, _ = start(config, {"model": state})
    assert_complete(report, state, model)
    expected, before = expected_from_detr(state, config), build(config).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.get(name, before[name])), name
    assert set(report.missing) == {
        f"{head}.{kind}"
        for head in ("verb_head", "interactive_head")
        for kind in ("weight", "bias")
    }
    beyond = {"encoder": config.num_encoder_layers, "decoder": 3}
    left = {
        name
        for name in state
        for part, count in beyond.items()
        for number in range(count, 6)
        if name.startswith(f"transformer.{part}.layers.{number}.")
    }
    assert set(report.unused) == left
    assert set(report.unused.values()) == {"the student has fewer layers"}
    assert report.partial == {
        "query_source.embedding": "6 of 100 rows",
        "object_head": "81 of 92 rows",
    }
    assert "\n".join(report.lines()).count("\n") == 5


def test_object_rows_are_matched_by_name(start, config, detr_state, vocabulary):
    """And rows of queries by position."""
    small = replace(config, num_objects=9, num_verbs=11, num_queries=9)
    model, report, state = start(small, detr_state(queries=4), vocabulary=vocabulary)
    queries = model.query_source.embedding.weight
    assert torch.equal(queries[:4], state["query_embed.weight"])
    assert not torch.equal(queries[4:5], queries[:1])
    assert report.partial["query_source.embedding"] == "4 of 9 rows found among 4"
    rows = {"person": 1, "horse": 19, "dog": 18, "umbrella": 28, "skateboard": 41, "chair": 62}
    for name, row in rows.items():
        weight = model.object_head.weight[vocabulary.objects.index(name)]
        assert torch.equal(weight, state["class_embed.weight"][row])
    assert torch.equal(model.object_head.bias[-1], state["class_embed.bias"][91])
    assert report.partial["object_head"] == "7 of 10 rows found among 92, none for bike, ball, box"


@pytest.mark.parametrize("rows", [4, 81])
def test_a_detr_with_other_classes_initialises_no_object_rows(start, config, detr_state, rows):
    state = detr_state()
    state["class_embed.weight"], state["class_embed.bias"] = torch.ones(rows, 32), torch.ones(rows)
    model, report, _ = start(config, {"model_state_dict": state, "epoch": 3})
    share = report.partial["object_head"]
    assert share.startswith(f"1 of 81 rows found among {rows}, none for person")
    assert torch.equal(model.object_head.weight[-1], torch.ones(32))
    assert not (model.object_head.weight[:-1] == 1).any()


def test_a_converted_detr_initialises_missing_parts_by_fallback(start, config, detr_state):
    """The published conversion script adds keys to DETR's, one of them misspelt."""
    state = detr_state()
    for name in [name for name in state if "decoder" in name]:
        state[name.replace("decoder", "stage2_decoder")] = torch.zeros(())
    for name in [name for name in state if name.startswith("bbox_embed")]:
        for head in ("sub", "obj"):
            state[f"{head}_{name}"] = state[name] + 1
    for kind in ("weight", "bias"):
        rows = state[f"class_embed.{kind}"][[*COCO_IDS, 91]]
        state[f"obj_class_embed.{kind}"] = rows + 1
    model, report, _ = start(config, {"model": state})
    assert_complete(report, state, model)
    decoder = "transformer.decoder.layers.0.linear1.weight"
    assert torch.equal(model.interaction_decoder.layers[0].linear1.weight, state[decoder])
    assert torch.equal(model.human_box_head[0].bias, state["sub_bbox_embed.layers.0.bias"])
    assert torch.equal(model.object_head.bias, state["obj_class_embed.bias"])
    unused = {name.split(".")[0] for name in report.unused}
    assert unused == {"class_embed", "bbox_embed", "transformer"}
    assert "transformer.stage2_decoder.norm.weight" in report.unused


def test_wrapper_prefixes_are_removed(start, config, detr_state):
    state = detr_state()
    wrapped = {"module.detr." + name: value for name, value in state.items()}
    wrapped["bbox_attention.q_linear.weight"] = torch.ones(2)
    model, report, _ = start(config, {"model": wrapped})
    assert_complete(report, wrapped, model)
    assert torch.equal(model.input_projection.bias, state["input_proj.bias"])
    assert report.unused["bbox_attention.q_linear.weight"] == "the student has no such part"


def published(model, **more):
    return {"model": to_published(model.state_dict()), **more}


def test_a_published_model_is_loaded_completely(start, build, config):
    config = replace(config, matching_head=True)
    source = build(config, seed=5)
    arguments = argparse.Namespace(nheads=8, lr=1e-4)
    model, report, content = start(config, published(source, epoch=3, args=arguments))
    assert_complete(report, content["model"], model)
    assert not report.missing and not report.unused and not report.partial
    assert report.kind == "an EoID or CDN checkpoint"
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_smaller_and_a_larger_student_from_a_published_one(start, build, config):
    source = build(replace(config, num_interaction_layers=1, matching_head=True), seed=5)
    model, report, content = start(config, published(source))
    assert_complete(report, content["model"], model)
    assert {name.split(".")[0] for name in report.unused} == {"matching_embed"}
    assert {name.rsplit(".layers.")[0] for name in report.missing} == {"interaction_decoder"}
    assert all(".layers.1." in name for name in report.missing)


def test_a_v_coco_model_has_one_object_more_and_other_verbs(start, build, config):
    source = build(replace(config, num_objects=81, num_verbs=29), seed=5)
    model, report, _ = start(config, published(source))
    assert torch.equal(model.object_head.weight[:80], source.object_head.weight[:80])
    assert torch.equal(model.object_head.weight[80], source.object_head.weight[81])
    assert report.partial["object_head"] == "81 of 82 rows"
    walk = HICO.verbs.index("run"), load_vocabulary("vcoco").verbs.index("run")
    assert torch.equal(model.verb_head.bias[walk[0]], source.verb_head.bias[walk[1]])
    assert "of 117 rows found among 29, none for " in report.partial["verb_head"]


def save_run(path, model, vocabulary, split="ua"):
    recipe = Recipe(model.config)
    weights = model.state_dict()
    save_checkpoint(
        path, Checkpoint(recipe, vocabulary, load_split(vocabulary, split), weights, {})
    )


@pytest.fixture(scope="module")
def toy(vocabulary, toy_config):
    """The toy student for its whole vocabulary."""
    return replace(toy_config, num_objects=vocabulary.num_objects, num_verbs=vocabulary.num_verbs)


def test_a_run_is_loaded_completely(build, toy, vocabulary, tmp_path):
    source, model = build(toy, seed=5), build(toy)
    save_run(tmp_path / "checkpoint.pt", source, vocabulary)
    report = load_pretrained(model, tmp_path / "checkpoint.pt", vocabulary)
    assert not report.missing and not report.unused and not report.partial
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_run_with_another_vocabulary(build, toy, vocabulary, tmp_path):
    source = build(toy, seed=5)
    save_run(tmp_path / "checkpoint.pt", source, vocabulary)
    objects = ("dog", "person", "car")
    other = replace(vocabulary, objects=objects, verbs=(*vocabulary.verbs[::-1], "sell"))
    model = build(replace(toy, num_objects=3, person=1, num_verbs=12))
    initial = model.verb_head.weight[-1].clone()
    report = load_pretrained(model, tmp_path, other)
    dog = vocabulary.objects.index("dog")
    assert torch.equal(model.object_head.weight[0], source.object_head.weight[dog])
    assert torch.equal(model.query_source.label.weight[0], source.query_source.label.weight[dog])
    assert torch.equal(model.object_head.weight[-1], source.object_head.weight[-1])
    assert torch.equal(model.verb_head.weight[:-1], source.verb_head.weight.flip(0))
    assert torch.equal(model.verb_head.weight[-1], initial)
    assert report.partial["verb_head"] == "11 of 12 rows found among 11, none for sell"
    assert report.partial["query_source.head.object_logits"].endswith("none for car")


def test_rows_of_names_that_differ_in_case_only(build, toy, vocabulary, tmp_path):
    """SWIG-HOI has the objects "Crown" and "crown"."""
    objects = (vocabulary.objects[0], "Crown", *vocabulary.objects[2:-1], "crown")
    verbs = ("Lift", *vocabulary.verbs[1:-1], "lift")
    own = replace(vocabulary, objects=objects, verbs=verbs)
    source, model = build(toy, seed=5), build(toy)
    save_run(tmp_path / "checkpoint.pt", source, own)
    report = load_pretrained(model, tmp_path / "checkpoint.pt", own)
    assert not report.partial
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


# Names that the vocabulary of the photographs shares with those of the toy dataset and HICO-DET.
PHOTOS = load_vocabulary(Path(__file__).parents[2] / "data/photos/vocabulary.json")
SHARED = {
    "toy": (
        {"person", "horse", "dog", "umbrella", "skateboard", "chair"},
        {"carry", "hold", "jump", "ride", "sit_on"},
    ),
    "hico-det": (
        set(PHOTOS.objects),
        {"carry", "cut", "eat", "hold", "jump", "ride", "sit_on", "wear"},
    ),
}


def assert_rows_by_name(new, old, initial, names, old_names, expected, suffix=()):
    """Rows of a shared name are the old ones, others the initial ones; then `suffix` rows."""
    found = {normalise_name(name): row for row, name in enumerate(old_names)}
    shared = set()
    for row, name in enumerate(names):
        if normalise_name(name) in found:
            shared.add(name)
            assert torch.equal(new[row], old[found[normalise_name(name)]]), name
        else:
            assert torch.equal(new[row], initial[row]), name
    assert shared == expected
    assert len(new) == len(names) + len(suffix)
    assert all(torch.equal(new[row], old[row]) for row in suffix)


@pytest.mark.parametrize("source_name", ["toy", "hico-det"])
@pytest.mark.parametrize("queries", ["learned", "proposals"])
def test_rows_of_equal_names_serve_the_photographs(build, toy, queries, source_name, tmp_path):
    """A student of other classes starts a run on the photographs, whatever its queries."""
    theirs = load_vocabulary(source_name)
    sizes = {"queries": queries, "num_objects": theirs.num_objects, "num_verbs": theirs.num_verbs}
    source = build(replace(toy, **sizes), seed=5)
    save_run(tmp_path / "checkpoint.pt", source, theirs, "full")
    ours = {**sizes, "num_objects": PHOTOS.num_objects, "num_verbs": PHOTOS.num_verbs}
    model = build(replace(toy, **ours))
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_pretrained(model, tmp_path, PHOTOS)
    old, new = source.state_dict(), model.state_dict()
    objects, verbs = SHARED[source_name]
    by_object = {"object_head.weight": (-1,), "object_head.bias": (-1,)}
    if queries == "proposals":
        by_object |= dict.fromkeys(
            f"query_source.{part}"
            for part in ("label.weight", "head.object_logits.weight", "head.object_logits.bias")
        )
    for name, suffix in by_object.items():
        rows = (new[name], old[name], initial[name])
        assert_rows_by_name(*rows, PHOTOS.objects, theirs.objects, objects, suffix or ())
    for name in ("verb_head.weight", "verb_head.bias"):
        rows = (new[name], old[name], initial[name])
        assert_rows_by_name(*rows, PHOTOS.verbs, theirs.verbs, verbs)
    by_class = {*by_object, "verb_head.weight", "verb_head.bias"}
    for name in new.keys() - by_class:
        assert torch.equal(new[name], old[name]), name
    share = f"{len(verbs)} of {PHOTOS.num_verbs} rows found among {theirs.num_verbs}, none for "
    assert report.partial["verb_head"].startswith(share)
    assert not report.missing and not report.unused


def test_a_published_student_serves_the_photographs(start, build, config):
    """Rows of HICO-DET's objects and verbs; a verb that HICO-DET lacks stays random."""
    source = build(config, seed=5)
    ours = replace(config, num_objects=PHOTOS.num_objects, num_verbs=PHOTOS.num_verbs)
    initial = {name: value.clone() for name, value in build(ours).state_dict().items()}
    model, report, _ = start(ours, published(source), vocabulary=PHOTOS)
    assert report.kind == "an EoID or CDN checkpoint"
    old, new = source.state_dict(), model.state_dict()
    objects, verbs = SHARED["hico-det"]
    for kind in ("weight", "bias"):
        name = f"object_head.{kind}"
        rows = (new[name], old[name], initial[name])
        assert_rows_by_name(*rows, PHOTOS.objects, HICO.objects, objects, (-1,))
        name = f"verb_head.{kind}"
        rows = (new[name], old[name], initial[name])
        assert_rows_by_name(*rows, PHOTOS.verbs, HICO.verbs, verbs)
    share = "8 of 10 rows found among 117, none for look_at, touch"
    assert report.partial == {"verb_head": share} and not report.missing


def test_box_heads_of_learned_queries_are_not_used_for_proposals(start, build, config, detr_state):
    pairs = replace(config, queries="proposals")
    model, report, state = start(pairs, detr_state())
    assert_complete(report, state, model)
    before = build(pairs).state_dict()
    for name in ("human_box_head.0.weight", "object_box_head.6.bias"):
        assert torch.equal(model.state_dict()[name], before[name])
    reasons = {name: reason for name, reason in report.unused.items() if name.startswith("bbox")}
    assert set(reasons.values()) == {"trained for boxes of learned queries"} and len(reasons) == 6
    assert report.unused["query_embed.weight"] == "the student has no such part"


def resnet(name):
    torch.manual_seed(1)
    return torchvision.models.get_model(name).state_dict()


def detector(name):
    """State of a detector, as far as its backbone goes, and a head."""
    torch.manual_seed(1)
    body = (
        SingleFeatureMap(ToyBackbone())
        if name == "toy"
        else resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=FrozenBatchNorm2d)
    )
    state = {f"backbone.{key}": value for key, value in body.state_dict().items()}
    return {**state, "roi_heads.box_predictor.bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("make", "name", "prefix", "ending"),
    [
        (resnet, "resnet18", "", ".pth"),
        (detector, "resnet18", "backbone.body.", ".safetensors"),
        (detector, "toy", "backbone.body.", ".pth"),
    ],
)
def test_a_backbone_alone(start, build, small_config, toy_config, make, name, prefix, ending):
    config = toy_config if name == "toy" else small_config
    before = build(config).state_dict()
    model, report, state = start(config, make(name), f"start{ending}")
    assert_complete(report, state, model)
    for key, value in model.state_dict().items():
        if key.startswith("backbone."):
            theirs = key.removeprefix("backbone.").removeprefix("body.")
            assert torch.equal(value, state[prefix + theirs]), key
        else:
            assert torch.equal(value, before[key]), key
    counters = [key for key in report.unused if key.endswith("num_batches_tracked")]
    assert bool(counters) == (make is resnet or name == "toy")
    assert {report.unused[key] for key in counters} <= {"frozen batch norm has no batch counter"}


def cut(state):
    name = next(name for name in state if name.endswith("weight") and state[name].ndim == 4)
    state[name] = state[name][:1].clone()
    return state


def diverged(state):
    state["backbone.body.conv1.weight"].flatten()[[3, 7]] = torch.tensor([torch.nan, -torch.inf])
    return state


@pytest.fixture(scope="module")
def untouched(build, config):
    """A student that no test changes, and a copy of its weights."""
    model = build(config)
    return model, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda _: {}, r"start\.pth: expected.*found 0 tensors \(none\)"),
        (lambda _: {"a": torch.ones(1)}, r"found 1 tensors \(a\)"),
        (lambda _: {"epoch": 3}, r"epoch: expected.*found int"),
        (lambda _: [1], r"content: expected.*found list"),
        (lambda detr: detr(d=64), "expected a model of hidden_dim 32, found hidden_dim 64"),
        (lambda detr: detr(feedforward=64), "of feedforward_dim 48, found feedforward_dim 64"),
        (lambda detr: detr(pre_norm=True), "of pre_norm False, found pre_norm True"),
        (lambda detr: detr("resnet34"), "of backbone resnet18, found backbone resnet34"),
        (lambda detr: {"model": detr(), "args": argparse.Namespace(nheads=4)}, "of num_heads 8"),
        (lambda detr: {"transformer.decoder.norm.weight": torch.ones(32)}, "a whole backbone"),
        (lambda _: resnet("resnet50"), "of backbone resnet18, found backbone resnet50"),
        (lambda _: detector("toy"), "of backbone resnet18, found backbone toy"),
        (lambda _: cut(detector("resnet18")), r"expected shape \[64, 3, 7, 7\], found \[1, 3"),
        (lambda _: diverged(detector("resnet18")), r"backbone\.body\.conv1\.weight: .* 2 of 9408"),
    ],
)
def test_a_refused_file_changes_nothing(tmp_path, untouched, detr_state, content, message):
    model, before = untouched
    torch.save(content(detr_state), tmp_path / "start.pth")
    with pytest.raises(InputError, match=message) as caught:
        load_pretrained(model, tmp_path / "start.pth", HICO)
    assert str(caught.value).startswith(f"{tmp_path / 'start.pth'}: ")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_missing_file(tmp_path, untouched):
    with pytest.raises(InputError, match=r"gone.pth: no such"):
        load_pretrained(untouched[0], tmp_path / "gone.pth", HICO)


def test_report():
    report = LoadReport(
        path=Path("weights/detr.pth"),
        kind="a DETR checkpoint",
        used={"decoder.bias": ["human_object_decoder.bias", "interaction_decoder.bias"]},
        partial={"object_head": "81 of 92 rows"},
        unused={"a.weight": "has fewer layers", "a.bias": "has fewer layers", "b.bias": "no part"},
        missing=("verb_head.weight", "verb_head.bias"),
    )
    for line, facts in zip(
        report.lines(),
        (
            "detr.pth, a DETR checkpoint: 1 of 4 tensors",
            "human_object_decoder 1, interaction_decoder 1",
            "object_head: 81 of 92 rows",
            "has fewer layers: a 2",
            "no part: b 1",
            "verb_head 2",
        ),
        strict=True,
    ):
        assert facts in line
    value = json.loads(json.dumps(report.to_dict()))
    assert value["file"] == "weights/detr.pth" and value["unused"] == report.unused
    assert value["used"] == report.used and value["random"] == list(report.missing)


TIMM_VIT = "timm:vit_base_patch16_siglip_224.webli"
BODY = "backbone.body."


@pytest.fixture
def vit(small_timm, build, small_config):
    """`vit(seed)` is a detector with a small ViT."""
    return lambda seed=0: build(replace(small_config, backbone=TIMM_VIT), seed)


@pytest.fixture
def vit_state(small_timm):
    """The whole state dict of the ViT, with the parts that a student does not have."""
    torch.manual_seed(5)
    return timm.create_model(TIMM_VIT.removeprefix("timm:"), dynamic_img_size=True).state_dict()


def assert_only_the_body_is(model, before, state):
    for name, value in model.state_dict().items():
        expected = state[name.removeprefix(BODY)] if name.startswith(BODY) else before[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("prefix", ["", "module.", "visual.trunk."])
def test_a_file_initialises_a_backbone_of_timm(vit, vit_state, tmp_path, prefix):
    """With timm's own names, or with those of open_clip."""
    model, file = vit(), tmp_path / "vit.safetensors"
    save_file({prefix + name: value for name, value in vit_state.items()}, file)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_backbone(model, str(file), HICO)
    assert_only_the_body_is(model, before, vit_state)
    assert report.kind == f"weights of {TIMM_VIT}" and report.has("backbone")
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert report.unused and all(name.startswith("attn_pool.") for name in report.unused)


def test_a_run_initialises_a_backbone_of_timm(vit, tiny_recipe, tmp_path):
    trained, model, file = vit(3), vit(), tmp_path / "run.pt"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = replace(tiny_recipe, model=trained.config)
    split = load_split(HICO, "ua")
    save_checkpoint(file, Checkpoint(recipe, HICO, split, trained.state_dict(), {}))
    report = load_backbone(model, str(file), HICO)
    bodies = {name.removeprefix(BODY): value for name, value in trained.state_dict().items()}
    assert_only_the_body_is(model, before, bodies)
    assert report.kind == "a student checkpoint"


def test_backbone_and_transformer_from_two_files(vit, build, config, detr_state, tmp_path):
    file, resnet_file = tmp_path / "detr.pth", tmp_path / "resnet.pth"
    state = detr_state()
    torch.save({"model": state}, file)
    torch.save(resnet("resnet18"), resnet_file)
    for name in (TIMM_VIT, "resnet18"):
        model = build(replace(config, backbone=name))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        report = load_pretrained(model, file, HICO, with_backbone=False)
        assert not report.has("backbone") and not any("backbone" in one for one in report.missing)
        reads_maps = "it belongs to another backbone"
        assert (report.unused.get("input_proj.weight") == reads_maps) == (name == TIMM_VIT)
        assert report.unused["backbone.0.body.conv1.weight"] == reads_maps
        encoder = "encoder.layers.0.linear1.weight"
        assert torch.equal(model.state_dict()[encoder], state[f"transformer.{encoder}"])
        for key, value in model.state_dict().items():
            assert not key.startswith("backbone.") or torch.equal(value, before[key])
    load_backbone(model, str(resnet_file), HICO)
    first = "backbone.body.conv1.weight"
    assert torch.equal(model.state_dict()[first], torch.load(resnet_file)["conv1.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda vit: {"a": torch.ones(1)}, r"expected a whole backbone, found no backbone\.body\."),
        (lambda vit: resnet("resnet18"), r"expected a whole backbone, found no backbone\.body\."),
        (lambda vit: {**vit, "norm.bias": torch.ones(7)}, r"norm\.bias: expected shape \[32\]"),
        (lambda vit: {**vit, "norm.bias": torch.full((32,), torch.nan)}, r"norm\.bias: .*NaN"),
        (lambda vit: {"visual.class_embedding": torch.ones(1)}, r"another architecture's|whole"),
    ],
)
def test_files_without_the_backbone_are_refused(vit, vit_state, tmp_path, content, message):
    model, file = vit(), tmp_path / "a.pth"
    torch.save(content(vit_state), file)
    with pytest.raises(InputError, match=rf"a\.pth: .*({message})") as error:
        load_backbone(model, str(file), HICO)
    assert "\n" not in str(error.value)


def test_default_weights_are_downloaded(vit, build, small_config, vit_state, monkeypatch):
    create_model = timm.create_model

    def download(name, pretrained, **options):
        model = create_model(name, pretrained=False, **options)
        if pretrained:
            model.load_state_dict(vit_state)
        return model

    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(timm, "create_model", download)
    load_backbone(model, "default", HICO)
    assert_only_the_body_is(model, before, vit_state)

    given = []

    def fetch(url, **options):
        given.append((url, options))
        return resnet("resnet18")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    assert load_backbone(build(small_config), "default", HICO).has("backbone")
    ((url, options),) = given
    assert "resnet18-f37072fd" in url and options["weights_only"] and options["check_hash"]

    def fail(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", fail)
    message = rf"--backbone-weights default: expected weights of {TIMM_VIT} .*\(no network at all\)"
    with pytest.raises(InputError, match=message):
        load_backbone(model, "default", HICO)
