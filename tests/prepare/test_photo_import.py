"""Photos of any format, orientation and camera as photos of a scene; frames of videos; resized copies."""

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from npbgpp.errors import InputError
from npbgpp.prepare.__main__ import main
from npbgpp.prepare.photo_import import Journal, PhotoImporter, PhotoSource, choose_frames, decode, import_frames, photo_names
from npbgpp.prepare.photo_poses import number_of_features, number_of_pairs, pairs_of_photos

from ..helpers.commands import Command
from ..helpers.textured_room import Room, cameras

SIZE = (60, 80)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """80x60 pixels of a room."""
    return Room().photo(cameras(8)[0], SIZE, 70)


@pytest.fixture
def importer(tmp_path) -> PhotoImporter:
    return PhotoImporter(tmp_path / "images", tmp_path / "feature_masks", None, tmp_path / "masks", 1600, None)


def add(importer, path, name="photo"):
    return importer.add(path.parent, path, name)


def exif(**tags) -> Image.Exif:
    """EXIF data with an orientation and tags of the camera, by their names."""
    data = Image.Exif()
    sub = {}
    for name, value in tags.items():
        tag = ExifTags.Base[name]
        if name in ("Make", "Model", "Orientation"):
            data[tag] = value
        else:
            sub[tag] = value
    data[ExifTags.IFD.Exif] = sub
    return data


# ------------------------------------------------------------------ formats and orientations
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp", ".jpg"])
def test_formats(importer, tmp_path, picture, suffix):
    path = tmp_path / f"a{suffix}"
    picture.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    (photo,) = add(importer, path)
    with Image.open(importer.images / photo.name) as written:
        assert written.format in ("JPEG", "PNG") and (photo.width, photo.height) == written.size == (80, 60)
        assert np.abs(np.asarray(written.convert("RGB")).astype(int) - np.asarray(picture)).mean() < (12 if suffix != ".jpg" else 40)
    if suffix in (".png", ".jpg"):
        assert (importer.images / photo.name).read_bytes() == path.read_bytes()


def test_sixteen_bits(importer, tmp_path, picture):
    grey = np.asarray(picture.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "a.png")
    (photo,) = add(importer, tmp_path / "a.png")
    with Image.open(importer.images / photo.name) as written:
        assert written.mode == "RGB" and (np.asarray(written)[..., 0] == grey).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(importer, tmp_path, picture, orientation):
    """The eight orientations of EXIF: written photos have none, and all show the same."""
    stored = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: p.transpose(1, 0, 2)[::-1],
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    }[orientation](np.asarray(picture))
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif(Orientation=orientation))
    (photo,) = add(importer, tmp_path / "a.png")
    with Image.open(importer.images / photo.name) as written:
        assert (np.asarray(written) == np.asarray(picture)).all() and written.getexif().get(ExifTags.Base.Orientation, 1) == 1


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_heic(importer, tmp_path, picture, orientation):
    """Upright, with the focal length of the EXIF data, as the photos of a phone that was turned."""
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    heif.register_heif_opener()
    turned = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = picture.transpose(turned[orientation]) if orientation in turned else picture
    data = exif(Orientation=orientation, FocalLengthIn35mmFilm=43, Make="A", Model="B")
    for k in range(2):
        stored.save(tmp_path / f"{k}.heic", quality=95, exif=data.tobytes())
    assert len(PhotoSource.find(tmp_path).files) == 2
    (photo,) = add(importer, tmp_path / "0.heic")
    with Image.open(importer.images / photo.name) as written:
        assert written.format == "JPEG" and written.size == picture.size == (photo.width, photo.height)
        assert np.abs(np.asarray(written).astype(int) - np.asarray(picture)).mean() < 25
    assert photo.focal_px == pytest.approx(43 / 43.267 * 100) and photo.camera == "80x60 A B 43"


def test_large_photos_are_reduced(tmp_path, picture):
    importer = PhotoImporter(tmp_path / "images", tmp_path / "m", None, tmp_path / "masks", 100, None)
    picture.resize((640, 480)).save(tmp_path / "a.jpg", exif=exif(FocalLengthIn35mmFilm=43))
    (photo,) = add(importer, tmp_path / "a.jpg")
    assert (photo.width, photo.height) == (100, 75) and photo.focal_px == pytest.approx(43 / 43.267 * 125)


