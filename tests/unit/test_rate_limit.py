"""Token buckets: how many at once, how many on average, and how much memory."""

import pytest

from vtl_tools.common.rate_limit import KeyedBuckets, RateLimit, TokenBucket


@pytest.mark.parametrize("since", [0.0, 1.0, 1e4 + 1 / 3, 1e7 + 0.1])
@pytest.mark.parametrize(("per_s", "burst"), [(10.0, 10), (1 / 60, 1), (2.0, 5), (1000.0, 1000)])
def test_a_full_bucket_has_exactly_its_burst_and_one_more_after_each_interval(since, per_s, burst):
    bucket = TokenBucket(per_s, burst)
    assert [bucket.take(since) for _ in range(burst + 5)] == [True] * burst + [False] * 5
    for number in range(1, 50):
        now = since + number / per_s
        assert bucket.take(now)
        assert not bucket.take(now)


def test_a_token_is_not_there_before_its_time():
    bucket = TokenBucket(1 / 60, 1)
    assert bucket.take(100.0)
    assert not bucket.take(159.0)
    assert bucket.take(160.0)


def test_silence_fills_no_more_than_the_burst():
    bucket = TokenBucket(100.0, 3)
    assert sum(bucket.take(0.0) for _ in range(9)) == 3
    assert sum(bucket.take(1e6) for _ in range(9)) == 3


def test_refused_requests_are_counted_until_they_are_told():
    bucket = TokenBucket(2.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert bucket.take(0.5)
    assert (bucket.waived(), bucket.waived()) == (1, 0)


def test_what_is_left_is_told_in_whole_tokens():
    limit, full_at = RateLimit(2.0, 5), 0.0
    lefts = []
    for _ in range(5):
        lefts.append(limit.left(full_at, 7.0))
        full_at = limit.take(full_at, 7.0)
    assert [*lefts, limit.left(full_at, 7.0), limit.left(full_at, 7.5)] == [5, 4, 3, 2, 1, 0, 1]
    assert limit.take(full_at, 7.0) is None


def test_each_key_has_its_own_bucket_and_the_quiet_ones_are_evicted():
    buckets, limit = KeyedBuckets(10), RateLimit(1.0, 2)
    for key in range(100):
        assert buckets.take(key, limit, 0.0)
    assert len(buckets) == 10
    assert [buckets.take(99, limit, 0.0), buckets.take(99, limit, 0.0)] == [True, False]
    assert limit.left(buckets.get(99), 0.0) == 0
    assert limit.left(buckets.get("another"), 0.0) == 2
