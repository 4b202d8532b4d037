"""Every recipe takes whole steps on fake CUDA tensors: mixed devices and hidden reads fail, GPU or not.

Fake tensors have shapes, types and devices and no numbers. Autograd's engine asks for a real GPU, so that the gradients
are put where a backward pass would put them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mimkit.core.annotation import DENSE_TASKS
from mimkit.core.batch import Batch
from mimkit.methods.base import Method
from mimkit.methods.targets import tokens
from mimkit.model.build import EncoderConfig
from mimkit.model.frozen import Frozen
from mimkit.recipes import find_recipe, recipes
from mimkit.train import training
from mimkit.train.machine import Engine
from mimkit.train.prepare import Pretrain
from mimkit.train.training import LogSteps, Span, Training

CUDA = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")
TOTAL = 10
DENSE = [name for name in recipes(finetuning=True) if name.startswith(("segment", "depth", "keypoints"))]
"""Detection picks proposals by their scores: how many there are is a number that fake tensors do not have."""
NAMES = [*recipes(), *DENSE]
FAST = [
    "mae_vit_b16",
    "mae_mini_32_sbam",
    "mae_mini_32_amr",
    "mae_mini_32_attmask",
    "simmim_swin_mini_32",
    "simmim_mini_32_tokens",
    "maskfeat_mini_32",
    "beit_mini_32",
    "emae_mini_32",
    "crossmae_mini_32",
    "emae_mini_32_cross",
    "maskalign_mini_32",
    "simclr_mini_32",
    "moco_v2_mini_32",
    "moco_v3_mini_32",
    "dino_mini_32",
    "ibot_mini_32",
    "cmae_mini_32",
    "msn_mini_32",
    "mst_mini_32",
    "ibot_mini_32_attmask",
    "bootmae_mini_32",
    "cae_mini_32",
    "capi_mini_32",
    "data2vec_mini_32",
    "data2vec2_mini_32",
    "ijepa_mini_32",
    "tokenizer_mini_32",
    "segment_mini",
    "depth_mini",
    "keypoints_mini",
]


@pytest.fixture
def no_downloads(monkeypatch):
    """Teachers and tokenizers with weights that nobody trained."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **how: create(name, **how | {"pretrained": False}))

    def tokenizer(name: str) -> nn.Module:
        run = find_recipe("tokenizer_mini_32")
        return run.method.build(build_encoder(run)).tokenizer

    monkeypatch.setattr(tokens, "open_tokenizer", tokenizer)
    monkeypatch.setattr(training, "integer", lambda *address: 0)  # a seed: a number that the host computes


def build_encoder(run: Pretrain) -> nn.Module:
    encoder = run.encoder.build(run.images.shape(), 3)
    encoder.mean, encoder.std = (0.5,) * 3, (0.25,) * 3
    return encoder


def settings(name: str) -> Pretrain:
    run = find_recipe(name, finetuning=name in DENSE)
    if name.startswith("segment"):
        run.method.classes = 3
    if name.startswith("keypoints"):
        run.method.joints = 17
    if "swin" in name:
        run.encoder = EncoderConfig(name="swin_tiny_patch4_window7_224")
    elif "mini" in name and name in DENSE:
        run.encoder = EncoderConfig(name="vit_tiny_patch16_224", patch=8, width=32, depth=4, heads=2)
    if name == "maskalign_mini_32":
        run.method.teacher, run.encoder.depth = "vit_tiny_patch16_224", 12
    if name == "beit_vit_b16":  # what the tokenizer of small pictures takes
        run.images.size, run.encoder.patch = 32, 4
    run.batch_size = 4
    return run


def build(run: Pretrain, mode: FakeTensorMode, device: str) -> Method:
    """The method as it is built on the CPU, then moved as `task.to("cuda")` does, which fake tensors do not take."""
    with torch.device(device):
        task = run.method.build(build_encoder(run))
    with mode:
        move(task)
    return task


def move(task: nn.Module) -> None:
    def moved(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    for module in task.modules():
        if isinstance(module, Frozen):
            move(module.network)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(moved(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else moved(buffer)


def batches(run: Pretrain) -> Iterator[Batch]:
    while True:
        views = [
            torch.rand(run.batch_size, 3, *view.shape(run.images.shape()), device=CUDA)
            for view in (run.images.view, *run.images.other_views)
        ]
        keys = torch.zeros(run.batch_size, dtype=torch.int64, device=CUDA)
        dense = run.method.learns in DENSE_TASKS
        targets = run.method.example(run.batch_size, run.images.shape(), CUDA) if dense else ()
        yield Batch(views[0], keys, torch.arange(run.batch_size), other_views=tuple(views[1:]), targets=targets)


@contextmanager
def backward_by_hand(task: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def backward(loss: Tensor) -> None:
        assert loss.device.type == "cuda" and loss.shape == () and loss.requires_grad
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "backward", backward)
        yield


def train(task: Method, run: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last step of a run, as `fit` does them."""
    engine = Engine(device=CUDA, precision="bfloat16", attention="fused", compile=False, threads=1)
    engine.set_attention(task)
    optimizer = run.optimizer.build(task, run.batch_size)
    span, lines = Span(0, TOTAL, TOTAL), LogSteps.spread(TOTAL, 100, 0)
    trained = Training(task, task, engine, optimizer, run.optimizer, run.schedule.of(run.epochs), span, lines, seed=0)
    trained.feed(batches(run), 1)
    with backward_by_hand(task, monkeypatch):
        for step in (0, TOTAL - 1):
            outputs = trained.forward_backward(step)
            trained.update(step, outputs)
            logged = [*outputs.losses, *(value for logs in outputs.logs for value in logs.values())]
            assert all(value.device.type == "cuda" for value in logged)
    assert all(value.device.type == "cuda" for value in task.state_dict().values())


def steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, mode = settings(name), FakeTensorMode()
    task = build(run, mode, "cpu" if "_mini_" in name or name.startswith("beit_") else "meta")
    with mode:
        train(task, run, monkeypatch)


@pytest.mark.parametrize("name", FAST)
def test_steps_on_fake_cuda(name, no_downloads, monkeypatch):
    steps(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FAST])
def test_steps_of_every_other_recipe_on_fake_cuda(name, no_downloads, monkeypatch):
    steps(name, monkeypatch)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda loss: loss * float(loss.detach()), DataDependentOutputException),
        (lambda loss: loss * torch.ones(2), RuntimeError),
        (lambda loss: loss if loss > 0 else -loss, DataDependentOutputException),
    ],
)
def test_a_read_and_a_mix_of_devices_are_noticed(act, error, no_downloads, monkeypatch):
    run, mode = settings("mae_mini_28"), FakeTensorMode()
    task = build(run, mode, "cpu")
    forward = task.forward
    monkeypatch.setattr(task, "forward", lambda *args: replace(step := forward(*args), loss=act(step.loss)))
    with mode, pytest.raises(error):
        train(task, run, monkeypatch)
