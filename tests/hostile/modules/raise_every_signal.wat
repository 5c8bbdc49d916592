(module
  (import "wasi_snapshot_preview1" "proc_raise" (func $proc_raise (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start") (local $signal i32)
    (loop $next
      (if (i32.ne (call $proc_raise (local.get $signal)) (i32.const 58))
        (then (call $proc_exit (i32.const 1))))
      (local.set $signal (i32.add (local.get $signal) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $signal) (i32.const 256))))))
