"""Schedules, and which parameters are trained at which rate: patterns → label tree → `optax.multi_transform`."""

import fnmatch
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from tlcgcnn_jax.config import TrainConfig
from tlcgcnn_jax.errors import InputError

Rates = tuple[tuple[str, float], ...]  # (pattern over parameter paths, multiplier of the learning rate; 0 freezes)
ALL: Rates = (("*", 1.0),)


def parameter_paths(params: Any) -> list[str]:
    """Paths of all leaves, "conv_0/edge_kernel" and so on, in tree order."""
    return ["/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def rate_tree(params: Any, rates: Rates) -> Any:
    """The learning-rate multiplier of every parameter.

    A pattern is a glob over the path (`fnmatch`): "conv_0*" is all of one convolution, "head/output/*" the last
    layer, "*" the rest. The first pattern that matches counts.

    Args:
        params: Parameter tree.
        rates: Patterns with their multipliers; 0 freezes.

    Returns:
        A tree of floats with the structure of `params`.

    Raises:
        InputError: A parameter that no pattern matches, or a pattern that no parameter is left for.

    Example:
        >>> rate_tree({"conv_0": {"bias": 0.0}, "head": {"bias": 0.0}}, (("conv_*", 0.0), ("*", 1.0)))
        {'conv_0': {'bias': 0.0}, 'head': {'bias': 1.0}}
    """
    used: set[str] = set()
    values, lost = [], []
    for path in parameter_paths(params):
        match = next(((pattern, rate) for pattern, rate in rates if fnmatch.fnmatchcase(path, pattern)), None)
        if match is None:
            lost.append(path)
            continue
        used.add(match[0])
        values.append(float(match[1]))
    idle = [pattern for pattern, _ in rates if pattern not in used]
    if lost or idle:
        raise InputError(
            "learning-rate patterns must cover every parameter and each must be of use"
            + "".join(f"\n  - {path}: no pattern matches" for path in lost)
            + "".join(f"\n  + {pattern}: no parameter is left for it" for pattern in idle)
        )
    return jax.tree.unflatten(jax.tree.structure(params), values)


def frozen_modules(params: Mapping[str, Any], rates: Rates) -> tuple[str, ...]:
    """Paths of the modules of which no parameter is trained, nested ones such as "conv_0/edge_norm" included."""
    found: dict[str, bool] = {}
    for path, rate in zip(parameter_paths(params), jax.tree.leaves(rate_tree(params, rates)), strict=True):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            module = "/".join(parts[:depth])
            found[module] = found.get(module, True) and not rate
    return tuple(sorted(module for module, still in found.items() if still))


def make_optimizer(config: TrainConfig, rates: Rates, pulls: Rates = ()) -> optax.GradientTransformation:
    """The optimiser without its schedule: gradients to updates for a learning rate of 1.

    The learning rate is a factor that the training step multiplies in, so that runs that differ in rate or length
    share one compiled program. Frozen leaves have no optimiser state; weight decay sits in the trained branches and
    touches kernels only; clipping sees trained gradients only, so the frozen backward pass is never computed.

    Args:
        config: Optimiser, momentum, weight decay and clipping.
        rates: Patterns with their multipliers.
        pulls: Patterns with the strength of a pull towards where training started, which takes the place of weight
            decay; the first match counts, and a parameter without one is not pulled.

    Source:
        Decoupled weight decay: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    def branch(rate: float, pull: float) -> optax.GradientTransformation:
        if rate == 0.0:
            return optax.set_to_zero()
        if config.optimizer == "adamw":
            direction = optax.scale_by_adam()
        else:
            direction = optax.trace(config.momentum) if config.momentum else optax.identity()
        decay = pull_to_start(pull) if pull else optax.add_decayed_weights(config.weight_decay, mask=_is_kernel)
        return optax.chain(direction, decay, optax.scale(-rate))

    strengths = {0.0, *(strength for _, strength in pulls)}
    branches: dict[Hashable, optax.GradientTransformation] = {
        _label(rate, pull): branch(rate, pull) for _, rate in rates for pull in strengths
    }
    transform = optax.multi_transform(branches, lambda params: _labels(params, rates, pulls))
    if config.clip is None:
        return transform
    clip = optax.masked(
        optax.clip_by_global_norm(config.clip), lambda params: jax.tree.map(bool, rate_tree(params, rates))
    )
    return optax.chain(clip, transform)


def pull_to_start(strength: float) -> optax.GradientTransformation:
    """Adds strength × (parameter - its value at the start): L2-SP, decoupled from the gradient as in AdamW.

    Source:
        X. Li, Y. Grandvalet and F. Davoine, Explicit inductive bias for transfer learning with convolutional networks,
        ICML 2018, Eq. 2.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        pulled = jax.tree.map(lambda u, now, first: u + strength * (now - first), updates, params, state)
        return pulled, state

    # A copy: the training step gives up the memory of the parameters that it is handed.
    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.array, params), update)


def learning_rate(config: TrainConfig, step: Array, total: Array, peak: Array) -> Array:
    """Learning rate of an update.

    Args:
        config: Schedule, warm-up, milestones and decay.
        step: Number of updates already made.
        total: Number of updates of the whole run.
        peak: Highest learning rate.

    Returns:
        float32 scalar.

    Source:
        The cosine: I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017,
        Eq. 5, here without restarts.
    """
    done = step.astype(jnp.float32) / jnp.maximum(total, 1)
    climb = (step + 1) / jnp.maximum(config.warmup * total, 1.0) if config.warmup else jnp.ones(())
    if config.schedule == "cosine":
        after = jnp.clip((done - config.warmup) / (1 - config.warmup), 0.0, 1.0)
        factor = 0.5 * (1 + jnp.cos(jnp.pi * after))
    elif config.schedule == "step":
        passed = sum((done >= milestone).astype(jnp.float32) for milestone in config.milestones)
        factor = config.decay ** jnp.asarray(passed, jnp.float32)
    else:
        factor = jnp.ones(())
    return peak * jnp.minimum(climb, 1.0) * factor


def _is_kernel(params: Any) -> Any:
    """True for matrices: biases and batch-norm scales are not pulled to zero."""
    return jax.tree.map(lambda leaf: getattr(leaf, "ndim", 0) >= 2, params)


def _labels(params: Any, rates: Rates, pulls: Rates) -> Any:
    """The name of each parameter's branch."""
    multipliers = jax.tree.leaves(rate_tree(params, rates))
    labels = []
    for path, rate in zip(parameter_paths(params), multipliers, strict=True):
        pull = next((strength for pattern, strength in pulls if fnmatch.fnmatchcase(path, pattern)), 0.0)
        labels.append(_label(rate, pull))
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def _label(rate: float, pull: float = 0.0) -> str:
    if rate == 0.0:
        return "frozen"
    return f"rate x{rate!r}".removesuffix(".0") + (f", pull x{pull!r}" if pull else "")
