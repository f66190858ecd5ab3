import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160), (32, 16)])
def test_feature_maps_have_their_strides_and_channels(height, width):
    body = ToyBackbone().eval()
    maps = body(torch.rand(2, 3, height, width))
    assert list(maps) == ["stride4", "stride8", "stride16"]
    for name, value in maps.items():
        stride = int(name.removeprefix("stride"))
        assert value.shape == (2, body.num_channels[name], height // stride, width // stride)


def test_detectors_use_the_map_of_stride_8():
    body = ToyBackbone().eval()
    single = SingleFeatureMap(body)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(single(image), body(image)["stride8"])
    assert single(image).shape[1] == single.out_channels


def test_frozen_batch_norm_loads_trained_statistics():
    trained = ToyBackbone()
    trained(torch.rand(4, 3, 64, 64))
    trained.eval()
    frozen = ToyBackbone(norm=FrozenBatchNorm2d)
    state = {name: value for name, value in trained.state_dict().items() if "num_batch" not in name}
    frozen.load_state_dict(state)
    image = torch.rand(1, 3, 64, 64)
    for first, second in zip(trained(image).values(), frozen(image).values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert not any("running" in name for name, _ in frozen.named_parameters())
