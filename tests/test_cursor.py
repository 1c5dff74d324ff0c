"""A cursor counts rows trained on, and knows which of the run's rows come next."""

import random

import numpy as np

from llmtrain.data.cursor import START, Cursor, cursor_in, union
from llmtrain.data.examples import RankRows

N = 200


def slow(cursor: Cursor) -> list[int]:
    """All rows of the run from the cursor on, by crossing them out one by one."""
    gone = {k for first, end in cursor.passed for k in range(first, end)}
    return [k for k in range(2 * N) if k not in gone][cursor.rows :]


def test_rows_that_were_gone_past_never_come_again_and_all_others_come_once() -> None:
    draw = random.Random(0)
    for _ in range(50):
        cursor = Cursor(
            draw.randrange(40), union((a, a + draw.randrange(1, 9)) for a in draw.sample(range(N), 6))
        )
        assert [cursor.row(n) for n in range(60)] == slow(cursor)[:60]
        assert [k for a, b in cursor.next(60) for k in range(a, b)] == slow(cursor)[:60]


def test_training_on_rows_and_going_past_them_lead_to_the_same_next_row() -> None:
    draw, trained, gone, cursor = random.Random(1), [], [], START
    for _ in range(100):
        n = draw.randrange(1, 5)
        rows = [cursor.row(i) for i in range(n)]
        if draw.random() < 0.3:
            cursor, gone = cursor.past(cursor.next(n)), gone + rows
        else:
            cursor, trained = cursor.after(n), trained + rows
    assert sorted(trained + gone) == list(range(cursor.row(0)))
    assert cursor.rows == len(trained)
    assert cursor_in({"step": 3} | cursor.values()) == cursor


def test_ranges_are_the_fewest() -> None:
    assert union([(4, 6), (0, 2), (2, 3), (5, 9)]) == ((0, 3), (4, 9))


def test_ranks_and_micro_batches_share_the_rows_that_are_left() -> None:
    cursor = Cursor(6, ((9, 14), (20, 21)))
    order = []
    for world, micro in [(1, 8), (2, 2), (4, 1), (2, 4)]:
        ranks = [
            np.array(list(RankRows(cursor=cursor, n_rows=16, micro_rows=micro, rank=r, world=world)))
            for r in range(world)
        ]
        order.append(np.concatenate([r.reshape(-1, micro) for r in ranks], axis=1).reshape(-1).tolist())
    assert all(rows == slow(cursor)[:16] for rows in order)