def test_transparent_photos_have_features_where_they_are_opaque(importer, tmp_path, picture):
    rgba = picture.copy()
    alpha = np.zeros(SIZE, np.uint8)
    alpha[10:40, 20:70] = 255
    rgba.putalpha(Image.fromarray(alpha))
    rgba.save(tmp_path / "a.png")
    (photo,) = add(importer, tmp_path / "a.png")
    with Image.open(importer.feature_masks / f"{photo.name}.png") as mask, Image.open(importer.images / photo.name) as written:
        assert (np.asarray(mask) == alpha).all() and written.mode == "RGBA"


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(200)])
def test_damaged_photos(importer, tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match="a.jpg"):
        add(importer, tmp_path / "a.jpg")
    assert not importer.images.exists()


# ------------------------------------------------------------------ cameras
@pytest.mark.parametrize(
    ("tags", "focal"),
    [
        ({"FocalLengthIn35mmFilm": 50, "FocalLength": 4.2}, 50 / 43.267 * 100),
        ({"FocalLength": 10.0, "FocalPlaneXResolution": 100.0, "FocalPlaneResolutionUnit": 4, "ExifImageWidth": 1600}, 10 / 16 * 80),
        ({"FocalLength": 4.2}, None),
        ({"FocalLengthIn35mmFilm": 0}, None),
        ({"FocalLengthIn35mmFilm": 60000}, None),
        ({}, None),
    ],
)
def test_focal_lengths(importer, tmp_path, picture, tags, focal):
    """Equivalent focal lengths refer to the diagonal (100 pixels here), others to the width of the sensor."""
    picture.save(tmp_path / "a.jpg", exif=exif(**tags))
    (photo,) = add(importer, tmp_path / "a.jpg")
    assert photo.focal_px == (None if focal is None else pytest.approx(focal, rel=1e-3))


def test_one_camera_per_device_zoom_and_size(importer, tmp_path, picture):
    kinds = {
        "a": (picture, {"Make": "A", "FocalLength": 5.0}),
        "b": (picture, {"Make": "A", "FocalLength": 5.0}),
        "zoom": (picture, {"Make": "A", "FocalLength": 9.0}),
        "device": (picture, {"Make": "B", "FocalLength": 5.0}),
        "size": (picture.crop((0, 0, 50, 50)), {"Make": "A", "FocalLength": 5.0}),
        "turned": (picture, {"Make": "A", "FocalLength": 5.0, "Orientation": 6}),
    }
    cameras_of = {}
    for name, (image, tags) in kinds.items():
        image.save(tmp_path / f"{name}.jpg", exif=exif(**tags))
        cameras_of[name] = add(importer, tmp_path / f"{name}.jpg", name)[0].camera
    assert cameras_of["a"] == cameras_of["b"] and len(set(cameras_of.values())) == 5


def test_names_are_plain_and_unique(tmp_path):
    files = [tmp_path / name for name in ("Büste 1.jpg", "B_ste 1.png", "b_STE_1.tif", "left/1.jpg", "...jpg", "日.jpg")]
    names = photo_names(files, tmp_path)
    assert names == ["B_ste_1", "B_ste_1_2", "b_STE_1_3", "left-1", "photo", "photo_2"]


def test_panoramas_are_recognised(tmp_path):
    rows, columns = np.mgrid[:128, :256]
    around = 127 + 60 * np.sin(columns * np.pi / 64) + 40 * np.cos(rows * np.pi / 128)  # continues at the sides
    Image.fromarray(around.astype(np.uint8)).save(tmp_path / "panorama.png")
    Image.fromarray((columns * 0.7 + rows * 0.5).astype(np.uint8)).save(tmp_path / "wide.png")
    assert decode(tmp_path / "panorama.png", 1600, None).panorama and not decode(tmp_path / "wide.png", 1600, None).panorama
    assert not decode(tmp_path / "panorama.png", 1600, False).panorama and decode(tmp_path / "wide.png", 1600, True).panorama


def test_files_of_other_kinds(tmp_path, picture):
    for name in ("b.jpg", "sub/a.JPG", ".hidden.jpg", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "raw.dng").write_bytes(b"raw")
    source = PhotoSource.find(tmp_path)
    assert [path.name for path in source.files] == ["b.jpg", "c.png", "a.JPG"] and source.ignored == ("raw.dng",)


