"""One update of ResNet-18 in training is PyTorch's, running statistics included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcxr.interop.layout import from_torch, to_torch
from jaxcxr.models.features.batch_norm import BatchNorm
from jaxcxr.models.named import named_parameters, with_parameters
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training.model import make_model
from jaxcxr.training.program import make_program
from tests.training.classifiers import config_of

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

EPSILON = 1.0  # or Adam's first update would be of the gradient's sign, which rounding turns where it is small
SIDE, BATCH, CLASSES = 32, 4, ("Cardiomegaly", "Edema", "Pleural Effusion")


def test_a_batch_norm_that_learns_is_torchs():
    generator = np.random.default_rng(0)
    x, weights = generator.normal(3, 2, (2, 4, 3, 2, 5)).astype(np.float32)
    own, theirs = BatchNorm(5, rngs=nnx.Rngs(0)), nn.BatchNorm2d(5)
    own.learning = True
    for leaf, parameter in (("scale", theirs.weight), ("bias", theirs.bias), ("var", theirs.running_var)):
        value = generator.uniform(0.5, 1.5, 5).astype(np.float32)
        getattr(own, leaf).set_value(jnp.asarray(value))
        parameter.data.copy_(torch.tensor(value))
    values = named_parameters(own)

    def weighted(x):
        module = with_parameters(own, values)
        made = module(x)
        return (made * weights).sum(), (made, module.mean[...], module.var[...])

    gradient, (made, mean, var) = jax.grad(weighted, has_aux=True)(jnp.asarray(x))
    given = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    expected = theirs.train()(given).permute(0, 2, 3, 1)
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(made, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(gradient, given.grad.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(mean, theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(var, theirs.running_var, rtol=1e-5)
    half = with_parameters(own, values)(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), made, atol=0.1)


class Block(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride > 1 or channels != planes:
            self.downsample = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet18(nn.Module):
    """After He et al. 2015, with the names of torchvision."""

    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = [64, 64, 128, 256, 512]
        for number in range(1, 5):
            before, width = widths[number - 1 : number + 1]
            blocks = Block(before, width, 1 if number == 1 else 2), Block(width, width, 1)
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


def test_an_update_is_torchs():
    changes = {
        "model.classifier.classes": CLASSES,
        "data.size": SIDE,
        "optimizer.clip_norm": 0.0,
        "optimizer.warmup_steps": 0,
        "optimizer.weight_decay": 0.1,
        "optimizer.learning_rate": 1e-2,
        "optimizer.eps": EPSILON,
        "batch_size": BATCH,
    }
    changes["model.classifier.image_size"] = SIDE
    config = config_of("resnet18", **changes)
    pipeline, first = make_model(config, jax.random.key(0))
    generator = np.random.default_rng(0)
    parameters = {name: np.array(value) for name, value in first.items()}
    for name, value in parameters.items():  # so that statistics, scales and biases are no constants
        if value.ndim == 1:
            parameters[name] = (value + generator.uniform(-0.3, 0.3, value.shape)).astype(np.float32)
    batch = {
        "image": generator.integers(0, 256, (BATCH, SIDE, SIDE, 1), np.uint8),
        "labels": generator.integers(0, 2, (BATCH, len(CLASSES))).astype(np.float32),
        "label_weights": generator.uniform(0.5, 2, (BATCH, len(CLASSES))).astype(np.float32),
    }
    mesh = meshes.make_mesh(config.mesh)
    program = make_program(config, pipeline, mesh)
    state, frozen = program.init(parameters, jax.random.key(0))
    state, metrics = program.step(state, frozen, meshes.to_global(batch, mesh, BATCH))

    network = ResNet18(1, len(CLASSES))
    tensors = dict(to_torch(name.removeprefix("classifier."), value) for name, value in parameters.items())
    missing, unexpected = network.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()}, False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, eps=EPSILON, weight_decay=0.1)
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    logits = network.train()(images)
    weights = torch.tensor(batch["label_weights"])
    loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(batch["labels"]), weights)
    loss.backward()
    optimizer.step()

    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        own, expected = from_torch(name, value.numpy())
        found = np.asarray(state["learnt"][f"classifier.{own}"])
        apart, moved = np.abs(found - expected).max(), np.abs(expected - parameters[f"classifier.{own}"]).max()
        assert apart <= 1e-5 * max(1, np.abs(expected).max()), name
        assert apart <= 1e-3 * moved, name
