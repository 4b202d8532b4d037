"""SimCLR and MoCo: losses against lightly and closed forms, queues and slow copies, and processes that equal one."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch import nn

from contrastive_ranks import CONFIGS, RESNET, VIT, batch, in_ranks, small, two_steps
from drills import ranks, tiny
from mimkit.core.batch import DatasetView
from mimkit.core.errors import UserError
from mimkit.methods import moco
from mimkit.methods.losses import feature_spread, in_batch, info_nce, nt_xent
from mimkit.methods.moco import MoCo, MoCoConfig
from mimkit.methods.moco_v3 import MoCoV3, MoCoV3Config
from mimkit.methods.simclr import SimCLRConfig
from mimkit.model.build import EncoderConfig
from mimkit.model.projector import GlobalBatchNorm, SlowCopy, mlp
from mimkit.train.checkpoint import checkpoints, load_checkpoint
from mimkit.train.machine import untouched
from mimkit.train.prepare import Prepared
from mimkit.train.pretrain import pretrain
from mimkit.train.run_folder import RunFolder

torch.set_num_threads(1)
KINDS = ["simclr-vit", "simclr-resnet", "moco-vit", "moco-resnet", "moco_v3-vit", "moco_v3-resnet"]


def points(seed=0, n=6, width=5):
    return torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed))


# ---- losses


@given(st.integers(0, 99), st.integers(2, 9), st.floats(0.05, 2.0))
@settings(deadline=None, max_examples=20)
def test_nt_xent_is_that_of_lightly_and_half_the_official(seed, n, temperature):
    a, b = points(seed, n)
    loss = nt_xent(a, b, temperature).loss
    torch.testing.assert_close(loss, NTXentLoss(temperature)(a, b))
    # google-research/simclr:objective.py, by hand in NumPy's precision: two means over the anchors of a view
    x = F.normalize(torch.cat([a, b]).double(), dim=1)
    logits = x @ x.T / temperature - 1e9 * torch.eye(2 * n)
    chance = logits.log_softmax(dim=1)
    i = torch.arange(n)
    official = -chance[i, i + n].mean() - chance[i + n, i].mean()
    torch.testing.assert_close(2 * loss.double(), official, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nt_xent(a, b, temperature, scale=2.0).loss, 2 * loss)


def test_nt_xent_gradient_is_that_of_lightly():
    grads = []
    for loss in (lambda a, b: nt_xent(a, b, 0.3).loss, NTXentLoss(0.3)):
        a, b = (x.clone().requires_grad_() for x in points())
        loss(a, b).backward()
        grads.append((a.grad, b.grad))
    torch.testing.assert_close(*grads)
    assert all(grad.abs().sum() > 0 for grad in grads[0])


@given(st.integers(0, 99), st.floats(0.1, 10.0))
@settings(deadline=None, max_examples=15)
def test_nt_xent_knows_neither_order_of_views_nor_frame_nor_length(seed, length):
    a, b = points(seed)
    loss = nt_xent(a, b, 0.2).loss
    rotation = torch.linalg.qr(points(seed + 1, 5)[0, :5]).Q
    for other in (nt_xent(b, a, 0.2), nt_xent(a @ rotation, b @ rotation, 0.2), nt_xent(length * a, b, 0.2)):
        torch.testing.assert_close(other.loss, loss, rtol=1e-4, atol=1e-5)


def test_closed_forms():
    same = torch.ones(8, 4)
    assert nt_xent(same, same, 0.1).loss.item() == pytest.approx(math.log(15), rel=1e-5)
    assert in_batch(same, same, 0.2).loss.item() == pytest.approx(0.4 * math.log(8), rel=1e-5)
    queue = F.normalize(torch.ones(32, 4), dim=1)
    assert info_nce(same, same, queue, 0.07).loss.item() == pytest.approx(math.log(33), rel=1e-5)
    a, b = points(n=64, width=4096)
    queue = F.normalize(torch.randn(512, 4096), dim=1)
    assert info_nce(a, b, queue, 1.0).loss.item() == pytest.approx(math.log(513), abs=0.02)
    one = torch.eye(4)  # every point its own axis, both views equal
    assert nt_xent(one, one, 0.5).loss.item() == pytest.approx(math.log(math.exp(2) + 6) - 2, rel=1e-5)
    assert tuple(round(x.item(), 5) for x in nt_xent(one, one, 0.5)[1:]) == (1, 0)
    torch.testing.assert_close(info_nce(one, one, -one, 0.5)[1:], (torch.tensor(1.0), torch.tensor(-0.25)))


def test_numbers_to_log_are_means_of_cosines():
    a, b = (F.normalize(x, dim=1) for x in points())
    x = torch.cat([a, b])
    twins = (a * b).sum(dim=1)
    other_views = ((x @ x.T).sum() - len(x) - 2 * twins.sum()) / (len(x) * (len(x) - 2))
    torch.testing.assert_close(nt_xent(3 * a, b, 0.5)[1:], (twins.mean(), other_views))
    other_views = ((a @ b.T).sum() - twins.sum()) / (len(a) * (len(a) - 1))
    torch.testing.assert_close(in_batch(3 * a, b, 0.5)[1:], (twins.mean(), other_views))


def test_losses_are_float32_under_autocast_and_keys_get_no_gradient():
    a, b = points(n=16, width=64)
    a.requires_grad_()
    b.requires_grad_()
    queue = F.normalize(torch.randn(8, 64), dim=1)
    cases = [lambda: nt_xent(a, b, 0.1), lambda: in_batch(a, b, 0.1), lambda: info_nce(a, b.detach(), queue, 0.1)]
    for case in cases:
        plain = case().loss
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(case().loss, plain) and plain.dtype == torch.float32
    in_batch(a, b, 0.1).loss.backward()
    assert b.grad is None and a.grad.abs().sum() > 0


def entropy_by_hand(positive, others, temperature):
    """-log of the positive's share among itself and the others, in Python's floats."""
    exponents = [math.exp(float(c) / temperature) for c in others]
    own = math.exp(float(positive) / temperature)
    return -math.log(own / (own + sum(exponents)))


@given(st.integers(0, 99), st.lists(st.integers(0, 3), min_size=2, max_size=8), st.floats(0.1, 2.0))
@settings(deadline=None, max_examples=25)
def test_copies_of_a_picture_are_no_negatives_of_it(seed, index, temperature):
    n = len(index)
    a, b = (F.normalize(x.double(), dim=1) for x in points(seed, n))
    x, of = torch.cat([a, b]), index + index
    terms, means = [], []
    for i in range(2 * n):
        others = [x[i] @ x[j] for j in range(2 * n) if of[j] != of[i]]
        means.append(float(sum(others) / max(1, len(others))))
        terms.append(entropy_by_hand(x[i] @ x[(i + n) % (2 * n)], others, temperature))
    result = nt_xent(a.float(), b.float(), temperature, index=torch.tensor(index))
    assert result.loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-4)
    assert result.negative.item() == pytest.approx(sum(means) / len(means), abs=1e-5)

    terms = [
        entropy_by_hand(a[i] @ b[i], [a[i] @ b[j] for j in range(n) if index[j] != index[i]], temperature)
        for i in range(n)
    ]
    result = in_batch(a.float(), b.float(), temperature, torch.tensor(index))
    assert result.loss.item() == pytest.approx(2 * temperature * sum(terms) / n, abs=1e-4)

    queue, queued = F.normalize(points(seed + 1, 7)[0].double(), dim=1), [0, 1, 1, 9, -1, -1, 3]
    terms = [
        entropy_by_hand(a[i] @ b[i], [a[i] @ queue[j] for j in range(7) if queued[j] != index[i]], temperature)
        for i in range(n)
    ]
    same = torch.tensor(index).unsqueeze(1) == torch.tensor(queued)
    result = info_nce(a.float(), b.float(), queue.float(), temperature, same)
    assert result.loss.item() == pytest.approx(sum(terms) / n, abs=1e-4)


def test_a_batch_without_copies_has_the_same_loss_and_gradient_bit_for_bit():
    index, queue = torch.randperm(64), F.normalize(torch.randn(32, 16), dim=1)
    none = torch.zeros(64, 32, dtype=torch.bool)
    for plain, masked in (
        (lambda a, b: nt_xent(a, b, 0.1), lambda a, b: nt_xent(a, b, 0.1, index=index)),
        (lambda a, b: in_batch(a, b, 0.1), lambda a, b: in_batch(a, b, 0.1, index)),
        (lambda a, b: info_nce(a, b, queue, 0.1), lambda a, b: info_nce(a, b, queue, 0.1, none)),
    ):
        results = []
        for loss in (plain, masked):
            a, b = points(n=64, width=16).unbind()
            a.requires_grad_()
            contrast = loss(a, b)
            contrast.loss.backward()
            results.append((*contrast, a.grad))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_perfect_features_of_forty_pictures_have_no_loss_in_a_batch_of_256():
    index = torch.arange(256) % 40
    perfect = F.one_hot(index, 40).float()
    assert nt_xent(perfect, perfect, 0.1).loss > 2  # what the copies did
    assert nt_xent(perfect, perfect, 0.1, index=index).loss < 0.025  # 500 views of others, each with e^-10
    assert in_batch(perfect, perfect, 0.1, index).loss < 0.005
    queue = F.one_hot(torch.arange(4096) % 40, 40).float()
    same = index.unsqueeze(1) == torch.arange(4096) % 40
    assert info_nce(perfect, perfect, queue, 0.1).loss > 4
    assert info_nce(perfect, perfect, queue, 0.1, same).loss < 0.2  # 3,993 keys of others, each with e^-10
    one = torch.zeros(8, dtype=torch.int64)  # a set of one picture: nothing to compare with, and no NaN
    a = perfect[:8].clone().requires_grad_()
    contrast = nt_xent(a, perfect[:8], 0.1, index=one)
    contrast.loss.backward()
    assert contrast.loss == 0 and contrast.negative == 0 and a.grad.abs().max() == 0


def test_methods_leave_out_copies_and_the_queue_remembers_whose_keys_it_has():
    for kind in ("simclr-vit", "moco_v3-vit", "moco-vit"):
        method, plain = small(kind), batch()
        copies = replace(plain, index=plain.index % 4)
        assert method(copies, 0.0).loss < method(plain, 0.0).loss or kind == "moco-vit"
    assert method.queue_index.eq(-1).all()
    method(copies, 0.0)
    method.after_step(0.0)
    assert method.queue_index.tolist() == [0, 1, 2, 3] * 2 + [-1] * 24
    assert method(copies, 0.0).loss < method(replace(plain, index=plain.index + 9), 0.0).loss
    state = method.state_dict()
    del state["queue_index"]  # of version 0.2
    other = small("moco-vit")
    other.load_state_dict(state)
    assert torch.equal(other.queue, method.queue) and other.queue_index.eq(-1).all()


def test_spread_tells_collapse():
    wide = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert feature_spread(5 * wide).item() == pytest.approx(1, abs=0.01)
    assert feature_spread(torch.ones(9, 64) * torch.arange(1, 10).unsqueeze(1)).item() == pytest.approx(0, abs=1e-5)


def test_a_queue_is_the_memory_bank_of_lightly():
    torch.manual_seed(0)
    bank = NTXentLoss(0.2, memory_bank_size=(24, 5))
    method = MoCo(small("moco-vit").embedder, MoCoConfig(queue=24, outputs=5, temperature=0.2, momentum=1.0))
    method.queue.copy_(bank.memory_bank.bank)
    method.place.copy_(bank.memory_bank.bank_ptr.squeeze())
    for seed in range(6):
        q, k = points(seed)
        q.requires_grad_()  # without, lightly takes no keys in
        ours = info_nce(q, k, method.queue, 0.2)
        torch.testing.assert_close(ours.loss, bank(q, k))  # which takes the keys in after it compared
        method.fresh, method.fresh_index = F.normalize(k, dim=1), torch.arange(len(k))
        method.after_step(0.0)
        torch.testing.assert_close(method.queue, bank.memory_bank.bank)


# ---- parts


def test_heads_are_those_of_the_papers():
    def kinds(head):
        return [type(part).__name__.replace("GlobalBatchNorm", "BN") for part in head]

    simclr = mlp([8, 8, 4], last="scale")
    assert kinds(simclr) == ["Linear", "BN", "ReLU", "Linear", "BN"]
    assert simclr[1].bias is not None and simclr[4].bias is None and simclr[4].weight is not None
    assert all(part.bias is None for part in simclr if isinstance(part, nn.Linear))
    assert kinds(small("moco-vit").embedder.projector) == ["Linear", "ReLU", "Linear"]
    linear = MoCoConfig(head="linear", queue=8).build(VIT.build((16, 16), 3)).embedder.projector
    assert kinds(linear) == ["Linear"] and linear[0].bias is not None
    three = ["Linear", "BN", "ReLU"] * 2 + ["Linear", "BN"]
    vit, resnet = small("moco_v3-vit"), small("moco_v3-resnet")
    assert kinds(vit.embedder.projector) == three and kinds(resnet.embedder.projector) == three[3:]
    assert kinds(vit.predictor) == three[3:] and kinds(resnet.predictor) == three[3:-1]
    assert vit.embedder.projector[-1].weight is None and vit.predictor[-1].weight is None
    assert kinds(SimCLRConfig(layers=3).build(VIT.build((16, 16), 3)).embedder.projector) == three


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
def test_global_batch_norm_is_plain_in_one_process(shape):
    plain = nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    ours = GlobalBatchNorm(3)
    x = torch.randn(shape)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), plain.train(mode)(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), plain.buffers(), strict=True))


def test_a_slow_copy_is_the_closed_form_0_copies_and_1_stays():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    for momentum in (0.0, 0.3, 1.0):
        slow = SlowCopy(first)
        slow.update(second, momentum)
        slow.update(second, momentum)
        want = momentum**2 * first.weight + (1 - momentum**2) * second.weight
        torch.testing.assert_close(slow.module.weight, want.detach(), rtol=1e-6, atol=1e-7)
        assert momentum == 0.3 or torch.equal(slow.module.weight, want)
    assert not any(p.requires_grad for p in slow.parameters()) and not slow(torch.ones(1, 3)).requires_grad


def test_moco_v3_moves_by_half_a_cosine():
    for progress, fraction in ((0.0, 0.5), (0.5, 0.25), (0.75, 0.25 * (1 - math.sqrt(0.5))), (1.0, 0.0)):
        method = small("moco_v3-vit")
        before = method.slow.module.projector[0].weight.clone()
        with torch.no_grad():
            method.embedder.projector[0].weight.add_(1)
        method.after_step(progress)
        torch.testing.assert_close(method.slow.module.projector[0].weight - before, torch.full_like(before, fraction))


def test_moco_moves_then_compares_then_takes_the_keys_in():
    method, seen = small("moco-vit"), []
    optimizer = torch.optim.SGD(method.embedder.parameters(), lr=0.1)
    start = copy.deepcopy(method.slow.module.state_dict())
    queue = method.queue.clone()
    for step in range(6):
        before, key = method.queue.clone(), method.slow(batch(step).other_views[0])
        found = method(replace(batch(step), index=batch(step).index + 8 * step), 0.0)  # other pictures at each step
        want = info_nce(method.embedder(batch(step).images), key, before, 0.2).loss
        torch.testing.assert_close(found.loss, want)
        seen.append(F.normalize(key, dim=1))
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(method.queue, before)
        method.after_step(0.0)
        if step == 0:
            now = dict(method.embedder.named_parameters())
            for name, value in method.slow.module.named_parameters():
                torch.testing.assert_close(value, (start[name] + now[name].detach()) / 2)
        if step == 2:
            assert torch.equal(method.queue[24:], queue[24:]) and method.place == 24
    # 48 keys went through 32 places: the last of each place stay
    torch.testing.assert_close(method.queue, torch.cat([seen[4], seen[5], seen[2], seen[3]]))
    assert method.place == 16


# ---- methods


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_gets_a_gradient_and_no_other(kind):
    method = small(kind)
    step = method(batch(), 0.0)
    step.loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name
    assert not any(p.requires_grad for p in getattr(method, "slow", nn.Identity()).parameters())
    if kind == "moco_v3-vit":
        assert not any(p.requires_grad for p in method.encoder.timm.patch_embed.parameters())
        config = replace(CONFIGS["moco_v3"], freeze_patches=False)
        assert config.build(VIT.build((16, 16), 3)).encoder.timm.patch_embed.proj.weight.requires_grad
    assert all(value.ndim == 0 and not value.requires_grad for value in step.logs.values())


def test_moco_v3_draws_query_key_and_value_as_matrices_of_their_own():
    torch.manual_seed(0)
    method = MoCoV3Config(hidden=8, outputs=8).build(
        EncoderConfig(name="vit_tiny_patch16_224", depth=1).build((32, 32), 3)
    )
    assert isinstance(method, MoCoV3)
    vit = method.encoder.timm
    bound = math.sqrt(6 / (192 + 192))
    assert vit.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert vit.patch_embed.proj.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (768 + 192)), rel=1e-3)
    assert vit.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)


def test_moco_v3_is_symmetric_in_its_views():
    method, one = small("moco_v3-vit").train(), batch()
    swapped = replace(one, images=one.other_views[0], other_views=(one.images,))
    torch.testing.assert_close(method(one, 0.0).loss, method(swapped, 0.0).loss)


@pytest.mark.parametrize("kind", KINDS[::2])
def test_what_cannot_be_meant_is_refused_with_the_fix(kind):
    config = CONFIGS[kind.partition("-")[0]]
    encoder = VIT.build((16, 16), 3)
    with pytest.raises(UserError, match=r"images\.other_views"):
        small(kind)(replace(batch(), other_views=()), 0.0)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match=r"method\.temperature must be above 0"):
            replace(config, temperature=temperature).build(encoder)
    if kind != "simclr-vit":
        with pytest.raises(UserError, match=r"method\.momentum is a share"):
            replace(config, momentum=1.5).build(encoder)
    no_class = replace(VIT, model_args={"class_token": False, "global_pool": "avg"})
    with pytest.raises(UserError, match=r"use --method\.pool mean"):
        replace(config, pool="class").build(no_class.build((16, 16), 3))
    assert config.needs_whole_batch


@pytest.mark.parametrize("kind", KINDS[::2])
def test_one_picture_alone_is_compared_with_nothing(kind, forty):
    config = tiny(forty)
    config.method, config.batch_size = CONFIGS[kind.partition("-")[0]], 1
    with pytest.raises(UserError, match="--batch-size 2"):
        Prepared(config).micro_batch(torch.device("cpu"), 1)


def test_a_queue_of_another_size_than_the_batch_permits_is_answered():
    for size, near in ((30, 32), (3, 8)):
        method = replace(CONFIGS["moco"], queue=size).build(VIT.build((16, 16), 3))
        method(batch(), 0.0)
        with pytest.raises(UserError, match=f"no multiple of the 8 pictures in a step: use {near}"):
            method.after_step(0.0)


def test_released_weights_reach_the_slow_copy():
    nobody = DatasetView(0, lambda: torch.zeros(0, 3, 1, 1), lambda: iter(()))
    for kind in ("moco-vit", "moco_v3-vit"):
        method = small(kind)
        with torch.no_grad():
            method.encoder.timm.norm.weight.fill_(7)
        method.setup(nobody, resumed=True)
        assert method.slow.module.encoder.timm.norm.weight[0] == 1
        method.setup(nobody, resumed=False)
        assert method.slow.module.encoder.timm.norm.weight[0] == 7


def test_trying_a_step_out_leaves_no_trace(forty):
    method = small("moco-resnet")
    before = copy.deepcopy(method.state_dict())
    with untouched(method):
        method(batch(), 0.0).loss.backward()
        assert not torch.equal(before["embedder.encoder.timm.bn1.running_mean"], method.encoder.timm.bn1.running_mean)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


# ---- processes


EQUAL = {  # not moco-resnet, whose BatchNorm sees the pictures of one process
    2: [kind for kind in KINDS if kind != "moco-resnet"],
    4: ["simclr-resnet", "moco-vit"],
}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {world: in_ranks(kinds, world, folder) for world, kinds in EQUAL.items()}


@pytest.mark.parametrize(("world", "kind"), [(world, kind) for world, kinds in EQUAL.items() for kind in kinds])
def test_processes_equal_one_on_the_joined_batch(world, kind, together):
    alone, found = two_steps(kind), together[world][kind]
    assert alone.keys() == found.keys() and "numbers 1" in alone
    for name, value in alone.items():
        if value.is_floating_point() and not name.startswith("gradient 1"):  # in which rounding has grown
            apart, size = (found[name] - value).abs().max(), value.abs().max()
            assert apart <= 3e-4 * size + 1e-5, name
        assert value.is_floating_point() or torch.equal(found[name], value), name


def test_shuffled_keys_come_back_in_order_and_each_process_embeds_strangers(monkeypatch):
    method, one = small("moco-vit"), batch()
    images, embedded = one.other_views[0], []
    whole = F.normalize(method.slow(images), dim=1)
    forward = method.slow.forward

    def gather(x):
        if x.shape == (4, 8):  # keys of this process: the other one has embedded the rest of the order
            order = moco.uniform(one.rng_keys, 1, stream=1).squeeze(1).argsort()
            return whole[order].unflatten(0, (2, 4))
        return (one.rng_keys if x.ndim == 1 else images).unflatten(0, (2, 4))

    def slow(x):
        embedded.append(x)
        return forward(x)

    monkeypatch.setattr(moco, "world", lambda: 2)
    monkeypatch.setattr(moco, "gather", gather)
    monkeypatch.setattr(method.slow, "forward", slow)
    for rank in range(2):
        monkeypatch.setattr(moco, "rank", lambda rank=rank: rank)
        part = slice(4 * rank, 4 * rank + 4)
        mine, everyone = method.momentum_keys(images[part], one.rng_keys[part])
        torch.testing.assert_close(everyone, whole)
        torch.testing.assert_close(mine, whole[part])
    seen = torch.cat(embedded)
    assert not torch.equal(seen, images)
    assert sorted(seen.flatten(1).sum(1).tolist()) == sorted(images.flatten(1).sum(1).tolist())
    assert not torch.equal(embedded[0].flatten(1).sum(1).sort().values, images[:4].flatten(1).sum(1).sort().values)


# ---- runs


def run_of(kind, data):
    run = tiny(data, log_every=1, evals=0, save_every=2)
    name, _, encoder = kind.partition("-")
    run.encoder = VIT if encoder == "vit" else EncoderConfig(name="resnet18", model_args=RESNET)
    run.images = replace(run.images, size=16, other_views=(run.images.view,))
    run.method, run.epochs = CONFIGS[name], 1  # five steps
    return run


def last_state(folder):
    return load_checkpoint(checkpoints(folder)[-1])["model"]


@pytest.mark.parametrize("kind", ["moco-resnet", "moco_v3-vit"])
def test_a_resumed_run_is_the_same_bit_for_bit(kind, forty, tmp_path):
    pretrain(run_of(kind, forty), tmp_path / "whole", log=lambda line: None)
    pretrain(run_of(kind, forty), tmp_path / "parts", max_steps=3, log=lambda line: None)
    pretrain(run_of(kind, forty), tmp_path / "parts", log=lambda line: None)
    one, other = last_state(tmp_path / "whole"), last_state(tmp_path / "parts")
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    if kind == "moco-resnet":
        assert one["place"] == 8 and one["embedder.encoder.timm.bn1.num_batches_tracked"] == 5
        first = load_checkpoint(checkpoints(tmp_path / "parts")[0])["model"]
        assert not torch.equal(first["queue"], one["queue"])


def test_a_run_of_two_processes_that_tries_steps_out_first(forty, tmp_path):
    """What one process alone measures and times must neither wait for the other nor leave traces."""
    run = run_of("simclr-resnet", forty)
    pretrain(run, tmp_path / "alone", log=lambda line: None)
    run.machine.threads = None
    for status, said in ranks(tmp_path / "log", run, tmp_path / "two"):
        assert status == 0, said
    one, two = ([record["loss"] for record in RunFolder(tmp_path / name).metrics()] for name in ("alone", "two"))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=0)
    name = "embedder.encoder.timm.bn1.running_mean"
    torch.testing.assert_close(*(last_state(tmp_path / run)[name] for run in ("alone", "two")), rtol=1e-3, atol=1e-5)
