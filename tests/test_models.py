"""Models: layouts, shipped weights, repeatable training, pictures, and what a wrong file is told."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from reference_apps.models import Inputs, Model, digits, load_inputs, load_model, resnet50, xor
from reference_apps.models.checkpoint import parameters_digest, read_facts, save_weights
from reference_apps.models.inputs import held_out_digits, scaled_digits
from stages.problems import StageError
from stages.spec import Model as ModelSpec

SPECS = {
    "digits": ModelSpec(name="digits"),
    "resnet50": ModelSpec(name="resnet50", image_size_px=32),
    "xor": ModelSpec(name="xor"),
}
# Of the lines "name [shape]" of resnet50().state_dict() in torchvision 0.28.0, sorted by name.
TORCHVISION_LAYOUT_SHA256 = "98fcefba1b06f509a0fbf50757db13659d4fb3dc3b1f43aef4ed2da77b133fbe"


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: load_model(spec, "cpu") for name, spec in SPECS.items()}


@pytest.fixture(scope="module")
def random_resnet50() -> resnet50.ResNet50Net:
    return resnet50.random_net()


def _numbers(answer: dict[str, Any]) -> list[float]:
    """The probabilities or outputs of an answer, in order."""
    inner = [number for part in answer.get("top5", []) for number in _numbers(part)]
    return [float(answer[key]) for key in ("probability", "output") if key in answer] + inner


# Every model


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_answers_as_its_items_do_alone(models: dict[str, Model], name: str) -> None:
    model = models[name]
    inputs = model.examples(8, seed=3)
    together = model.predict(inputs)
    assert len(together) == 8
    for alone, among in zip(inputs, together, strict=True):
        (answer,) = model.predict(alone[np.newaxis])
        assert answer["label"] == among["label"]
        assert _numbers(answer) == pytest.approx(_numbers(among), abs=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_examples_are_the_seeds_and_do_not_depend_on_the_count(name: str) -> None:
    inputs = load_inputs(SPECS[name])
    many = inputs.examples(500 if name != "resnet50" else 7, seed=5)
    assert many.dtype == np.float32
    assert many.shape[1:] == inputs.input_shape
    assert np.array_equal(inputs.examples(3, seed=5), many[:3])
    assert not np.array_equal(inputs.examples(len(many), seed=6), many)


@pytest.mark.parametrize("name", ["digits", "resnet50"])
def test_a_png_of_an_example_decodes_to_the_example_itself(name: str) -> None:
    inputs = load_inputs(SPECS[name])
    for example, picture in zip(inputs.examples(20, seed=1), inputs.example_images(20, seed=1), strict=True):
        assert picture.mode == inputs.png_mode
        png = io.BytesIO()
        picture.save(png, format="PNG")
        assert np.array_equal(inputs.from_image(Image.open(png)), example)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
)
def test_a_picture_of_any_size_and_mode_becomes_one_input(mode: str, width: int, height: int) -> None:
    picture = Image.new(mode, (width, height), 1)
    for inputs in (load_inputs(SPECS["digits"]), load_inputs(SPECS["resnet50"])):
        decoded = inputs.from_image(picture)
        assert decoded.shape == inputs.input_shape
        assert decoded.dtype == np.float32
        assert np.isfinite(decoded).all()


def test_a_read_only_batch_is_taken(models: dict[str, Model]) -> None:
    body = np.array([[0, 1]], dtype=np.float32).tobytes()
    assert models["xor"].predict(np.frombuffer(body, dtype=np.float32).reshape(1, 2))[0]["label"] == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((1, 8, 8), np.float32), r"shape \(n, 1, 8, 8\) with n >= 1, got \(1, 8, 8\)"),
        (np.zeros((0, 1, 8, 8), np.float32), r"with n >= 1, got \(0, 1, 8, 8\)"),
        (np.zeros((1, 1, 8, 8), np.float64), r"must be float32, got float64. Use inputs.astype\(np.float32\)"),
    ],
)
def test_a_wrong_batch_is_refused(models: dict[str, Model], inputs: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models["digits"].predict(inputs)


def test_a_model_that_came_with_the_project_is_version_1_on_as_many_threads_as_the_stage_says() -> None:
    model = load_model(ModelSpec(name="xor"), "cpu", cpu_threads=2)
    assert (model.name, model.version) == ("xor", "1")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_inputs_are_made_without_pytorch() -> None:
    code = (
        "import sys; from reference_apps.models import load_inputs; from stages.spec import Model\n"
        "for name in ('digits', 'resnet50', 'xor'): load_inputs(Model(name=name)).examples(2, seed=1)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SPECS)
def test_cuda_answers_as_the_cpu_does(models: dict[str, Model], name: str) -> None:
    inputs = models[name].examples(8, seed=3)
    for on_cuda, on_cpu in zip(
        load_model(SPECS[name], "cuda").predict(inputs), models[name].predict(inputs), strict=True
    ):
        assert on_cuda["label"] == on_cpu["label"]
        assert _numbers(on_cuda) == pytest.approx(_numbers(on_cpu), abs=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_says_so() -> None:
    with pytest.raises(StageError, match=r'device\.kind: needs an NVIDIA GPU that PyTorch can see, got "cuda"'):
        load_model(SPECS["xor"], "cuda")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(StageError) as caught:
        load_model(SPECS["xor"], "emulated")
    assert str(caught.value) == (
        "model: 1 problem\n"
        '  device.kind: must be "cpu" or "cuda" for a model to run on, got "emulated". '
        'The model would have nowhere to run. An emulated device computes on "cpu".'
    )


# digits


def test_the_shipped_digits_reach_the_accuracy_that_their_file_states(models: dict[str, Model]) -> None:
    images, labels = held_out_digits()
    answers = models["digits"].predict(scaled_digits(images))
    accuracy = np.mean([answer["label"] for answer in answers] == labels)
    facts = read_facts(digits.WEIGHTS)
    assert accuracy >= 0.97
    assert accuracy == facts["accuracy"]
    assert facts["held_out_size"] == len(labels) == 359
    assert facts["train_size"] == 1797 - 359
    assert "CC BY 4.0" in facts["data"]["licence"]
    assert all(0 <= answer["probability"] <= 1 for answer in answers)


def test_shipped_weights_are_the_ones_that_their_header_is_about() -> None:
    for path in (digits.WEIGHTS, digits.WEIGHTS.with_name("digits-heldout.safetensors"), xor.WEIGHTS):
        assert read_facts(path)["sha256"] == parameters_digest(load_file(path))


def test_no_held_out_digit_was_trained_on() -> None:
    pytest.importorskip("sklearn")
    split = digits.bundled_digits()
    images, labels = held_out_digits()
    assert np.array_equal(split.held_out_images, images)
    assert np.array_equal(split.held_out_labels, labels)
    trained = {image.tobytes() for image in split.images}
    assert not any(image.tobytes() in trained for image in images)


def test_training_again_writes_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    before = torch.get_rng_state()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digits.main(epochs=1, output=tmp_path / name / "digits.safetensors")
        xor.main(steps=50, output=tmp_path / name / "xor.safetensors")
    for file in ("digits.safetensors", "digits-heldout.safetensors", "xor.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "digits-heldout.safetensors").read_bytes() == (
        digits.WEIGHTS.with_name("digits-heldout.safetensors").read_bytes()
    )
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_seed_trains_another_network() -> None:
    first, second = (parameters_digest(xor.train(seed=seed, steps=5).state_dict()) for seed in (1, 2))
    assert first != second


def test_training_without_scikit_learn_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import typer

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(typer.Exit) as caught:
        digits.main(output=tmp_path / "digits.safetensors")
    assert caught.value.exit_code == 2
    assert "pip install 'rung[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("enlarged_px", [8, 32, 200])
def test_a_digit_is_read_at_any_size(models: dict[str, Model], enlarged_px: int) -> None:
    inputs: Inputs = models["digits"]
    pictures = inputs.example_images(50, seed=2)
    wanted = [answer["label"] for answer in models["digits"].predict(inputs.examples(50, seed=2))]
    large = [picture.resize((enlarged_px, enlarged_px), Image.Resampling.NEAREST) for picture in pictures]
    found = models["digits"].predict(np.stack([inputs.from_image(picture) for picture in large]))
    assert [answer["label"] for answer in found] == wanted


def test_sixteen_bit_grey_is_scaled_and_not_cut_off() -> None:
    inputs = load_inputs(SPECS["digits"])
    (picture,) = inputs.example_images(1, seed=2)
    deep = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    assert deep.mode.startswith("I;16")
    assert np.array_equal(inputs.from_image(deep), inputs.from_image(picture))


# xor


def test_xor_holds_on_every_corner(models: dict[str, Model]) -> None:
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    answers = models["xor"].predict(corners)
    assert [answer["label"] for answer in answers] == [0, 1, 1, 0]
    assert all(0.5 < abs(answer["output"]) < 1.5 for answer in answers)
    assert {tuple(pair) for pair in models["xor"].examples(4, seed=9)} == {tuple(pair) for pair in corners}


def test_xor_takes_no_picture(models: dict[str, Model]) -> None:
    assert models["xor"].png_mode is None
    with pytest.raises(ValueError, match="xor takes two numbers, not a picture"):
        models["xor"].from_image(Image.new("L", (8, 8)))
    with pytest.raises(ValueError, match="xor takes two numbers, not a picture"):
        models["xor"].example_images(1, seed=1)


# resnet50


def test_resnet50_has_the_layout_of_torchvision(random_resnet50: resnet50.ResNet50Net) -> None:
    state = random_resnet50.state_dict()
    assert len(state) == 320
    assert sum(parameter.numel() for parameter in random_resnet50.parameters()) == 25_557_032
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.2.bn3.running_var"] == (2048,)
    assert shapes["fc.weight"] == (1000, 2048)
    lines = "".join(f"{name} {list(shape)}\n" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == TORCHVISION_LAYOUT_SHA256


def test_resnet50_strides_in_the_3x3_convolution(random_resnet50: resnet50.ResNet50Net) -> None:
    for layer in ("layer2", "layer3", "layer4"):
        assert random_resnet50.get_submodule(f"{layer}.0.conv1").stride == (1, 1)
        assert random_resnet50.get_submodule(f"{layer}.0.conv2").stride == (2, 2)


def test_resnet50_answers_alike_after_a_round_trip_through_a_file(
    models: dict[str, Model], random_resnet50: resnet50.ResNet50Net, tmp_path: Path
) -> None:
    path = tmp_path / "resnet50.safetensors"
    # As older files have it: no counters in the batch norms.
    state = random_resnet50.state_dict()
    save_file({name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}, path)
    loaded = load_model(ModelSpec(name="resnet50", image_size_px=32, weights=str(path)), "cpu")
    inputs = loaded.examples(4, seed=8)
    assert loaded.predict(inputs) == models["resnet50"].predict(inputs)
    # Proves that the file is read at all: other weights, other answers.
    save_file({**state, "fc.bias": state["fc.bias"] + torch.arange(1000.0)}, path)
    other = load_model(ModelSpec(name="resnet50", image_size_px=32, weights=str(path)), "cpu")
    assert {answer["label"] for answer in other.predict(inputs)} == {999}


def test_resnet50_gives_the_five_best_classes_in_order(models: dict[str, Model]) -> None:
    for answer in models["resnet50"].predict(models["resnet50"].examples(2, seed=4)):
        probabilities = [one["probability"] for one in answer["top5"]]
        assert len({one["label"] for one in answer["top5"]}) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert {"label": answer["label"], "probability": answer["probability"]} == answer["top5"][0]


def test_a_picture_is_normalised_as_imagenet_is() -> None:
    inputs = load_inputs(ModelSpec(name="resnet50"))
    assert inputs.input_shape == (3, 224, 224)
    picture = Image.new("RGB", (300, 500), (255, 0, 128))
    decoded = inputs.from_image(picture)
    wanted = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    assert np.allclose(decoded, np.array(wanted).reshape(3, 1, 1), atol=1e-5)
    # 32 of 256 pixels at the borders are cut off: a frame of that width does not show.
    framed = Image.new("RGB", (256, 256), (0, 0, 0))
    framed.paste((255, 0, 128), (16, 16, 240, 240))
    assert np.allclose(inputs.from_image(framed)[:, 1:-1, 1:-1], decoded[:, 1:-1, 1:-1], atol=1e-5)


# Wrong files


def _told(spec: ModelSpec) -> str:
    """What loading says, with the folder of the file cut off."""
    with pytest.raises(ValueError) as caught:
        load_model(spec, "cpu")
    assert isinstance(caught.value, StageError)
    return str(caught.value).replace(str(Path(str(spec.weights)).parent) + "/", "")


def test_a_file_that_does_not_fit_is_told_at_once_with_every_misfit(tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    state = xor.XorNet().state_dict()
    del state["hidden.bias"]
    save_file({**state, "hidden.weight": torch.zeros(3, 2), "head.weight": torch.zeros(1)}, path)
    remedy = "Train some with `python -m reference_apps.models.xor`, or leave model.weights out for the own ones."
    assert _told(ModelSpec(name="xor", weights=str(path))) == (
        "wrong.safetensors: 3 problems\n"
        "  head.weight: in the file, but xor has no such layer. "
        f"The file seems to be for another model. {remedy}\n"
        "  hidden.bias: missing, but a layer of xor needs each. "
        f"The layer would answer with random weights. {remedy}\n"
        "  hidden.weight: must have the shape 20x2 in xor, got 3x2. "
        f"The layer cannot compute with it. {remedy}"
    )


def test_weights_of_another_model_are_named_in_short() -> None:
    told = _told(ModelSpec(name="resnet50", weights=str(digits.WEIGHTS)))
    assert "bn1.weight, bn1.bias, bn1.running_mean and 263 more: missing, but a layer of resnet50" in told
    assert "Save torchvision's with safetensors.torch.save_file(resnet50(weights='DEFAULT')" in told
    assert len(told.splitlines()) < 8


def test_whole_numbers_are_not_taken_for_weights(tmp_path: Path) -> None:
    path = tmp_path / "quantised.safetensors"
    state = {name: tensor.to(torch.int8) for name, tensor in xor.XorNet().state_dict().items()}
    save_file(state, path)
    told = _told(ModelSpec(name="xor", weights=str(path)))
    assert "hidden.weight: must hold numbers of type float32 in xor, got int8." in told


def test_weights_changed_after_they_were_saved_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    save_weights(path, xor.XorNet().state_dict(), {"accuracy": 1.0})
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    told = _told(ModelSpec(name="xor", weights=str(path)))
    assert told.startswith("changed.safetensors: 1 problem\n  sha256: must be ")
    assert "The weights were damaged or changed after they were saved" in told


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file"])
def test_an_unreadable_file_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    told = _told(ModelSpec(name="digits", weights=str(path)))
    assert told.startswith("broken.safetensors: 1 problem\n  model.weights: must be a readable safetensors file")
    assert "convert the file with safetensors.torch.save_file" in told
