"""The typed configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxelpool.config import (
    ClassifierConfig,
    ObjectAugmentConfig,
    dump_config,
    load_config,
    load_detector_config,
    parse_config,
    save_config,
)
from voxelpool.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
CAR = CONFIGS / "voxelnet_car.yaml"
CROPS = CONFIGS / "classify_voxnet_crops.yaml"
MODELNET = CONFIGS / "classify_voxnet_modelnet10.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    save_config(config, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == config


def test_paper_values() -> None:
    """VoxelNet, sections 3.1 and 3.2; facts 1.1, 1.5, 1.6, 1.8."""
    car = load_config(CAR)
    assert car.grid.to_grid().shape == (10, 400, 352)
    assert (car.vfe.channels, car.vfe.out_channels, car.vfe.max_points) == ((32, 128), 128, 35)
    assert car.rpn.strides == (2, 2, 2)
    anchor = car.anchors[0]
    assert (anchor.size, anchor.z_center) == ((3.9, 1.6, 1.56), -1.0)
    assert (anchor.matched_threshold, anchor.unmatched_threshold) == (0.6, 0.45)
    assert (car.loss.positive_weight, car.loss.negative_weight) == (1.5, 1.0)
    assert (car.train.optimizer, car.train.lr, car.train.batch_size) == ("sgd", 0.01, 16)
    assert (car.train.epochs, car.train.schedule.milestones) == (160, (150,))
    for name, size in (("Pedestrian", (0.8, 0.6, 1.73)), ("Cyclist", (1.76, 0.6, 1.73))):
        config = load_config(CONFIGS / f"voxelnet_{name.lower()}.yaml")
        assert config.classes == (name,)
        assert config.grid.to_grid().shape == (10, 200, 240)
        assert (config.vfe.max_points, config.rpn.strides) == (45, (1, 2, 2))
        anchor = config.anchors[0]
        assert (anchor.size, anchor.z_center) == (size, -0.6)
        assert (anchor.matched_threshold, anchor.unmatched_threshold) == (0.5, 0.35)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.lr=1e-3", lambda c: c.train.lr == 1e-3),
        ("train.batch_size=2", lambda c: c.train.batch_size == 2),
        ("data.root=/some/where", lambda c: c.data.root == "/some/where"),
        ("anchors.0.matched_threshold=0.7", lambda c: c.anchors[0].matched_threshold == 0.7),
        ("data.augment=[]", lambda c: c.data.augment == ()),
        (
            "data.augment=[{name: sample_objects, counts: {Car: 15}}]",
            lambda c: c.data.augment[0].model_dump()["counts"] == {"Car": 15} and hash(c),
        ),
        ("train.gradient_clip=null", lambda c: c.train.gradient_clip is None),
        ("data.augment.1.range=[0.9,1.1]", lambda c: c.data.augment[1].range == (0.9, 1.1)),
        ("vfe.max_voxels=12000", lambda c: c.vfe.max_voxels == 12000),
    ],
)
def test_overrides(override: str, read) -> None:
    assert read(load_config(CAR, [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "train.lrr: unknown key, did you mean lr"),
        ("trian.lr=1", "trian: unknown key, did you mean train"),
        ("data.augment.0.rotatio=1", "data.augment.0.rotatio: unknown key, did you mean rotation"),
        ("train.lr=fast", "train.lr: .*valid number.*'fast'"),
        ("train.lr=-1", "train.lr: .*greater than 0"),
        ("train.epochs=1.5", "train.epochs: "),
        ("anchors.0.matched_threshold=2", "anchors.0.matched_threshold: .*less than or equal to 1"),
        ("anchors.0.matched_threshold=0.2", "anchors.0: unmatched_threshold 0.45 lies above"),
        ("anchors.0.class_name=car", "anchors.0.class_name: .*'Car'"),
        ("grid.voxel_size=[0.3,0.2,0.4]", "grid: range along x.*whole number"),
        ("vfe.channels=[31,128]", "vfe.channels: channels must be even"),
        ("data.augment.1.range=[2,1]", "data.augment.1: the lower bound 2"),
        (
            "data.augment=[{name: fade_tops, distances: [40, 40]}]",
            "data.augment.0: distances must rise",
        ),
        ("data.augment=[{name: sample_objects, counts: {}}]", "counts: .*at least 1 item"),
        ("data.augment=[{name: sample_objects, counts: {Car: -1}}]", "counts.*got -1"),
        (
            "data.augment=[{name: sample_objects, counts: {Cyclist: 3}}]",
            "sample_objects names Cyclist, which has no anchors",
        ),
        ("name=a/b", "name: "),
        ("model=pixor", "model: "),
        ("anchors.7.size=1", "7 is no item of a list of 1"),
        ("name.x=1", "name is a single value"),
        ("epochs", "must look like key.subkey=value"),
        ("=3", "must look like key.subkey=value"),
    ],
)
def test_bad_values_name_file_and_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CAR, [override])
    assert "override" in str(caught.value) or str(caught.value).startswith(str(CAR))


def test_grid_that_the_strides_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="400 x 350 voxels"):
        load_config(CAR, ["grid.range=[0,-40,-3,70,40,1]"])


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: grid: is missing; anchors: is missing"):
        parse_config("name: a", source="x.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "", "a: [1"])
def test_not_a_mapping(text: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: "):
        parse_config(text, source="x.yaml")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_class_named_twice() -> None:
    text = dump_config(load_config(CAR))
    config = parse_config(text)
    anchor = config.anchors[0].model_dump_json()
    with pytest.raises(ConfigError, match="name a class twice"):
        load_config(CAR, [f"anchors=[{anchor},{anchor}]"])


def test_classifier_configs() -> None:
    """VoxNet's own moves (facts 4.8), of them quarter turns, and what the sources imply."""
    config = load_config(MODELNET)
    assert isinstance(config, ClassifierConfig)
    assert config.classes[:2] == ("bathtub", "bed") and len(config.classes) == 10
    assert config.objects.val_split_name == "test"
    own, moves = ObjectAugmentConfig(), config.objects.augment
    assert (own.rotations, own.mirror, own.jitter, own.scale, own.drop) == (12, 0.2, 2, 0, 0)
    assert (moves.rotations, moves.mirror, moves.jitter) == (4, own.mirror, own.jitter)
    assert (config.objects.votes, config.classifier.turns) == (4, 4)
    assert config.classifier.grid_size == 32
    crops = load_config(CROPS)
    assert crops.objects.val_split_name == "val" and "pole" in crops.classes
    assert load_config(CROPS, ["objects.classes=[Car,pole]"]).classes == ("Car", "pole")


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (CROPS, "model=voxnett", r"model: must be one of voxelnet, .*voxnet, .* \(got 'voxnett'\)"),
        (CROPS, "model=[1]", "model: must be one of"),
        (CROPS, "grid={}", "grid: unknown key"),
        (CROPS, "objects.rooot=x", "objects.rooot: unknown key, did you mean root"),
        (CROPS, "objects.augment.jitterr=1", "objects.augment.jitterr: .*did you mean jitter"),
        (CROPS, "objects.source=kitti", "objects.source: .*'crops'"),
        (CROPS, "objects.classes=[Car,Pole]", "objects: .* called Pole; did you mean pole"),
        (CROPS, "objects.classes=[Car,Car]", "objects: classes name Car twice"),
        (CROPS, "objects.extent=0", "objects.extent: .*greater than 0"),
        (CROPS, "classifier.head=gap", "classifier.head: .*'average'"),
        (CROPS, "classifier.dim=2", "classifier.dim 2 is of no use to voxnet"),
        (CROPS, "classifier.stem=small", "classifier.stem small is of no use to voxnet"),
        (CROPS, "classifier.normalise=true", "classifier.normalise True is of no use"),
        (CROPS, "classifier.dropout=1", "classifier.dropout: .*less than 1"),
        (MODELNET, "classifier.occupancy=density", "occupancy density follows rays"),
        (MODELNET, "objects.classes=[a,b]", "objects: classes: the archive has 10 classes, got 2"),
        (CONFIGS / "classify_pointnet2_crops.yaml", "classifier.head=spp", "spp is of no use"),
    ],
)
def test_bad_classifier_values(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, [override])
    assert str(caught.value).startswith(str(path))


def test_classifier_without_a_model_and_detector_wanted() -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: model: is missing"):
        parse_config("{name: a, objects: {source: crops, root: b}}", source="x.yaml")
    with pytest.raises(ConfigError, match=r"crops\.yaml: voxnet is a classifier"):
        load_detector_config(CROPS)
    assert load_detector_config(CAR) == load_config(CAR)
