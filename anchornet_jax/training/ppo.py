"""Proximal policy optimisation, as GFNet's second stage uses it.

Glance and Focus (Wang et al., 2020), Sec. 3.3 and Appendix B; Proximal Policy
Optimization Algorithms (Schulman et al., 2017), Eq. 7 and 9. Steps come first: [T, B].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Settings(NamedTuple):
    """GFNet's numbers.

    Attributes:
      discount: of a reward, per step.
      clip: how far a ratio of probabilities may leave 1.
      value_weight: of the critic's squared error.
      entropy_weight: of the entropy, which is constant: the deviation is fixed.
      deviation: of each coordinate of an action.
    """

    discount: float = 0.7
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    deviation: float = 0.1


SETTINGS = Settings()


def log_probability(
    actions: jax.Array, means: jax.Array, settings: Settings = SETTINGS
) -> jax.Array:
    """Return the log-density [...] of actions [..., 2] in a Gaussian around means."""
    squares = ((actions - means) / settings.deviation) ** 2
    constant = 2 * np.log(settings.deviation) + np.log(2 * np.pi)
    return -0.5 * squares.sum(-1) - constant


def entropy(settings: Settings = SETTINGS) -> float:
    """Return the entropy of the two coordinates."""
    return float(1 + np.log(2 * np.pi) + 2 * np.log(settings.deviation))


def sample(
    key: jax.Array, means: jax.Array, settings: Settings = SETTINGS
) -> tuple[jax.Array, jax.Array]:
    """Draw actions [..., 2], clipped to [0, 1], and the log-density of the clipped ones."""
    noise = settings.deviation * jax.random.normal(key, means.shape)
    actions = jnp.clip(means + noise, 0, 1)
    return actions, log_probability(actions, means, settings)


def returns(
    rewards: jax.Array, settings: Settings = SETTINGS, axis_name: str | None = None
) -> jax.Array:
    """Return the discounted sums of later rewards [T, B], standardised over all of them.

    By the unbiased deviation; there must be at least two rewards.

    Args:
      rewards: of each step.
      settings: the discount.
      axis_name: mapped axis over which the batch is spread, all of which counts.
    """

    def add(later, reward):
        total = reward + settings.discount * later
        return total, total

    _, sums = jax.lax.scan(add, jnp.zeros_like(rewards[0]), rewards, reverse=True)
    total = lambda x: jax.lax.psum(x.sum(), axis_name) if axis_name else x.sum()
    count = total(jnp.ones_like(sums))
    mean = total(sums) / count
    deviation = jnp.sqrt(total((sums - mean) ** 2) / (count - 1))
    return (sums - mean) / (deviation + 1e-5)


def rollout(policy, variables, maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the means [T, B, 2] and values [T, B] of a policy on maps [T, B, h, w, C]."""
    state = jnp.zeros((maps.shape[1], policy.hidden), jnp.float32)
    found = []
    for seen in maps:
        state, means, values = policy.apply(variables, seen, state)
        found.append((means, values))
    means, values = zip(*found)
    return jnp.stack(means), jnp.stack(values)


def loss(
    means: jax.Array,
    values: jax.Array,
    actions: jax.Array,
    old: jax.Array,
    gains: jax.Array,
    settings: Settings = SETTINGS,
) -> jax.Array:
    """Return the scalar that one update minimises.

    Args:
      means: [T, B, 2], of the policy that learns.
      values: [T, B], of its critic.
      actions: [T, B, 2], that were taken.
      old: [T, B], their log-densities when they were.
      gains: [T, B], from `returns`.
      settings: weights.
    """
    ratio = jnp.exp(log_probability(actions, means, settings) - old)
    advantage = gains - jax.lax.stop_gradient(values)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    gain = jnp.minimum(ratio * advantage, clipped * advantage).mean()
    error = ((values - gains) ** 2).mean()
    bonus = settings.entropy_weight * entropy(settings)
    return settings.value_weight * error - gain - bonus
