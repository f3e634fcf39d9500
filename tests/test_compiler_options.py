"""Which processors are told to multiply by oneDNN."""

import pytest

from zeroseg_jax.compiler_options import multiplies_bfloat16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma avx512f avx512_bf16 avx512_vnni", True),  # AMD since Zen 4
        ("fpu avx512f amx_bf16 amx_tile", True),  # Intel since Sapphire Rapids
        ("fpu avx2 fma avx512f avx512_vnni", False),
        ("fpu asimd bf16 i8mm", False),  # ARM, whose products are others
    ],
)
def test_a_processor_tells_whether_it_has_bfloat16(flags, expected, tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert multiplies_bfloat16(told) is expected
    assert not multiplies_bfloat16(tmp_path / "none")
