"""The GPU benchmark with its small model on a CPU, and its choice of what fits a GPU."""

import json

import pytest
from benchmarks.gpu_train import LLAMA_7B, OURS, PLAIN, Case, fitting_layers, our_cases, peak_flops

from benchmarks import common, gpu_train

H200, H100, A100 = 150.0e9, 85.0e9, 42.0e9


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_the_small_benchmark_records_its_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_train, "pick_device", lambda world: gpu_train.torch.device("cpu"))
    # In this process: each of the processes would import transformers again.
    monkeypatch.setattr(gpu_train, "start_case", lambda case, seconds: gpu_train.run_case(case))
    gpu_train.main(["--tiny"])
    rows = [json.loads(line) for line in (tmp_path / "gpu_train.jsonl").read_text().splitlines()]
    assert rows == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    mfu, eager = rows
    assert (mfu["name"], eager["name"]) == ("gpu-train-mfu", "gpu-train-vs-eager")
    assert mfu["ratio"] == pytest.approx(mfu["ours"] / mfu["peer"])
    operations = gpu_train.TINY.flops_per_token(64)
    assert mfu["ours"] * 1e12 == pytest.approx(mfu["tokens_per_second"] * operations)
    assert mfu["mfu"] is None, "a CPU has no peak of a vendor"
    assert mfu["memory_bytes"] > 10**7
    assert len(mfu["step_seconds"]) == gpu_train.WARM_UP + gpu_train.STEPS
    assert eager["layers"] == mfu["layers"] == 4


def test_a_case_runs_in_a_process_of_its_own(capsys):
    figures = gpu_train.start_case(Case("ours", 2, "bfloat16", True), 120)
    assert figures is not None
    assert figures["tokens_per_second"] > 0
    assert gpu_train.start_case(Case("nobody", 2, "float32", True), 120) is None
    assert "KeyError: 'nobody'" in capsys.readouterr().err


def test_without_a_gpu_the_large_benchmark_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(gpu_train, "pick_device", lambda world: gpu_train.torch.device("cpu"))
    gpu_train.main([])
    assert "skipped: no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(("memory", "moments"), [(H200, "bfloat16"), (190e9, "float32")])
def test_the_whole_shape_is_trained_where_it_fits(memory, moments):
    first = our_cases(LLAMA_7B, memory, tiny=False)[0]
    assert (first.layers, first.moments) == (32, moments)
    bytes_needed = LLAMA_7B.parameter_count * OURS[moments].per_parameter
    assert bytes_needed + 32 * OURS[moments].per_layer <= memory


@pytest.mark.parametrize("memory", [H100, A100])
def test_smaller_gpus_train_as_many_blocks_as_fit(memory):
    for case in our_cases(LLAMA_7B, memory, tiny=False):
        assert 1 <= case.layers < 32
    layers = fitting_layers(LLAMA_7B, PLAIN, memory)
    shape = LLAMA_7B.model_copy(update={"num_hidden_layers": layers + 1})
    needed = shape.parameter_count * PLAIN.per_parameter + (layers + 1) * PLAIN.per_layer
    assert needed + gpu_train.RESERVED > memory


def test_peaks_are_those_of_the_clusters():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") is None
    assert peak_flops("Tesla T4") is None
