"""Images: the rules of the container, every format, and faults that are named by their place."""

import io

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from graphcl.datasets import ImageSet, join_images, load_images, save_images
from graphcl.errors import DataError


def pictures(n=6, channels=3, height=5, width=4, classes=3, seed=0) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, channels, height, width), generator=rng, dtype=torch.uint8)
    names = tuple(f"class {c}" for c in range(classes))
    return ImageSet("made", x, torch.arange(n) % classes, names)


def same(one: ImageSet, other: ImageSet) -> bool:
    return one.x.equal(other.x) and one.y.equal(other.y) and one.class_names == other.class_names


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def packed(images: list[bytes]) -> dict[str, np.ndarray]:
    return {
        "jpeg": np.frombuffer(b"".join(images), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, images)]),
    }


@pytest.fixture
def archive(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return tmp_path / "images.npz"

    return write


GREY = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)
Y = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", torch.zeros(6, 3, 5, 4), r"made: x is torch.float32 of shape \[6, 3, 5, 4\]"),
        ("x", torch.zeros(6, 2, 5, 4, dtype=torch.uint8), "with C = 1 or 3"),
        ("x", torch.zeros(6, 5, 4, dtype=torch.uint8), r"must be torch.uint8 of shape \[N, C, H"),
        ("x", torch.zeros(0, 3, 5, 4, dtype=torch.uint8), "nothing empty"),
        ("y", torch.zeros(5, dtype=torch.long), r"made: y is torch.int64 of shape \[5\].*\[6\]"),
        ("y", torch.zeros(6), "must be torch.int64"),
        ("y", torch.tensor([0, 1, 3, 0, -1, 0]), r"made: y\[2\] is 3 \(2 such\).* are 0 to 2"),
        ("class_names", ("a", "b", "a"), "class_names holds 'a' 2 times"),
        ("class_names", ("a", "b", " "), r"class_names\[2\] is ' '"),
    ],
)
def test_a_broken_rule_names_field_row_and_rule(field, value, message):
    good = pictures()
    fields = {"x": good.x, "y": good.y, "class_names": good.class_names, field: value}
    with pytest.raises(DataError, match=message):
        ImageSet("made", **fields)


def test_a_network_reads_pixels_from_minus_one_to_one():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    images = ImageSet("made", x, torch.zeros(3, dtype=torch.long), ("all",))
    read = images.pixels(torch.tensor([2, 0, 1]))
    assert read.flatten().tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_halving_a_picture_of_blocks_keeps_the_blocks_and_its_mean():
    blocks = torch.tensor([[[0, 0, 200, 200], [0, 0, 200, 200]] * 2], dtype=torch.uint8)[:, None]
    images = ImageSet("made", blocks.reshape(1, 1, 4, 4), torch.zeros(1, dtype=torch.long), ("a",))
    small = images.resized(2)
    assert small.x.shape == (1, 1, 2, 2)
    assert small.x.float().mean() == pytest.approx(100, abs=1)
    assert small.x[0, 0, 0, 0] < 30 < 170 < small.x[0, 0, 0, 1]
    assert images.resized(4) is not None
    assert images.resized(4).x.equal(images.x)


def test_joined_sets_must_agree():
    one, other = pictures(), pictures(n=3, seed=1)
    both = join_images([one, other], "both")
    assert both.x.equal(torch.cat([one.x, other.x]))
    assert both.y.equal(torch.cat([one.y, other.y]))
    with pytest.raises(DataError, match="the classes are class 0, class 1, but those of made are"):
        join_images([one, pictures(classes=2)], "both")
    with pytest.raises(DataError, match=r"an image is \[1, 5, 4\] as \[C, H, W\]"):
        join_images([one, pictures(channels=1)], "both")


def test_classes_are_found_among_others_by_their_names():
    images = pictures()
    found = images.among(["class 2", "other", "class 0", "class 1"])
    assert found.class_names == ("class 2", "other", "class 0", "class 1")
    assert [found.class_names[y] for y in found.y] == [images.class_names[y] for y in images.y]
    assert images.of(torch.tensor([0, 3])).among(["class 0"]).y.tolist() == [0, 0]
    with pytest.raises(DataError, match="made: there are images of class 'class 1', which is none"):
        images.among(["class 0", "class 2"])


