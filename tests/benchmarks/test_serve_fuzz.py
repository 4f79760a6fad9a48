"""A short run of the fuzz harness. It needs schemathesis, which is in the extra `bench`."""

import os

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is in the extra bench")
SECONDS = os.environ.get("MEDITRON_FUZZ_SECONDS")


@pytest.mark.slow
@pytest.mark.skipif(SECONDS is None, reason="MEDITRON_FUZZ_SECONDS is not set")
@pytest.mark.filterwarnings("default")
def test_no_request_breaks_the_server() -> None:
    from benchmarks.serve_fuzz import fuzz

    fuzzer = fuzz(float(SECONDS or 30), 1)
    assert fuzzer.problems == []
    assert fuzzer.statuses[200] > 20
    assert fuzzer.statuses[400] > 20
