import pytest
from pydantic import ValidationError

from meditron.release.config import QuantizeConfig


def test_by_default_the_pretrained_model_is_written_as_q4_k_m() -> None:
    config = QuantizeConfig()
    assert (config.types, config.inputs()) == (("Q4_K_M",), {"model": "pretrain"})


@pytest.mark.parametrize(
    ("types", "said"), [((), "at least 1"), (("F16", "F16"), "twice"), (("Q9_K",), "'IQ4_XS' or 'IQ4_NL'")]
)
def test_refused(types: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        QuantizeConfig.model_validate({"types": types})


def test_types_may_be_in_lower_case() -> None:
    config = QuantizeConfig.model_validate_json('{"types": ["q4_k_m", "f16"]}')
    assert config == QuantizeConfig(types=("Q4_K_M", "F16"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"target_size": "4 parsecs", "calibrate": "text.txt"}, "target_size: must be a size"),
        ({"target_size": "4GB"}, "target_size needs calibrate"),
        ({"imatrix": "a.gguf", "calibrate": "text.txt"}, "exclude each other"),
    ],
)
def test_refused_combinations(keys: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        QuantizeConfig.model_validate(keys)


def test_a_target_size_is_the_only_file_by_default() -> None:
    config = QuantizeConfig.model_validate({"target_size": "4GB", "calibrate": "text.txt"})
    assert config.selectors() == ("4GB",)
    assert config.inputs() == {"model": "pretrain", "calibrate": "text.txt"}
