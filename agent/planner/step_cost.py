"""What the scheduler assumes of a step's time, in units of the time that a step takes to read the weights once.

A step with B rows takes 1 + ROW_COST x B. On CPUs in bf16, 4 rows were measured at 1.2 times of
one, 16 rows at 2.1 times. On a GPU rows are cheaper still; what follows from the figure is then merely careful.
"""

from __future__ import annotations

import math

from agent.planner.plan import BLOCK_TOKENS

ROW_COST = 1 / 16
ROWS_AT_ONCE = 16
"""Rows that a CPU's matrix units take together: a few more cost nothing, and ranks fill prompts up to multiples."""
FILLING_KERNELS = ("packed", "int8")
"""The engine's products that do fill up; of all others each row counts."""
MIN_MICRO_BATCH = 4
"""Sequences that decode together before another micro-batch is put in flight: two of 4 are 1.2 times as fast as one
of 8 where the stages have memory buses of their own, two of 2 only 1.1 times as fast as one of 4, and slower where
they share one."""
MIN_CHUNK = 4 * BLOCK_TOKENS


def count_micro_batches(num_decoding: int, num_stages: int) -> int:
    """How many micro-batches of decoding sequences to keep in flight."""
    return max(1, min(num_stages, num_decoding // MIN_MICRO_BATCH))


def cut_prompt(num_tokens: int, num_stages: int, limit: int) -> int:
    """Tokens per chunk of a prompt, `limit` at most, such that it is through all stages soonest.

    n chunks take (n + stages - 1) x (1 + ROW_COST x tokens / n), which is least at
    n = sqrt((stages - 1) x ROW_COST x tokens).
    """
    if num_stages == 1:
        return limit
    chunk = math.sqrt(num_tokens / (ROW_COST * (num_stages - 1)))
    whole_blocks = math.ceil(chunk / BLOCK_TOKENS) * BLOCK_TOKENS
    return min(limit, max(MIN_CHUNK, whole_blocks))


def count_paying_guesses(acceptance: float, *, num_rows: int, limit: int, draft_cost: float = 0.0) -> int:
    """Guesses for one sequence that make the most tokens of a step's time, in a step of `num_rows` without them.

    A guess counts when it and all before it are right. It adds a row, and where a draft model guesses a sequence's
    share of one of its passes, which takes `draft_cost` for all rows together. The next one pays as long as it
    brings more tokens for the time that it adds than the step has for all of its time so far.
    """
    tokens, time = float(num_rows), 1 + ROW_COST * num_rows
    added = ROW_COST + draft_cost / num_rows
    chance = acceptance
    count = 0
    while count < limit and chance * time >= added * tokens:
        tokens, time = tokens + chance, time + added
        chance *= acceptance
        count += 1
    return count
