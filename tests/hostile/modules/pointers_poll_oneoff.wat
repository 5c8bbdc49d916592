(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func $main (export "_start")
    ;; subscriptions: the last place that fits
    (if (i32.ne (call $poll_oneoff (i32.const 65488) (i32.const 64) (i32.const 1) (i32.const 128)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    ;; subscriptions: one byte across the end
    (if (i32.ne (call $poll_oneoff (i32.const 65489) (i32.const 64) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 2))))
    ;; subscriptions: the end
    (if (i32.ne (call $poll_oneoff (i32.const 65536) (i32.const 64) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 3))))
    ;; subscriptions: 2^31
    (if (i32.ne (call $poll_oneoff (i32.const 2147483648) (i32.const 64) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 4))))
    ;; subscriptions: wraps around to 0
    (if (i32.ne (call $poll_oneoff (i32.const -48) (i32.const 64) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 5))))
    ;; subscriptions: the last address
    (if (i32.ne (call $poll_oneoff (i32.const -1) (i32.const 64) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 6))))
    ;; events: the last place that fits
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 65504) (i32.const 1) (i32.const 128)) (i32.const 0))
      (then (call $proc_exit (i32.const 7))))
    ;; events: one byte across the end
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 65505) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 8))))
    ;; events: the end
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 9))))
    ;; events: 2^31
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 2147483648) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 10))))
    ;; events: wraps around to 0
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const -32) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 11))))
    ;; events: the last address
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const -1) (i32.const 1) (i32.const 128)) (i32.const 21))
      (then (call $proc_exit (i32.const 12))))
    ;; result: the last place that fits
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 65532)) (i32.const 0))
      (then (call $proc_exit (i32.const 13))))
    ;; result: one byte across the end
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 65533)) (i32.const 21))
      (then (call $proc_exit (i32.const 14))))
    ;; result: the end
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 65536)) (i32.const 21))
      (then (call $proc_exit (i32.const 15))))
    ;; result: 2^31
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 2147483648)) (i32.const 21))
      (then (call $proc_exit (i32.const 16))))
    ;; result: wraps around to 0
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const -4)) (i32.const 21))
      (then (call $proc_exit (i32.const 17))))
    ;; result: the last address
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 18))))
    ;; 2^32-1 subscriptions
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const -1) (i32.const 128)) (i32.const 28))
      (then (call $proc_exit (i32.const 19))))
    ;; 2^32-1 of everything
    (if (i32.ne (call $poll_oneoff (i32.const -1) (i32.const -1) (i32.const -1) (i32.const -1)) (i32.const 28))
      (then (call $proc_exit (i32.const 20))))
    ;; events over the subscriptions, the result over both
    (if (i32.ne (call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 0))
      (then (call $proc_exit (i32.const 21))))))
