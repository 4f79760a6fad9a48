import pytest
import torch

from meditron.model.head import Head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [1, 256, 300])
def test_log_probabilities_have_fp32_precision_in_every_dtype(dtype: torch.dtype, positions: int) -> None:
    generator = torch.Generator().manual_seed(positions)
    hidden_ND = torch.randn(positions, 64, generator=generator).to(dtype)
    weight_VD = torch.randn(1000, 64, generator=generator).to(dtype)
    targets_N = torch.randint(1000, (positions,), generator=generator)
    before = torch.backends.mkldnn.matmul.fp32_precision
    nll_N = Head(weight_VD).nll(hidden_ND, targets_N)
    exact_N = torch.nn.functional.cross_entropy(
        hidden_ND.double() @ weight_VD.double().T, targets_N, reduction="none"
    )
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    torch.testing.assert_close(nll_N.double(), exact_N, rtol=1e-6, atol=2e-5)


def test_hidden_states_finer_than_the_head_are_not_rounded_to_it() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_ND, weight_VD = torch.randn(8, 64, generator=generator), torch.randn(50, 64, generator=generator)
    [(places, logits_CV)] = Head(weight_VD.bfloat16()).logit_chunks(hidden_ND)
    exact_CV = hidden_ND.double() @ weight_VD.bfloat16().double().T
    assert places == slice(0, 8)
    torch.testing.assert_close(logits_CV.double(), exact_CV, rtol=1e-6, atol=1e-5)