# ------------------------------------------------------------------ journal
def test_journal_ignores_a_line_that_was_cut_off(tmp_path, importer, picture):
    picture.save(tmp_path / "a.jpg")
    photos = add(importer, tmp_path / "a.jpg")
    journal = Journal(tmp_path / "journal", "key")
    journal.add("first", photos)
    journal.add("second", (), "empty")
    with (tmp_path / "journal").open("a") as file:
        file.write('{"of": "third", "pho')
    again = Journal(tmp_path / "journal", "key")
    assert list(again.done) == ["first", "second"] and again.photos("first") == photos and again.failure("second") == "empty"
    again.add("third", ())
    assert list(Journal(tmp_path / "journal", "key").done) == ["first", "second", "third"]
    other = Journal(tmp_path / "journal", "another key")
    assert not other.done and other.earlier == (photos[0].name,)


# ------------------------------------------------------------------ videos
def test_sharpest_frames_are_chosen(tmp_path):
    """Every third frame is sharp; windows of three frames."""
    room, poses = Room(), cameras(72)
    with imageio.get_writer(tmp_path / "film.mp4", fps=10, macro_block_size=1, quality=9) as writer:
        for k in range(18):
            frame = room.photo(poses[k], (120, 160), 140)
            writer.append_data(np.asarray(frame if k % 3 == 1 else frame.filter(ImageFilter.GaussianBlur(3))))
    shares = []
    numbers = choose_frames(tmp_path / "film.mp4", 6, shares.append)
    assert numbers == [1, 4, 7, 10, 13, 16] and shares[-1] == 1.0
    photos = list(import_frames(tmp_path / "film.mp4", numbers, tmp_path / "images", 80))
    assert [photo.source for photo in photos] == [f"film.mp4 frame {k}" for k in numbers]
    with Image.open(tmp_path / "images" / photos[2].name) as written:
        assert written.size == (80, 60) and np.abs(np.asarray(written, int) - np.asarray(room.photo(poses[7], (60, 80), 70))).mean() < 35


# ------------------------------------------------------------------ pairs
def test_pairs_of_photos(importer, tmp_path, picture):
    picture.save(tmp_path / "a.jpg")
    (photo,) = add(importer, tmp_path / "a.jpg")
    photos = [photo.__class__(**{**photo.__dict__, "name": f"{k:02}"}) for k in range(40)]
    every, near = pairs_of_photos(photos, False), pairs_of_photos(photos, True)
    assert len(every) == number_of_pairs(40, False) == 780 and len(near) == number_of_pairs(40, True)
    assert {int(b) - int(a) for a, b in near} == {*range(1, 11), 16, 32}
    views = [photo.__class__(**{**photo.__dict__, "name": f"{k}", "fixed": True, "source": f"{k // 3}.jpg view {k % 3}"}) for k in range(9)]
    assert all(int(a) // 3 != int(b) // 3 for a, b in pairs_of_photos(views, False)) and len(pairs_of_photos(views, False)) == 27
    assert number_of_features(10) == 8192 and number_of_features(10**6) == 2048


# ------------------------------------------------------------------ resize
@pytest.fixture
def prepare(request, tmp_path) -> Command:
    return Command(main, request, tmp_path)


def test_resize(prepare, tmp_path, picture):
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.jpg", exif=exif(Make="A"))
    picture.convert("L").save(tmp_path / "images" / "b.png")
    before = {path: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    prepare("resize", "dir=images", "factor=0.5")
    for name in ("a.jpg", "b.png"):
        with Image.open(tmp_path / "images_2" / name) as image:
            assert image.size == (40, 30)
    with Image.open(tmp_path / "images_2" / "a.jpg") as image:
        assert image.getexif()[ExifTags.Base.Make] == "A"
    assert {path: path.read_bytes() for path in (tmp_path / "images").iterdir()} == before
    assert "overwrite=true" in prepare.refused("resize", "images", "factor=0.5")
    prepare("resize", "images", "factor=0.5", "overwrite=true")
    prepare("resize", "images", "max_size=20", "out=small")
    with Image.open(tmp_path / "small" / "a.jpg") as image:
        assert image.size == (20, 15)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("images", ["factor", "max_size"]),
        ("images factor=2", ["factor", "2"]),
        ("images factor=0.5 max_size=3", ["one of them"]),
        ("images max_size=0", ["max_size", "0"]),
        ("images factor=0.5 out=images", ["another folder"]),
        ("nowhere factor=0.5", ["nowhere"]),
    ],
)
def test_refusals_of_resize(prepare, tmp_path, picture, arguments, expected):
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.jpg")
    message = prepare.refused("resize", *arguments.split())
    assert all(word in message for word in expected), message
