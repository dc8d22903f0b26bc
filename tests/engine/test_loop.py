"""From Inductor's module to one C++ loop, and from there to a file that the next process finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ingle.engine import internals, library
from ingle.engine.loop import NotALoop, as_loop

needs_compiler = pytest.mark.skipif(internals.compiler() is None, reason="there is no C++ compiler")


def module(body: str) -> str:
    """A module as Inductor writes it, with one kernel."""
    return f"""
cpp_fused_0 = async_compile.cpp_pybinding(['const float*', 'float*'], \'\'\'
extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0) {{ out_ptr0[0] = in_ptr0[0]; }}
\'\'\')

class Runner:
    def call(self, args):
        arg0_1, arg1_1 = args
        args.clear()
        assert_size_stride(arg0_1, (4, ), (1, ), 'input')
{body}
        return ()
"""


def test_kernels_are_called_in_order_on_memory_that_is_there_once() -> None:
    loop = as_loop(
        module(
            "        buf0 = empty_strided_cpu((2, 3), (3, 1), torch.float32)\n"
            "        cpp_fused_0(arg0_1, buf0)\n"
            "        buf1 = buf0; del buf0  # reuse\n"
            "        cpp_fused_0(buf1, reinterpret_tensor(arg1_1, (1, ), (1, ), 2))\n"
            "        buf2 = reinterpret_tensor(buf1, (2, ), (1, ), 4)\n"
            "        cpp_fused_0(buf2, arg1_1)\n"
        )
    )
    assert loop.inputs == 2
    assert loop.buffers == (((2, 3), (3, 1), torch.float32),)
    calls = [line.strip() for line in loop.source.splitlines() if line.strip().startswith("cpp_fused_0(static_cast")]
    assert calls == [
        "cpp_fused_0(static_cast<const float*>(memory[0]), static_cast<float*>(memory[2]));",
        "cpp_fused_0(static_cast<const float*>(memory[2]), static_cast<float*>(memory[1]) + 2);",
        "cpp_fused_0(static_cast<const float*>(memory[2]) + 4, static_cast<float*>(memory[1]));",
    ]


@pytest.mark.parametrize(
    "body",
    [
        "        extern_kernels.mm(arg0_1, arg1_1, out=arg0_1)",
        "        buf0 = torch.ops.aten._sample_dirichlet.default(arg0_1)",
        "        cpp_fused_0(arg0_1, s0)",
        "        cpp_fused_0(arg0_1)",
        "        buf0 = empty_strided_cpu((s0, ), (1, ), torch.float32)",
        "        if arg0_1: pass",
    ],
)
def test_what_is_no_loop_is_told(body: str) -> None:
    with pytest.raises((NotALoop, ValueError)):
        as_loop(module(body))


def step(x: Tensor, noise: Tensor, place: Tensor) -> tuple[()]:
    x.mul_(0.5).add_(noise[place][0].exp().sum())
    place.add_(1)
    return ()


def graph(inputs: list[Tensor]) -> torch.fx.GraphModule:
    copies = [tensor.clone() for tensor in inputs]
    return internals.functional(internals.record(step, copies), copies, decompose={})


def inputs(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.zeros(5, dtype=dtype), torch.randn(100, 7, dtype=dtype), torch.zeros(1, dtype=torch.int64)]


@needs_compiler
def test_a_loop_takes_its_steps_and_the_next_process_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "cache_folder", lambda: tmp_path)
    ours, theirs = inputs(torch.float64), inputs(torch.float64)
    library.looped(graph(ours), ours)(ours, 60)
    for _ in range(60):
        step(*theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)

    def written_again(*_: object) -> str:
        raise AssertionError("it was there already")

    monkeypatch.setattr(internals, "kernels", written_again)
    again = inputs(torch.float64)
    run = library.looped(graph(again), again)
    run(again, 25)
    run(again, 35)
    torch.testing.assert_close(again, theirs, rtol=1e-12, atol=0)
    with pytest.raises(AssertionError, match="there already"):
        library.looped(graph(inputs(torch.float32)), inputs(torch.float32))  # another dtype is another library


@needs_compiler
def test_a_broken_entry_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "cache_folder", lambda: tmp_path)
    ours = inputs(torch.float64)
    library.looped(graph(ours), ours)
    (entry,) = (tmp_path / "ingle").iterdir()
    for broken in ("", "{}", '{"library": "/nowhere.so", "inputs": 3, "buffers": []}'):
        entry.write_text(broken)
        library.looped(graph(ours), ours)(ours, 1)
    assert entry.read_text() != broken


def test_the_folder_is_the_one_that_inductor_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert str(internals.cache_folder()) == default_cache_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    assert internals.cache_folder() == Path("/somewhere")


def test_two_inputs_are_two_objects() -> None:
    same = torch.zeros(3)
    with pytest.raises(RuntimeError, match="two inputs"):
        internals.record(lambda *_: (), [same, same])
