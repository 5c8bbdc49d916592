(module
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start")
    ;; buffer: the last place that fits
    (if (i32.ne (call $random_get (i32.const 65520) (i32.const 16)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    ;; buffer: one byte across the end
    (if (i32.ne (call $random_get (i32.const 65521) (i32.const 16)) (i32.const 21))
      (then (call $proc_exit (i32.const 2))))
    ;; buffer: the end
    (if (i32.ne (call $random_get (i32.const 65536) (i32.const 16)) (i32.const 21))
      (then (call $proc_exit (i32.const 3))))
    ;; buffer: 2^31
    (if (i32.ne (call $random_get (i32.const 2147483648) (i32.const 16)) (i32.const 21))
      (then (call $proc_exit (i32.const 4))))
    ;; buffer: wraps around to 0
    (if (i32.ne (call $random_get (i32.const -16) (i32.const 16)) (i32.const 21))
      (then (call $proc_exit (i32.const 5))))
    ;; buffer: the last address
    (if (i32.ne (call $random_get (i32.const -1) (i32.const 16)) (i32.const 21))
      (then (call $proc_exit (i32.const 6))))
    ;; the whole memory
    (if (i32.ne (call $random_get (i32.const 0) (i32.const 65536)) (i32.const 0))
      (then (call $proc_exit (i32.const 7))))
    ;; one byte too far
    (if (i32.ne (call $random_get (i32.const 1) (i32.const 65536)) (i32.const 21))
      (then (call $proc_exit (i32.const 8))))
    ;; 2^32-1 bytes
    (if (i32.ne (call $random_get (i32.const 0) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 9))))
    ;; 2^32-1 bytes at 2^32-1
    (if (i32.ne (call $random_get (i32.const -1) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 10))))
    ;; nothing, at the end
    (if (i32.ne (call $random_get (i32.const 65536) (i32.const 0)) (i32.const 0))
      (then (call $proc_exit (i32.const 11))))
    ;; nothing, beyond the end
    (if (i32.ne (call $random_get (i32.const 65537) (i32.const 0)) (i32.const 21))
      (then (call $proc_exit (i32.const 12))))))
