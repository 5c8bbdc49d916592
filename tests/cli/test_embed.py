"""A script in an interpreter: the module gets the arguments from itself, and nothing else of it changes."""

import contextlib
import random
from pathlib import Path

import pytest
import wasmtime
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quittance import sandbox
from quittance.cli.embed import EmbedError, arguments_of, embed, main
from quittance.cli.toolchains import CPYTHON, QUICKJS
from tests.support import wasm

READER = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $get (param i32 i32) (result i32)))
  (memory (export "memory") 40)
  (table 1 funcref)
  (elem (i32.const 0) $plain)
  {data}
  (func $plain (param i32) (result i32)
    (block (br_table 0 0 0 (local.get 0)))
    (drop (f64.add (f64.const 1e10) (f64.promote_f32 (f32.const 1))))
    (drop (i64.const -1))
    (drop (select (result i32) (i32.const 4098) (i32.const 4097) (i32.const 1)))
    (memory.fill (i32.const 65536) (i32.const 0) (i32.const 8))
    (call_indirect (param i32) (result i32) (i32.const 1) (i32.const 0)))
  (func (export "_start") (local $count i32) (local $size i32)
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $get (i32.const 64) (i32.const 131072)))
    ;; everything that was stored: both sizes, the first pointer, and the arguments
    (i32.store (i32.const 16) (i32.const 0)) (i32.store (i32.const 20) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 40)))
    (i32.store (i32.const 16) (i32.load (i32.const 64))) (i32.store (i32.const 20) (i32.load (i32.const 4)))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 40)))))
"""


def reader(data: str = "") -> bytes:
    """A module that writes how many arguments it has, their size, and their bytes."""
    return bytes(wasmtime.wat2wasm(READER.replace("{data}", data)))


def written(module: bytes, folder: Path) -> bytes:
    sandbox.validate_module(module)
    engine = wasmtime.Engine()
    linker, store, wasi = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    wasi.argv = ["another", "host"]
    wasi.stdout_file = folder / "out"
    store.set_wasi(wasi)
    start = linker.instantiate(store, wasmtime.Module(engine, module)).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    start(store)
    del store
    return (folder / "out").read_bytes()


ARGUMENTS = st.lists(st.binary(max_size=300).map(lambda text: text.replace(b"\0", b"")), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(arguments=ARGUMENTS, data=st.sampled_from(["", '(data (i32.const 1000) "x")', '(data "passive")']))
@example(arguments=[b"a" * 70_000, b"", b"\xff"], data="")
def test_the_module_gets_exactly_its_own_arguments(
    tmp_path_factory: pytest.TempPathFactory, arguments: list[bytes], data: str
) -> None:
    folder = tmp_path_factory.mktemp("run")
    joined = b"".join(argument + b"\0" for argument in arguments)
    head = len(arguments).to_bytes(4, "little") + len(joined).to_bytes(4, "little")
    assert written(embed(reader(data), arguments), folder) == head + joined


def test_the_same_script_gives_the_same_bytes() -> None:
    assert embed(reader(), [b"a", b"b"]) == embed(reader(), [b"a", b"b"])
    assert embed(reader(), [b"a", b"b"]) != embed(reader(), [b"a", b"c"])


def test_a_module_that_reads_no_arguments_is_refused() -> None:
    with pytest.raises(EmbedError, match="does not read arguments"):
        embed(wasm("failing"), [b"script"])


def test_a_module_that_imports_but_never_calls_is_refused() -> None:
    module = bytes(
        wasmtime.wat2wasm(
            READER.replace("{data}", "").replace("(drop (call $get (i32.const 64) (i32.const 131072)))", "")
        )
    )
    with pytest.raises(EmbedError, match="never reads"):
        embed(module, [b"script"])


def test_a_zero_byte_in_a_script_is_refused() -> None:
    with pytest.raises(EmbedError, match="zero byte"):
        embed(reader(), [b"a\0b"])


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_module_is_refused_or_embedded(seed: int) -> None:
    chance, module = random.Random(seed), bytearray(reader('(data (i32.const 1000) "x")'))
    if seed % 2:
        del module[chance.randrange(8, len(module)) :]
    else:
        module[chance.randrange(8, len(module))] = chance.randrange(256)
    with contextlib.suppress(EmbedError):  # any other error fails the test
        embed(bytes(module), [b"script"])


def test_each_interpreter_gets_the_name_and_the_script() -> None:
    assert arguments_of(QUICKJS, "agent.js", b"1") == [b"agent.js", b"1"]
    assert arguments_of(CPYTHON, "agent.py", b"1")[-2:] == [b"agent.py", b"1"]


def test_a_script_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xe4\n")
    for name, said in (("latin.py", "is not UTF-8 at byte 2"), ("none.py", "No such file")):
        assert main(["--interpreter", CPYTHON, str(tmp_path / name), str(tmp_path / "out.wasm")]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out.wasm").exists()
