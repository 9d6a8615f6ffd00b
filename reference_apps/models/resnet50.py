"""ResNet-50 in plain PyTorch, with the names and shapes of torchvision's state dict.

    3 x s x s ─▶ stem ─▶ layer1 ─▶ layer2 ─▶ layer3 ─▶ layer4 ─▶ mean ─▶ fc ─▶ 1000 scores
                 s/4      s/4       s/8      s/16      s/32

He et al., Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385, in the variant that
torchvision calls v1.5: the 3x3 convolution of a block strides, not its first 1x1.
Without a file the weights are random: the time is right, the answers mean nothing. Not here: the names of the
classes, and training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reference_apps.models.checkpoint import load_weights
from reference_apps.models.inputs import ImageInputs
from reference_apps.models.network import Network, repeatable
from stages.spec import Model as ModelSpec

EXPANSION = 4  # a block gives back four times as many channels as its 3x3 convolution has
BLOCKS = (3, 4, 6, 3)
RANDOM_WEIGHTS_SEED = 50
REMEDY = (
    "Save torchvision's with safetensors.torch.save_file(resnet50(weights='DEFAULT').state_dict(), path), "
    "or leave model.weights out for random weights."
)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, added to its own input, which is projected where the shapes differ."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels_out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        outputs: torch.Tensor = self.relu(self.bn3(self.conv3(hidden)).add_(shortcut))
        return outputs


class ResNet50Net(nn.Module):
    """Pictures (n, 3, height, width) to the scores of 1000 classes; height and width of 32 or more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(64, 64, BLOCKS[0], stride=1)
        self.layer2 = _layer(256, 128, BLOCKS[1], stride=2)
        self.layer3 = _layer(512, 256, BLOCKS[2], stride=2)
        self.layer4 = _layer(1024, 512, BLOCKS[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        scores: torch.Tensor = self.fc(self.avgpool(hidden).flatten(1))
        return scores


def _layer(channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` bottlenecks, the first of which strides and widens."""
    rest = (Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels_in, width, stride), *rest)


def random_net(seed: int = RANDOM_WEIGHTS_SEED) -> ResNet50Net:
    """A network with random weights, its convolutions by https://arxiv.org/abs/1502.01852 as torchvision's."""
    with repeatable(seed):
        net = ResNet50Net()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


class ResNet50(ImageInputs):
    """Answers `{"label", "probability", "top5": [{"label", "probability"}, ...]}`, labels from 0 to 999."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        super().__init__(spec.image_size_px)
        self.version = spec.answers_as
        net = random_net()
        if spec.weights is not None:
            load_weights(net, Path(spec.weights), self.name, REMEDY)
        self._network = Network(net, device, self.input_shape)

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        """The five most probable classes of each picture, the first of them again as the answer."""
        top = self._network(inputs).softmax(dim=1).topk(5, dim=1)
        return [
            _answer(labels, probabilities)
            for labels, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]


def _answer(labels: list[int], probabilities: list[float]) -> dict[str, Any]:
    top5 = [
        {"label": label, "probability": round(probability, 6)}
        for label, probability in zip(labels, probabilities, strict=True)
    ]
    return {**top5[0], "top5": top5}
