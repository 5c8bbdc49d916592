(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start")
    ;; count: the last place that fits
    (if (i32.ne (call $environ_sizes_get (i32.const 65532) (i32.const 0)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    ;; count: one byte across the end
    (if (i32.ne (call $environ_sizes_get (i32.const 65533) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 2))))
    ;; count: the end
    (if (i32.ne (call $environ_sizes_get (i32.const 65536) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 3))))
    ;; count: 2^31
    (if (i32.ne (call $environ_sizes_get (i32.const 2147483648) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 4))))
    ;; count: wraps around to 0
    (if (i32.ne (call $environ_sizes_get (i32.const -4) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 5))))
    ;; count: the last address
    (if (i32.ne (call $environ_sizes_get (i32.const -1) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 6))))
    ;; size: the last place that fits
    (if (i32.ne (call $environ_sizes_get (i32.const 0) (i32.const 65532)) (i32.const 0))
      (then (call $proc_exit (i32.const 7))))
    ;; size: one byte across the end
    (if (i32.ne (call $environ_sizes_get (i32.const 0) (i32.const 65533)) (i32.const 21))
      (then (call $proc_exit (i32.const 8))))
    ;; size: the end
    (if (i32.ne (call $environ_sizes_get (i32.const 0) (i32.const 65536)) (i32.const 21))
      (then (call $proc_exit (i32.const 9))))
    ;; size: 2^31
    (if (i32.ne (call $environ_sizes_get (i32.const 0) (i32.const 2147483648)) (i32.const 21))
      (then (call $proc_exit (i32.const 10))))
    ;; size: wraps around to 0
    (if (i32.ne (call $environ_sizes_get (i32.const 0) (i32.const -4)) (i32.const 21))
      (then (call $proc_exit (i32.const 11))))
    ;; size: the last address
    (if (i32.ne (call $environ_sizes_get (i32.const 0) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 12))))))
