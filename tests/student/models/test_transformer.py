import pytest
import torch

from student.config import ModelConfig
from student.models.transformer import Attention, Decoder, Encoder, SinePositionEncoding

D = 16


def make(pre_norm=False, num_encoder_layers=2):
    torch.manual_seed(0)
    config = ModelConfig(
        hidden_dim=D,
        num_heads=4,
        feedforward_dim=32,
        num_encoder_layers=num_encoder_layers,
        pre_norm=pre_norm,
    )
    return Encoder(config).eval(), Decoder(config, num_layers=3).eval()


def sequence(length, seed):
    return torch.randn(2, length, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_torchs(padded):
    attention = Attention(ModelConfig(hidden_dim=D, num_heads=4, dropout=0.1))
    torch.nn.init.normal_(attention.in_proj_bias)
    queries, keys, values = (torch.randn(2, length, D) for length in (5, 7, 7))
    mask = torch.arange(7).expand(2, 7) >= 4 if padded else None
    # In training, equal seeds drop the same entries.
    for training in (False, True):
        attention.train(training)
        found = []
        for forward in (Attention.forward, torch.nn.MultiheadAttention.forward):
            torch.manual_seed(0)
            found.append(forward(attention, queries, keys, values, mask))
        torch.testing.assert_close(found[0], found[1][0])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_changes_nothing(pre_norm):
    """Neither the values nor the number of padded tokens change the outputs."""
    encoder, decoder = make(pre_norm)
    tokens, positions = sequence(6, 0), sequence(6, 1)
    target, queries = sequence(3, 2), sequence(3, 3)

    def outputs(tokens, positions, padding):
        memory = encoder(tokens, positions, padding)
        return decoder(target, queries, memory, positions, padding)

    alone = outputs(tokens, positions, None)
    padding = torch.tensor([[False] * 6 + [True] * 3] * 2)
    for seed in (4, 5):
        longer = torch.cat([tokens, 100 * sequence(3, seed)], 1)
        places = torch.cat([positions, sequence(3, seed + 2)], 1)
        torch.testing.assert_close(outputs(longer, places, padding), alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_layers_returns_its_input():
    encoder, _ = make(num_encoder_layers=0)
    tokens = sequence(6, 0)
    assert encoder(tokens, sequence(6, 1), None) is tokens


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_position_encoding_does_not_depend_on_padding(size):
    height, width = size
    encode = SinePositionEncoding(16)
    padding = torch.ones(1, 6, 7, dtype=torch.bool)
    padding[0, :height, :width] = False
    padded = encode(torch.zeros(1, 1, 6, 7), padding)[..., :height, :width]
    torch.testing.assert_close(padded, encode(torch.zeros(1, 1, height, width), None))
    assert torch.isfinite(padded).all()
