import pytest
import torch

from student.config import ModelConfig
from student.models.transformer import Decoder, Encoder

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


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_changes_nothing(pre_norm):
    """What stands in padded places, and that they are there at all, reaches no output."""
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


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_layer_passes_the_last_norm(pre_norm):
    encoder, decoder = make(pre_norm)
    memory = encoder(sequence(6, 0), sequence(6, 1), None)
    layers = decoder(sequence(3, 2), sequence(3, 3), memory, sequence(6, 1), None)
    assert layers.shape == (3, 2, 3, D)
    torch.testing.assert_close(layers.mean(-1), torch.zeros(3, 2, 3), rtol=0, atol=1e-5)


def test_an_encoder_without_layers_passes_its_input():
    encoder, _ = make(num_encoder_layers=0)
    tokens = sequence(6, 0)
    assert encoder(tokens, sequence(6, 1), None) is tokens


def test_queries_of_an_image_do_not_see_other_images():
    _, decoder = make()
    memory, target, queries = sequence(6, 0), sequence(3, 2), sequence(3, 3)
    both = decoder(target, queries, memory, sequence(6, 1), None)
    memory[1] = 0
    torch.testing.assert_close(
        decoder(target, queries, memory, sequence(6, 1), None)[:, 0], both[:, 0]
    )
