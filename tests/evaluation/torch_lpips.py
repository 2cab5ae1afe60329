"""LPIPS in PyTorch, from torchvision's layers and equation 1 of the paper."""

import pytest

torch = pytest.importorskip("torch")

# torchvision's `features`: channels, kernel, stride and padding of a convolution, "relu", or the window of a pool.
ALEX = [(64, 11, 4, 2), "relu", 3, (192, 5, 1, 2), "relu", 3, (384, 3, 1, 1), "relu", (256, 3, 1, 1), "relu"]
ALEX += [(256, 3, 1, 1), "relu", 3]
VGG = [layer for width in (64, 128) for layer in [(width, 3, 1, 1), "relu"] * 2 + [2]]
VGG += [layer for width in (256, 512, 512) for layer in [(width, 3, 1, 1), "relu"] * 3 + [2]]
LAYERS = {"alex": ALEX, "vgg": VGG}
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
LAST = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


def backbone(net):
    """torchvision's layers with random weights that keep the spread of what passes through."""
    torch.manual_seed(0)
    layers, before = [], 3
    for layer in LAYERS[net]:
        if isinstance(layer, tuple):
            width, kernel, stride, padding = layer
            layers.append(torch.nn.Conv2d(before, width, kernel, stride, padding))
            torch.nn.init.kaiming_normal_(layers[-1].weight)
            torch.nn.init.normal_(layers[-1].bias, std=0.1)
            before = width
        else:
            layers.append(torch.nn.ReLU() if layer == "relu" else torch.nn.MaxPool2d(layer, 2))
    return torch.nn.Sequential(*layers).eval()


def save(folder, net, features):
    """A file as torchvision's, which has the classifier's weights too, and one of random heads as the package's."""
    tensors = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(tensors | {"classifier.6.weight": torch.zeros(5, 7)}, folder / "backbone.pth")
    heads = {f"lin{index}.model.1.weight": torch.rand(1, width, 1, 1) for index, width in enumerate(CHANNELS[net])}
    torch.save(heads, folder / "heads.pth")
    return folder / "backbone.pth", folder / "heads.pth"


def distance(net, features, heads, first, second):
    """Of pairs (B, 3, H, W) in [-1, 1], (B,), with the scaling of version 0.1; channels all count 1 without heads."""
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
    found, (a, b) = 0, ((each - shift) / scale for each in (first, second))
    for place, layer in enumerate(features[: LAST[net][-1] + 1]):
        a, b = layer(a), layer(b)
        if place in LAST[net]:
            unit = [each / (each.norm(dim=1, keepdim=True) + 1e-10) for each in (a, b)]
            weights = 1 if heads is None else heads[f"lin{LAST[net].index(place)}.model.1.weight"]
            found += (weights * (unit[0] - unit[1]) ** 2).sum(dim=1).mean(dim=(1, 2))
    return found
