"""Noise boxes behind an answer's real ones: PaliGemma 2's detection recipe (arXiv:2412.03555, C).

An answer goes on to the end of the text with boxes whose class is one piece that no answer has: one
of its own boxes once more, a box of another answer, or one anywhere, each as likely, so that only
pixels, and what was named before, tell them from real ones. (pix2seq, arXiv:2109.10852, has
jittered copies of real boxes and random ones.) With one real box and noise piece <n>, a box's four
tokens written as one:

    text        bos detect "\\n" box cat " ; " box <n> " ; " box <n> pad
    mask_loss     0      0    0   1   1     1   0   1     1   0   1   0

Where a box of noise lies is not learnt, that it is noise is. So the model learns to name boxes
beyond those that it is sure of, and says by the probability of <n> how sure it is. <n> follows its
box directly, without the space that a label begins with: the two compete for the same place. There
is no eos. While decoding, eos and <n> are forbidden; `tasks.noise_boxes` reads what comes.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from paligemma_jax.data import index_sampler, tokens
from paligemma_jax.tasks import box_text

NUM_KINDS = 3  # own, of another answer, anywhere


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseBoxes:
    """How a run's answers are filled up; made by `make`.

    Attributes:
      seed: of the run.
      noise, eos, pad: ids.
      separator: ids between two boxes.
      loc_ids: ids of the `<loc>` tokens.
      places: int32[m, 4], ids of boxes that answers have; without any they lie anywhere.
    """

    seed: int
    noise: int
    eos: int
    pad: int
    separator: tuple[int, ...]
    loc_ids: range
    places: np.ndarray

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """What must not be chosen while decoding."""
        return self.noise, self.eos

    def fill(self, row: dict[str, np.ndarray], position: int) -> dict[str, np.ndarray]:
        """Returns a training row with noise boxes in place of its eos and padding.

        Args:
          row: of `rows.encode_training`. It stays as it is where it has no eos, because it was
            cut, or no room for a box.
          position: of the example in the run; what is drawn follows from it and the seed.
        """
        start = int(row["mask_input"].sum()) - 1
        # The first box of an answer has no separator before it.
        skipped = len(self.separator) if row["mask_loss"].sum() == 1 else 0
        size = len(self.separator) + 5
        num_boxes = (len(row["text"]) - start + skipped) // size
        if row["text"][start] != self.eos or not num_boxes:
            return row
        ids = np.full((num_boxes, size), self.noise, np.int32)
        ids[:, : len(self.separator)] = self.separator
        answer = row["text"][row["mask_ar"] & row["mask_input"]]
        own = answer[np.isin(answer, self.loc_ids)]
        own = own[: len(own) // 4 * 4].reshape(-1, 4)  # `check` explains broken answers too
        ids[:, -5:-1] = self._draw(num_boxes, position, own)
        learnt = np.ones((num_boxes, size), bool)
        learnt[:, -5:-1] = False
        filled = {name: array.copy() for name, array in row.items()}
        stop = start + num_boxes * size - skipped
        filled["text"][start], filled["mask_loss"][start] = self.pad, False
        filled["text"][start:stop] = ids.reshape(-1)[skipped:]
        filled["mask_loss"][start:stop] = learnt.reshape(-1)[skipped:]
        filled["mask_input"][start:stop] = True
        return filled

    def _draw(self, num_boxes: int, position: int, own: np.ndarray) -> np.ndarray:
        """Returns int[n, 4], ids of boxes: of int[k, 4] `own`, of `places`, or anywhere."""
        numbers = index_sampler.uniforms(
            self.seed, index_sampler.NOISE_BOXES, position, 6 * num_boxes
        )
        corners, kinds, choices = np.split(numbers.reshape(6, num_boxes), [4, 5])
        first, second = corners.reshape(2, 2, num_boxes)
        first = (first * len(self.loc_ids)).astype(np.int64)
        # One of the other places on the axis, each as likely.
        second = (second * (len(self.loc_ids) - 1)).astype(np.int64)
        second += second >= first
        boxes = np.concatenate([np.minimum(first, second), np.maximum(first, second)]).T
        boxes += self.loc_ids[0]
        for kind, pool in enumerate((own, self.places)):
            if len(pool):
                chosen = (kinds[0] * NUM_KINDS).astype(int) == kind
                boxes[chosen] = pool[(choices[0, chosen] * len(pool)).astype(int)]
        return boxes


def make(
    tokenizer: tokens.Tokenizer, piece: str, *, seed: int, suffixes: Iterable[str] = ()
) -> NoiseBoxes:
    """Returns how to fill answers up.

    Args:
      tokenizer: of the run.
      piece: the noise class: a piece that no answer has. Gemma's `<unused0>` was never seen in
        training; every tokenizer has `<seg127>`, which detection has no use for.
      seed: of the run.
      suffixes: answers whose boxes are where noise may lie.

    Raises:
      ValueError: not one piece, or one that text before or after it melts into.
    """
    tokens.check_has_places(tokenizer, "input.noise_piece")
    first, separator = tokenizer.loc_ids[0], tokenizer.encode(box_text.SEPARATOR)
    ids = tokenizer.encode(piece)
    joined_ids = tokenizer.encode(f"{tokens.LOC_PIECES[0]}{piece}{box_text.SEPARATOR}")
    taken = (tokenizer.pad, tokenizer.eos, *tokenizer.encode_prompt(""), *tokenizer.loc_ids)
    if len(ids) != 1 or joined_ids != [first, *ids, *separator] or ids[0] in taken:
        raise ValueError(
            f"noise piece '{piece}': the tokenizer reads it as {len(ids)} pieces (ids {ids[:8]}), "
            f"expected one that stands for itself and that no answer has: '<unused0>' of Gemma's "
            f"tokenizer, or '{tokens.SEG_PIECES[-1]}'"
        )
    return NoiseBoxes(
        seed=seed,
        noise=ids[0],
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        separator=tuple(separator),
        loc_ids=tokenizer.loc_ids,
        places=np.array(_bins(suffixes), np.int32).reshape(-1, 4) + first,
    )


def _bins(suffixes: Iterable[str]) -> list[list[int]]:
    """Returns [y1, x1, y2, x2] in bins of every box in the answers."""
    return [
        item.bins
        for suffix in suffixes
        for item in box_text.cut_objects(suffix)
        if item.problem_of_box is None
    ]
