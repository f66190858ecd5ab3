import pytest

from student.models.backbone import count_layers, find_resnet_blocks, identify_resnet


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([], 0),
        (["layers.0.bias", "layers.1.bias", "layers.1.weight"], 2),
        (["layers.10.bias"], 11),
        (["others.3.bias", "layers.x.bias", "layers.4"], 0),
    ],
)
def test_layers_are_counted(names, count):
    assert count_layers(names, "layers.") == count


def names(blocks, last):
    return [
        f"layer{stage}.{block}.{last}.weight"
        for stage, count in enumerate(blocks, 1)
        for block in range(count)
    ]


@pytest.mark.parametrize(
    ("blocks", "last", "name"),
    [
        ((2, 2, 2, 2), "conv2", "resnet18"),
        ((3, 4, 6, 3), "conv2", "resnet34"),
        ((3, 4, 6, 3), "conv3", "resnet50"),
        ((3, 4, 23, 3), "conv3", "resnet101"),
        ((3, 8, 36, 3), "conv3", None),
        ((2, 2, 2, 0), "conv2", None),
    ],
)
def test_blocks_tell_the_resnet(blocks, last, name):
    assert identify_resnet(names(blocks, last)) == name
    kind = "bottleneck" if last == "conv3" else "basic"
    assert find_resnet_blocks(names(blocks, last)) == (kind, blocks)
