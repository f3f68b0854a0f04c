"""Measure Jumanji's JobShop and BinPack, jitted and vmapped, for `peers.py`.

Three ways each: stepped with its own auto-reset, which under vmap computes a reset for every
environment at every step; never reset, which bounds what a cheaper reset could give; and a
rollout of 50 steps compiled as a whole, the drawing of actions inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax  # type: ignore[import-not-found]
import jax.numpy as jnp  # type: ignore[import-not-found]
import jumanji  # type: ignore[import-not-found]
from jumanji.wrappers import VmapAutoResetWrapper  # type: ignore[import-not-found]
from peers_timing import Case, serve

ROLLOUT = 50

Pick = Callable[[Any, Any], Any]


def pick_jobs(mask: Any, key: Any) -> Any:
    """Draw a legal job or none for every machine; mask (n, machines, jobs + 1)."""
    return jnp.argmax(jax.random.uniform(key, mask.shape) * mask, axis=-1).astype(jnp.int32)


def pick_item(mask: Any, key: Any) -> Any:
    """Draw a legal pair of space and item; mask (n, spaces, items)."""
    flat = mask.reshape(mask.shape[0], -1)
    chosen = jnp.argmax(jax.random.uniform(key, flat.shape) * flat, axis=-1)
    return jnp.stack(jnp.divmod(chosen, mask.shape[2]), axis=-1).astype(jnp.int32)


ENVIRONMENTS: dict[str, tuple[Pick, str]] = {
    "JobShop-v0": (
        pick_jobs,
        "time moves on by one; each of 10 machines takes one of 20 jobs (8 operations) or none",
    ),
    "BinPack-v2": (
        pick_item,
        "one of 20 boxes is put into one of 40 empty spaces of a container, which are computed anew",
    ),
}


def stepped(name: str, step: Any, reset: Any, num_envs: int, variant: str) -> Case:
    """Return a case that calls the compiled step, and the compiled drawing, from Python."""
    pick, meaning = ENVIRONMENTS[name]
    keys = iter_keys()
    draw_jit, step_jit = jax.jit(pick), jax.jit(step)
    state, seen = jax.jit(reset)(jax.random.split(next(keys), num_envs))

    def draw() -> Any:
        return jax.block_until_ready(draw_jit(seen.observation.action_mask, next(keys)))

    def advance(action: Any) -> None:
        nonlocal state, seen
        state, seen = jax.block_until_ready(step_jit(state, action))

    return Case(f"Jumanji {name}", variant, num_envs, draw, advance, meaning)


def rolled(name: str, step: Any, reset: Any, num_envs: int) -> Case:
    """Return a case whose one call is a compiled rollout."""
    pick, meaning = ENVIRONMENTS[name]
    keys = iter_keys()

    def once(carry: Any, key: Any) -> tuple[Any, None]:
        state, seen = carry
        return step(state, pick(seen.observation.action_mask, key)), None

    def rollout(carry: Any, key: Any) -> Any:
        return jax.lax.scan(once, carry, jax.random.split(key, ROLLOUT))[0]

    rollout_jit = jax.jit(rollout)
    carry = jax.jit(reset)(jax.random.split(next(keys), num_envs))

    def advance(_: Any) -> None:
        nonlocal carry
        carry = jax.block_until_ready(rollout_jit(carry, next(keys)))

    return Case(f"Jumanji {name}", "rollout", num_envs, lambda: None, advance, meaning, ROLLOUT)


def iter_keys() -> Iterator[Any]:
    """Yield random keys without end, split a thousand at a time."""
    key = jax.random.PRNGKey(0)
    while True:
        key, *more = jax.random.split(key, 1000)
        yield from more


def cases() -> Iterator[Case]:
    for name in ENVIRONMENTS:
        env = jumanji.make(name)
        wrapped = VmapAutoResetWrapper(env)
        for num_envs in (64, 1024):
            yield stepped(name, wrapped.step, wrapped.reset, num_envs, "vmap")
            yield stepped(name, jax.vmap(env.step), jax.vmap(env.reset), num_envs, "no reset")
            yield rolled(name, wrapped.step, wrapped.reset, num_envs)


if __name__ == "__main__":
    serve(list(cases()))
