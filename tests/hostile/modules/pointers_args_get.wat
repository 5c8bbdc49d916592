(module
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start")
    ;; pointers: the last place that fits
    (if (i32.ne (call $args_get (i32.const 65532) (i32.const 0)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    ;; pointers: one byte across the end
    (if (i32.ne (call $args_get (i32.const 65533) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 2))))
    ;; pointers: the end
    (if (i32.ne (call $args_get (i32.const 65536) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 3))))
    ;; pointers: 2^31
    (if (i32.ne (call $args_get (i32.const 2147483648) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 4))))
    ;; pointers: wraps around to 0
    (if (i32.ne (call $args_get (i32.const -4) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 5))))
    ;; pointers: the last address
    (if (i32.ne (call $args_get (i32.const -1) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 6))))
    ;; text: the last place that fits
    (if (i32.ne (call $args_get (i32.const 0) (i32.const 65530)) (i32.const 0))
      (then (call $proc_exit (i32.const 7))))
    ;; text: one byte across the end
    (if (i32.ne (call $args_get (i32.const 0) (i32.const 65531)) (i32.const 21))
      (then (call $proc_exit (i32.const 8))))
    ;; text: the end
    (if (i32.ne (call $args_get (i32.const 0) (i32.const 65536)) (i32.const 21))
      (then (call $proc_exit (i32.const 9))))
    ;; text: 2^31
    (if (i32.ne (call $args_get (i32.const 0) (i32.const 2147483648)) (i32.const 21))
      (then (call $proc_exit (i32.const 10))))
    ;; text: wraps around to 0
    (if (i32.ne (call $args_get (i32.const 0) (i32.const -6)) (i32.const 21))
      (then (call $proc_exit (i32.const 11))))
    ;; text: the last address
    (if (i32.ne (call $args_get (i32.const 0) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 12))))))
