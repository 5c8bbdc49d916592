(module
  (import "wasi_snapshot_preview1" "fd_filestat_get" (func $fd_filestat_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start")
    ;; result: the last place that fits
    (if (i32.ne (call $fd_filestat_get (i32.const 1) (i32.const 65472)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    ;; result: one byte across the end
    (if (i32.ne (call $fd_filestat_get (i32.const 1) (i32.const 65473)) (i32.const 21))
      (then (call $proc_exit (i32.const 2))))
    ;; result: the end
    (if (i32.ne (call $fd_filestat_get (i32.const 1) (i32.const 65536)) (i32.const 21))
      (then (call $proc_exit (i32.const 3))))
    ;; result: 2^31
    (if (i32.ne (call $fd_filestat_get (i32.const 1) (i32.const 2147483648)) (i32.const 21))
      (then (call $proc_exit (i32.const 4))))
    ;; result: wraps around to 0
    (if (i32.ne (call $fd_filestat_get (i32.const 1) (i32.const -64)) (i32.const 21))
      (then (call $proc_exit (i32.const 5))))
    ;; result: the last address
    (if (i32.ne (call $fd_filestat_get (i32.const 1) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 6))))
    ;; descriptor 2^32-1
    (if (i32.ne (call $fd_filestat_get (i32.const -1) (i32.const 0)) (i32.const 8))
      (then (call $proc_exit (i32.const 7))))))
