(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 256)
  (func $main (export "_start") (local $at i32)
    (loop $more
      (i64.store (local.get $at) (i64.const 72057594037927936))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $more (i32.lt_u (local.get $at) (i32.const 8192))))
    (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 255) (i32.const 8200)))))
