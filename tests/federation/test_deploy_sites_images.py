"""Nodes that bring their own images: the same run, the same classes, one size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_nodes import EdgeGrid, answered, as_sites, compared, served
from PIL import Image

from federation.deploy.split import split
from federation.learners import clients_of
from graphcl.datasets import load_images, save_images
from graphcl.errors import ConfigError
from simulations.carriers.local import LocalGrid

IMAGES = {
    "task.name": "images",
    "data.source": "digits",
    "data.images.size": 6,
    "partition.classes": 4,
    "partition.scheme": "pathological",
    "model.encoders": "cnn",
    "model.hidden_channels": 1,
    "images.batch_size": 64,
}


@pytest.mark.parametrize(
    ("strategy", "encoders"), [("fedavg", "mobilenet"), ("feddbp", "cnn, resnet4, googlenet")]
)
def test_images(tiny, tmp_path, new_process, strategy, encoders):
    compared(tiny(strategy, **{**IMAGES, "model.encoders": encoders}), tmp_path, new_process)


def test_a_split_of_images_is_what_the_clients_hold(tiny, tmp_path):
    """With the names of all classes, of which a client has four here."""
    experiment = tiny(**IMAGES)
    natural, data = as_sites(experiment, tmp_path / "sites")
    assert natural.data.images.class_names == list("0123456789")
    albums = clients_of(experiment).albums
    for one, other, place in zip(albums, clients_of(natural).albums, data, strict=True):
        [file] = Path(place).iterdir()
        stored = load_images(file)
        assert torch.equal(stored.x, one.images.x[one.rows])
        assert torch.equal(stored.y, one.images.y[one.rows])
        assert len(stored.y.unique()) == 4
        assert stored.class_names == tuple("0123456789")
        assert torch.equal(other.images.y[other.rows], stored.y)
        for split_name, mask in one.masks.items():
            assert torch.equal(other.masks[split_name], mask)


@pytest.fixture
def pictures(tiny, tmp_path):
    """A natural experiment on images, and where the first of its nodes has its own."""
    return as_sites(tiny("fedproto", **IMAGES), tmp_path / "sites")


@pytest.mark.parametrize("key", ["classes", "size"])
def test_a_node_is_told_of_classes_and_size_of_the_images(pictures, key):
    experiment, [place, *_] = pictures
    unset = {"classes": "", "size": 0}[key]
    why = answered(experiment.override({f"data.images.{key}": unset}), place)
    assert f"data.images.{key}: this node has its own data alone and cannot know the {key}" in why


def test_classes_of_a_nodes_images_are_told_by_their_names(pictures, tmp_path):
    """A node that lists them in another order, or knows numbers alone, trains on the same."""
    experiment, data = pictures
    natural = experiment.override({"run.directory": str(tmp_path / "natural")})
    first = served(LocalGrid(natural), tmp_path / "natural")
    files = [next(Path(place).iterdir()) for place in data]
    images = load_images(files[0])
    turned = tuple(reversed(images.class_names))
    save_images(replace(images, y=9 - images.y, class_names=turned), files[0])
    images = load_images(files[1])
    np.savez(files[1], x=images.x.permute(0, 2, 3, 1).numpy(), y=images.y.numpy())
    deployed = experiment.override({"run.directory": str(tmp_path / "deployed")})
    assert served(EdgeGrid(deployed, data), tmp_path / "deployed") == first


def test_images_of_a_class_that_nobody_else_has_are_refused(pictures):
    experiment, [place, *_] = pictures
    why = answered(experiment.override({"data.images.classes": "0, 1"}), place)
    assert "images.npz: there are images of class '" in why
    assert "', which is none of 0, 1" in why


def test_a_folder_without_images_or_with_too_many_is_named(pictures, tmp_path):
    experiment, [place, other, *_] = pictures
    (tmp_path / "empty").mkdir()
    assert "no known images: name an .npz file" in answered(experiment, str(tmp_path / "empty"))
    (Path(place) / "second.npz").write_bytes((Path(other) / "images.npz").read_bytes())
    assert "holds images.npz, second.npz, of which one alone" in answered(experiment, place)


def test_a_node_may_bring_a_data_set_as_it_unpacks(pictures, tmp_path):
    """A folder for each class, as those who sort their pictures have it."""
    experiment, data = pictures
    images = load_images(next(Path(data[0]).iterdir()))
    for row, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
        folder = tmp_path / "own/train" / images.class_names[y]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(folder / f"{row:04}.png")
    (tmp_path / "own/train/nothing").mkdir()
    run = experiment.override({"run.directory": str(tmp_path / "run")})
    lines = served(EdgeGrid(run, [str(tmp_path / "own"), *data[1:]]), tmp_path / "run")
    [first, *_] = [line for line in lines if line.get("partition") == 0]
    support = int(clients_of(experiment).albums[0].masks["train"].sum())
    assert (first["status"], first["support"]) == ("ok", support)


def test_images_that_are_not_square_need_a_size_to_agree_on(tiny, tmp_path):
    images = load_images("digits")
    save_images(replace(images, x=images.x[..., :6]), tmp_path / "narrow.npz")
    keys = {**IMAGES, "data.source": str(tmp_path / "narrow.npz"), "data.images.size": 0}
    with pytest.raises(ConfigError, match=r"data\.images\.size: the images are 8x6, and sites"):
        split(tiny(**keys), tmp_path / "sites")