def test_numbered_classes_are_places_among_names_and_names_among_numbers(archive):
    path = archive(x=GREY, y=np.array([2, 0, 0, 2]))  # none of class 1
    found = load_images(path, classes=["ant", "bee", "cat"])
    assert (found.y.tolist(), found.class_names) == ([2, 0, 0, 2], ("ant", "bee", "cat"))
    assert load_images(path, classes=["2", "1", "0"]).y.tolist() == [0, 2, 2, 0]
    with pytest.raises(DataError, match=r"y\[0\] is 2 \(2 such\), but the 2 classes are 0 to 1"):
        load_images(path, classes=["ant", "bee"])
    with pytest.raises(DataError, match="no node has class 1"):
        load_images(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_loads_again(tmp_path, channels):
    images = pictures(channels=channels)
    save_images(images, tmp_path / "images.npz")
    assert same(load_images(tmp_path / "images.npz"), images)


def test_grey_images_need_no_axis_of_channels_and_classes_no_names(archive):
    images = load_images(archive(x=GREY, y=Y.astype(np.uint8)))
    assert images.x.shape == (4, 1, 3, 2)
    assert images.x[:, 0].numpy().tolist() == GREY.tolist()
    assert images.class_names == ("0", "1")


def test_parts_follow_one_another(archive):
    parts = {"train_x": GREY[:3], "train_y": Y[:3], "test_x": GREY[3:], "test_y": Y[3:]}
    whole = load_images(archive(x=GREY, y=Y))
    assert same(load_images(archive(**parts)), whole)


def test_packed_pictures_are_decoded(archive):
    colour = pictures(channels=3).x.permute(0, 2, 3, 1).numpy()
    arrays = packed([encoded(image) for image in colour])
    images = load_images(archive(**arrays, labels=np.zeros(6, dtype=np.uint8)))
    assert images.x.equal(pictures(channels=3).x)


def test_pictures_are_grey_only_where_all_are(archive):
    grey, labels = [encoded(image) for image in GREY], Y
    images = load_images(archive(**packed(grey), labels=labels))
    assert images.x.shape == (4, 1, 3, 2)
    grey[2] = encoded(np.full((3, 2, 3), (9, 8, 7), dtype=np.uint8))
    mixed = load_images(archive(**packed(grey), labels=labels))
    assert mixed.x.shape == (4, 3, 3, 2)
    assert mixed.x[0].numpy().tolist() == [GREY[0].tolist()] * 3
    assert mixed.x[2, :, 0, 0].tolist() == [9, 8, 7]


PACKED = packed([encoded(image) for image in GREY]) | {"labels": Y}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": GREY}, "has no images, only pixels: write x and y"),
        ({"x": GREY}, "y is missing: give each image its class"),
        ({"x": GREY.astype(float), "y": Y}, "x is float64 of shape .*, must be uint8"),
        ({"x": GREY.reshape(4, 3, 2, 1).transpose(0, 3, 1, 2), "y": Y}, r"\[N, H, W, C\] with C"),
        ({"x": GREY, "y": Y[:3]}, "y has 3 entries for 4 images"),
        ({"x": GREY, "y": Y / 2}, "y is float64, must be an integer dtype"),
        ({"x": GREY, "y": Y[:, None]}, r"y has shape \[4, 1\], must be \[N\]"),
        ({"x": GREY, "y": Y - 1}, r"y\[0\] is -1 \(2 such\)"),
        ({"x": GREY, "y": 2 * Y}, "no node has class 1"),
        ({"x": GREY, "y": Y, "classes": ["one"]}, r"y\[1\] is 1 \(2 such\), but the 1 classes"),
        ({"x": GREY, "y": Y, "classes": np.array([{}])}, "classes cannot be read"),
        ({"x": np.array([{"x": 1}]), "y": Y}, "x cannot be read"),
        ({"train_x": GREY, "train_y": Y, "test_x": GREY}, "test_y is missing"),
        (PACKED | {"jpeg": PACKED["jpeg"].astype(float)}, "jpeg is float64 .* must be bytes"),
        ({k: v for k, v in PACKED.items() if k != "offsets"}, "offsets is missing"),
        (PACKED | {"offsets": PACKED["offsets"][:-1]}, "offsets has shape .* from 0 to"),
        (PACKED | {"offsets": PACKED["offsets"][[0, 2, 1, 3, 4]]}, r"offsets\[2\] is .* not above"),
        (PACKED | {"labels": Y[:2]}, "labels has 2 entries for 4 images"),
        (PACKED | {"jpeg": 0 * PACKED["jpeg"]}, r"jpeg\[0\]: not a readable picture"),
        (
            packed([encoded(GREY[0]), encoded(GREY[0].T.copy())]) | {"labels": Y[:2]},
            r"jpeg\[1\]: is 2x3, but the first picture is 3x2: ask for one size",
        ),
    ],
)
def test_a_faulty_archive_names_file_field_and_rule(archive, arrays, message):
    path = archive(**arrays)
    with pytest.raises(DataError, match=rf"images\.npz.*{message}"):
        load_images(path)


def test_a_missing_source_and_a_strange_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz: not found"):
        load_images("absent.npz", root=tmp_path)
    with pytest.raises(
        DataError,
        match=r"no known images: name an \.npz file, or a folder with train\.bin \(CIFAR-100\)",
    ):
        load_images(tmp_path)


