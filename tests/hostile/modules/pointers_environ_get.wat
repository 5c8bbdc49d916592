(module
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start")
    (if (i32.ne (call $environ_get (i32.const -1) (i32.const -1)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    (if (i32.ne (call $environ_get (i32.const 65536) (i32.const 2147483648)) (i32.const 0))
      (then (call $proc_exit (i32.const 2))))))
