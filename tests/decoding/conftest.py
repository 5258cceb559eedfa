"""A model of a dozen numbers, for tests of decoding."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

STATES, VOCAB = 11, 6


def prefill(params, batch):
    """Logits float32[B, V] and a cache that is one number per row: what was said so far."""
    state = jnp.asarray(batch["prompt"])
    return params[state], {"state": state}


def decode_step(params, cache, token):
    state = (cache["state"] * 3 + token + 1) % STATES
    return params[state], {"state": state}


def select_rows(cache, rows):
    return {"state": cache["state"][rows]}


@dataclasses.dataclass(frozen=True)
class Mock:
    """The next logits depend on the whole answer so far: a cache row that went astray shows."""

    params: np.ndarray  # float32[STATES, V], logits after each state
    model = (prefill, decode_step, select_rows)

    def batch(self, prompt, **changes):
        """A batch of real rows; a prompt is the state to begin with."""
        prompt = np.asarray(prompt, np.int32)
        rows = np.arange(len(prompt), dtype=np.int32)
        return {"prompt": prompt, "_mask": np.ones(len(prompt), bool), "index": rows, **changes}

    def follow(self, prompt, tokens):
        """Returns float64[n, V], the log-probabilities along an answer, without a cache."""
        logits, state = [], int(prompt)
        for token in tokens:
            logits.append(self.params[state].astype(np.float64))
            state = (state * 3 + int(token) + 1) % STATES
        logits = np.array(logits)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="session")
def mock():
    params = np.random.default_rng(0).normal(size=(STATES, VOCAB), scale=2)
    return Mock(params.astype(np.float32))