def cifar(folder, names_file, files, label_bytes, num_classes):
    """Write the files of a CIFAR in its binary version; return pixels and classes."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, (3, label_bytes + 3072), dtype=np.uint8) for _ in files]
    for name, part in zip(files, rows, strict=True):
        part[:, label_bytes - 1] %= num_classes
        part.tofile(folder / name)
    names = [f"name_{c}" for c in range(num_classes)]
    (folder / names_file).write_text("\n".join(names) + "\n\n")
    whole = np.concatenate(rows)
    return whole[:, label_bytes:].reshape(-1, 3, 32, 32), whole[:, label_bytes - 1]


CIFARS = [
    ("fine_label_names.txt", ["train.bin", "test.bin"], 2, 100),
    (
        "batches.meta.txt",
        [*(f"data_batch_{b}.bin" for b in range(1, 6)), "test_batch.bin"],
        1,
        10,
    ),
]


@pytest.mark.parametrize(("names_file", "files", "label_bytes", "num_classes"), CIFARS)
def test_the_binary_cifars_load(tmp_path, names_file, files, label_bytes, num_classes):
    x, y = cifar(tmp_path, names_file, files, label_bytes, num_classes)
    images = load_images(tmp_path)
    assert np.array_equal(images.x.numpy(), x)
    assert np.array_equal(images.y.numpy(), y)  # the fine classes of CIFAR-100, not the coarse
    assert images.class_names[-1] == f"name_{num_classes - 1}"
    (tmp_path / names_file).unlink()
    assert load_images(tmp_path).class_names[-1] == str(num_classes - 1)


def test_a_faulty_cifar_names_the_file(tmp_path):
    cifar(tmp_path, *CIFARS[0])
    (tmp_path / "fine_label_names.txt").write_text("one two")
    with pytest.raises(DataError, match=r"fine_label_names\.txt: holds 2 names, must be 100"):
        load_images(tmp_path)
    (tmp_path / "test.bin").write_bytes(b"\0" * 3075)
    with pytest.raises(DataError, match=r"test\.bin: holds 3075 bytes, must be records of 3074"):
        load_images(tmp_path)
    wild = bytes([0, 100]) + bytes(3072)
    (tmp_path / "test.bin").write_bytes(bytes(3074) + wild)
    with pytest.raises(DataError, match=r"test\.bin: class\[1\] is 100"):
        load_images(tmp_path)
    (tmp_path / "test.bin").unlink()
    with pytest.raises(DataError, match=r"test\.bin: not found"):
        load_images(tmp_path)


def test_flowers_load_in_one_size(tmp_path):
    (tmp_path / "jpg").mkdir()
    for number, shape in enumerate([(20, 30), (40, 20), (16, 16)], start=1):
        flat = np.full((*shape, 3), 60 * number, dtype=np.uint8)
        path = tmp_path / "jpg" / f"image_{number:05}.jpg"
        path.write_bytes(encoded(flat, "JPEG"))
    scipy.io.savemat(
        tmp_path / "imagelabels.mat", {"labels": np.array([[2, 1, 3]], dtype=np.uint8)}
    )
    images = load_images(tmp_path, size=16)
    assert images.x.shape == (3, 3, 16, 16)
    assert images.x.float().mean((1, 2, 3)).tolist() == pytest.approx([60, 120, 180], abs=3)
    assert images.y.tolist() == [1, 0, 2]
    assert images.class_names == ("1", "2", "3")
    with pytest.raises(DataError, match=r"image_00002\.jpg: is 40x20, but the first picture is"):
        load_images(tmp_path)
    (tmp_path / "jpg" / "image_00003.jpg").unlink()
    with pytest.raises(DataError, match=r"imagelabels\.mat: labels has 3 entries for the 2 pic"):
        load_images(tmp_path, size=16)
    (tmp_path / "imagelabels.mat").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"imagelabels\.mat: holds no labels"):
        load_images(tmp_path, size=16)


def test_tiny_imagenet_is_its_training_folder(tmp_path):
    for label, name in enumerate(["n02", "n01"]):
        folder = tmp_path / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{name}_boxes.txt").write_text("no picture")
        for picture in range(2):
            flat = np.full((8, 8, 3), 100 * label, dtype=np.uint8)
            (folder / f"{name}_{picture}.JPEG").write_bytes(encoded(flat, "JPEG"))
    (tmp_path / "val").mkdir()
    images = load_images(tmp_path)
    assert images.class_names == ("n01", "n02")
    assert images.y.tolist() == [0, 0, 1, 1]
    assert images.x.float().mean((1, 2, 3)).tolist() == pytest.approx([100, 100, 0, 0], abs=2)
    for path in (tmp_path / "train").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(DataError, match="no pictures: put those of each class into a folder"):
        load_images(tmp_path)


def test_digits_are_images():
    images = load_images("digits")
    assert images.x.shape == (1797, 1, 8, 8)
    assert images.x.max() == 255
    assert images.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "shape", "class_name"),
    [
        ("mnist_test10k", (10000, 1, 28, 28), "0"),
        ("usps", (9298, 1, 16, 16), "0"),
        ("cifar10_subset", (3000, 3, 32, 32), "airplane"),
    ],
)
def test_real_archives_load(data_root, name, shape, class_name):
    images = load_images(f"images/{name}.npz", root=data_root)
    assert images.x.shape == shape
    assert images.class_names[0] == class_name
    assert len(images.y.unique()) == images.num_classes == 10
    assert load_images(f"images/{name}.npz", size=8, root=data_root).x.shape[2:] == (8, 8)
