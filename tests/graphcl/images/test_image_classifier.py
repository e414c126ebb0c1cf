"""A classifier of images: what it predicts, and that a stored one predicts the same."""

import pytest
import torch
from torch import nn

from graphcl.datasets import ImageSet, load_images
from graphcl.errors import GraphCLError
from graphcl.images import ImageClassifier, ImageEncoder
from graphcl.images import classifier as classifier_module
from graphcl.prototypes import DualBranchProjector, NearestPrototype


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images("digits").of(torch.arange(40))


def classifier(projector=None, channels=1, size=0) -> ImageClassifier:
    torch.manual_seed(0)
    model = ImageClassifier(ImageEncoder("resnet4", channels, 2, 6, size), 6, 10, projector)
    # Logits around 0, so that not all images are of one class.
    mean = model(2 * torch.rand(20, channels, 8, 8) - 1).embedding.mean(0)
    model.head.bias.data = -model.head.weight.data @ mean.detach()
    return model


def test_images_are_classified_in_blocks_by_the_head(digits, monkeypatch):
    model = classifier()
    expected = model(digits.x.float() / 127.5 - 1).logits.argmax(1)
    monkeypatch.setattr(classifier_module, "_BLOCK", 7)
    found = model.train().predict(digits)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 1
    assert not found.requires_grad


def test_prototypes_decide_where_there_are_some(digits):
    model = classifier()
    embedding = model(digits.pixels(torch.arange(10))).embedding.detach()
    model.prototypes = NearestPrototype(embedding, torch.arange(10) != 3)
    found = model.predict(digits.of(torch.arange(10)))
    others = torch.arange(10) != 3
    assert torch.equal(found[others], torch.arange(10)[others])
    assert found[3] != 3


@pytest.mark.parametrize("fuse", [None, "sum", "concat"])
@pytest.mark.parametrize("by_prototypes", [False, True])
def test_a_stored_classifier_predicts_the_same(digits, tmp_path, fuse, by_prototypes):
    projector = None if fuse is None else DualBranchProjector(6, fuse)
    model = classifier(projector)
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    if by_prototypes:
        values = torch.randn(10, 6)
        model.prototypes = NearestPrototype(values, torch.arange(10) < 8, temperature=0.3)
    model.save(tmp_path / "model.safetensors")
    again = ImageClassifier.load(tmp_path / "model.safetensors")
    assert torch.equal(again.predict(digits), model.predict(digits))
    assert again.encoder.arguments == model.encoder.arguments
    assert not again.training


def test_images_of_another_size_are_brought_to_that_of_training(digits, tmp_path):
    classifier(size=6).save(tmp_path / "model.safetensors")
    model = ImageClassifier.load(tmp_path / "model.safetensors")
    assert torch.equal(model.predict(digits), classifier().predict(digits.resized(6)))
    assert not torch.equal(model.predict(digits), classifier().predict(digits))


def test_what_does_not_fit_is_said(digits, tmp_path):
    with pytest.raises(GraphCLError, match="trained on images of 3 channels, these have 1"):
        classifier(channels=3).predict(digits)
    with pytest.raises(GraphCLError, match="a Linear behind an embedding cannot be stored"):
        classifier(nn.Linear(6, 6)).save(tmp_path / "model.safetensors")
    model = classifier()
    model.encoder.arguments["kind"] = "vit"
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(GraphCLError, match="no saved ImageClassifier: kind is 'vit', must be"):
        ImageClassifier.load(tmp_path / "model.safetensors")
