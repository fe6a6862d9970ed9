# SPDX-License-Identifier: Apache-2.0
"""Twenty steps of pix2pix and of CycleGAN against the same in plain PyTorch, in float64.

Losses, both optimisers, the linear decay, the critic's halved loss and the pool; from the same
weights, examples and draws of the pool.
"""

import jax
import numpy as np
import pytest
from setups import run_of

from contourdiff_jax import config, methods
from contourdiff_jax.methods import cyclegan
from contourdiff_jax.training import state as states

torch = pytest.importorskip("torch", reason="needs the environment of `make test-parity`")
import adversaries  # noqa: E402, of PyTorch
from adversaries import tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.parity

STEPS, BATCH, RATE = 20, 2, 2e-4


def settings(**fields):
    """As published, but for what makes it small and twenty steps long."""
    ours = config.default()
    ours.train.update(
        images=STEPS * BATCH,
        batch=BATCH,
        learning_rate=RATE,
        warmup=0,
        decay="linear",
        constant=0.5,
        beta_1=0.5,
        weight_decay=0.0,
        clip=0.0,
    )
    ours.mesh.data = 1
    ours.update_from_flattened_dict(fields)
    return ours


def rates(optimisers):
    """Schedulers as published, by steps: constant for half of them, then linear to zero."""

    def rule(step):
        return 1 - max(0, step - STEPS // 2) / (STEPS - STEPS // 2)

    return [torch.optim.lr_scheduler.LambdaLR(one, rule) for one in optimisers]


def adam(*networks):
    parameters = [p for network in networks for p in network.parameters()]
    return torch.optim.Adam(parameters, RATE, betas=(0.5, 0.999))


def judged(kind, logits, real):
    target = torch.full_like(logits, float(real))
    if kind == "vanilla":
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.mse_loss(logits, target)


def told_apart(kind, critic, real, drawn):
    return (judged(kind, critic(real), True) + judged(kind, critic(drawn.detach()), False)) / 2


def advance(ours, params, examples, each):
    """Steps of ours beside theirs; `each` (state, example) gives their losses, by our names."""
    method = methods.build(run_of(ours, examples[0]["x"].shape[1]))
    with jax.enable_x64(True):
        memory = jax.tree.map(
            lambda a: np.float64(a) if a.dtype == np.float32 else a, method.memory
        )
        current = states.init(method.players, jax.random.key(0), memory)
        optimisers = {n: player.optimiser.init(params[n]) for n, player in method.players.items()}
        ema = {name: params[name] for name in current.ema}
        current = current._replace(params=params, optimiser=optimisers, ema=ema)
        step = jax.jit(states.step(ours.train, method.players))
        for example in examples:
            theirs = each(current, example)
            current, metrics = step(current, example)
            for name, value in theirs.items():
                np.testing.assert_allclose(metrics[name], float(value.detach()), rtol=1e-5)
    return current


def close(ours, theirs):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    jax.tree.map(one, ours, theirs)


@pytest.mark.parametrize("kind", ["vanilla", "least_squares"])
def test_pix2pix_learns_as_theirs(kind, rng):
    torch.manual_seed(0)
    generator = adversaries.begun(adversaries.UNet(1, 1, 5, 4, "batch")).double()
    critic = adversaries.begun(adversaries.critic(2, 2, 4, "batch")).double()
    of_critic, of_generator = adam(critic), adam(generator)
    schedules = rates([of_critic, of_generator])
    ours = settings(
        **{"method": "pix2pix", "adversarial.width": 4, "adversarial.levels": 5},
        **{"adversarial.critic_width": 4, "adversarial.critic_layers": 2},
        **{"adversarial.norm": "batch", "adversarial.loss": kind},
    )

    def each(state, example):
        seen, truth = tensor(example["condition"]["contour"][..., :1]), tensor(example["x"])
        drawn = generator(seen)
        loss = told_apart(kind, critic, torch.cat([seen, truth], 1), torch.cat([seen, drawn], 1))
        of_critic.zero_grad()
        loss.backward()
        of_critic.step()
        doubt = judged(kind, critic(torch.cat([seen, drawn], 1)), True)
        error = F.l1_loss(drawn, truth)
        whole = doubt + 100 * error
        of_generator.zero_grad()
        whole.backward()
        of_generator.step()
        for schedule in schedules:
            schedule.step()
        return {
            "critic_loss": loss,
            "generator_loss": whole,
            "generator_adversarial": doubt,
            "generator_l1": error,
        }

    params = {
        "critic": adversaries.of_critic(critic),
        "generator": adversaries.of_unet(generator),
    }
    examples = [
        {
            "x": rng.uniform(-1, 1, (BATCH, 32, 32, 1)),
            "condition": {"contour": rng.integers(0, 2, (BATCH, 32, 32, 2)).astype(float)},
        }
        for _ in range(STEPS)
    ]
    last = advance(ours, params, examples, each)
    close(last.params["critic"], adversaries.of_critic(critic))
    close(last.params["generator"], adversaries.of_unet(generator))


class Pool:
    """As published, with the draws of ours."""

    def __init__(self, size):
        self.size, self.images = size, []

    def query(self, key, images):
        shown = []
        for image, one in zip(images.detach(), jax.random.split(key, len(images)), strict=True):
            key_swap, key_place = jax.random.split(one)
            if len(self.images) < self.size:
                self.images.append(image)
                shown.append(image)
            elif jax.random.uniform(key_swap) > 0.5:
                place = int(jax.random.randint(key_place, (), 0, self.size))
                shown.append(self.images[place])
                self.images[place] = image
            else:
                shown.append(image)
        return torch.stack(shown)


def test_cyclegan_learns_as_theirs(rng):
    torch.manual_seed(0)
    kind, pool = "least_squares", 3
    generators, critics = (
        {side: adversaries.begun(make()).double() for side in cyclegan.ACROSS}
        for make in (
            lambda: adversaries.resnet(1, 1, 2, 4, "instance"),
            lambda: adversaries.critic(1, 1, 4, "instance"),
        )
    )
    of_generators, of_critics = adam(*generators.values()), adam(*critics.values())
    schedules, pools = rates([of_generators, of_critics]), {s: Pool(pool) for s in critics}
    ours = settings(
        **{"method": "cyclegan", "model.conditions": ("source",), "adversarial.width": 4},
        **{"adversarial.blocks": 2, "adversarial.critic_width": 4, "adversarial.pool": pool},
        **{"adversarial.critic_layers": 1},
    )

    def each(state, example):
        real = {"target": tensor(example["x"]), "source": tensor(example["source"])}
        drawn = {side: generators[side](real[other]) for side, other in cyclegan.ACROSS.items()}
        doubt = sum(judged(kind, critics[side](drawn[side]), True) for side in real)
        cycle = sum(
            F.l1_loss(generators[side](drawn[other]), real[side])
            for side, other in cyclegan.ACROSS.items()
        )
        identity = sum(F.l1_loss(generators[side](real[side]), real[side]) for side in real)
        whole = doubt + 10 * cycle + 10 * 0.5 * identity
        of_generators.zero_grad()
        whole.backward()
        of_generators.step()
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        loss = 0
        for number, side in enumerate(cyclegan.ACROSS):
            shown = pools[side].query(jax.random.fold_in(key, number), drawn[side])
            loss = loss + told_apart(kind, critics[side], real[side], shown)
        of_critics.zero_grad()
        loss.backward()
        of_critics.step()
        for schedule in schedules:
            schedule.step()
        return {
            "critics_loss": loss,
            "generators_loss": whole,
            "generators_cycle": cycle,
            "generators_identity": identity,
        }

    def params():
        return {
            "generators": {s: adversaries.of_resnet(net) for s, net in generators.items()},
            "critics": {s: adversaries.of_critic(net) for s, net in critics.items()},
        }

    examples = [
        {name: rng.uniform(-1, 1, (BATCH, 16, 16, 1)) for name in ("x", "source")}
        for _ in range(STEPS)
    ]
    last = advance(ours, params(), examples, each)
    close(last.params, params())
    for side, kept in pools.items():
        expected = np.moveaxis(torch.stack(kept.images).numpy(), 1, -1)
        close(last.memory["pool"][side]["images"], expected)
