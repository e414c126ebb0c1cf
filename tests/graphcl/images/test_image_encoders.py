"""The family of networks for images: one contract, no statistics, gradients everywhere."""

import pytest
import torch
from torch import nn

from graphcl.errors import GraphCLError
from graphcl.images import IMAGE_ENCODERS, ImageClassifier, ImageEncoder


def pictures(n=4, channels=3, size=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, channels, size, size, generator=rng) - 1


def encoder(kind, channels=3, width=4, out=12):
    torch.manual_seed(0)
    return ImageEncoder(kind, channels, width, out)


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
@pytest.mark.parametrize("size", [4, 8, 28, 32])
def test_images_of_any_size_become_embeddings_of_one_width(kind, size):
    assert encoder(kind, channels=1)(pictures(3, 1, size)).shape == (3, 12)


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_an_image_means_the_same_alone_and_among_others_in_both_modes(kind):
    """BatchNorm breaks this: a batch of one, and training, would give another embedding."""
    network = encoder(kind).double()
    x = pictures().double()
    together = network.train()(x)
    alone = torch.cat([network(one[None]) for one in x])
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(network.eval()(x), together)
    assert together.std(0).min() > 0  # and it does depend on the image


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_there_is_nothing_to_average_but_weights(kind):
    network = encoder(kind)
    assert list(network.buffers()) == []
    assert {name for name, _ in network.named_parameters()} == set(network.state_dict())


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_every_weight_learns(kind):
    network = encoder(kind)
    (network(pictures()) * torch.randn(4, 12)).sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_no_image_is_no_embedding(kind):
    assert encoder(kind)(pictures(0)).shape == (0, 12)


def test_features_are_brought_to_the_width_by_adaptive_average_pooling():
    network = encoder("resnet6", width=4, out=4)
    x = pictures()
    features = network.network(x)
    assert features.shape == (4, 8)
    torch.testing.assert_close(network(x), features.reshape(4, 4, 2).mean(2))


def test_the_networks_are_unlike_and_grow_with_the_width():
    def size(kind, width):
        return sum(weight.numel() for weight in encoder(kind, width=width).parameters())

    sizes = [size(kind, 8) for kind in IMAGE_ENCODERS]
    assert len(set(sizes)) == len(sizes)
    assert all(size(kind, 16) > size(kind, 8) for kind in IMAGE_ENCODERS)
    layers = [
        sum(isinstance(part, nn.Conv2d) for part in encoder(f"resnet{n}").modules())
        for n in (4, 6, 8, 10)
    ]
    # The first, two in every block, and one in the shortcut of every block but the first.
    assert layers == [3, 6, 9, 12]


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(GraphCLError, match="kind is 'vit', must be one of cnn, resnet4"):
        encoder("vit")


def test_the_head_reads_what_the_projector_makes():
    projector = nn.Linear(12, 12)
    model = ImageClassifier(encoder("cnn"), 12, 5, projector)
    out = model(pictures())
    torch.testing.assert_close(out.embedding, projector(model.encoder(pictures())))
    torch.testing.assert_close(out.logits, model.head(out.embedding))
    plain = ImageClassifier(model.encoder, 12, 5)(pictures())
    torch.testing.assert_close(plain.embedding, model.encoder(pictures()))
