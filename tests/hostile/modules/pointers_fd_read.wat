(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\00\02\00\00\04\00\00\00")  ;; a good buffer
  (data (i32.const 64) "\fc\ff\00\00\05\00\00\00")  ;; 5 bytes at the last 4
  (data (i32.const 72) "\fc\ff\ff\ff\08\00\00\00")  ;; 8 bytes at -4
  (data (i32.const 80) "\00\00\00\00\ff\ff\ff\ff")  ;; 2^32-1 bytes at 0
  (data (i32.const 88) "\00\02\00\00\04\00\00\00\00\00\01\00\01\00\00\00")  ;; a good one, a bad one
  (data (i32.const 104) "\00\02\00\00\10\00\00\00\04\02\00\00\10\00\00\00\00\02\00\00\10\00\00\00")  ;; three that overlap
  (data (i32.const 128) "\80\00\00\00\10\00\00\00\00\02\00\00\04\00\00\00")  ;; over itself
  (func $main (export "_start")
    ;; list of buffers: the last place that fits
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 65528) (i32.const 1) (i32.const 32)) (i32.const 0))
      (then (call $proc_exit (i32.const 1))))
    ;; list of buffers: one byte across the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 65529) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 2))))
    ;; list of buffers: the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 3))))
    ;; list of buffers: 2^31
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 2147483648) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 4))))
    ;; list of buffers: wraps around to 0
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const -8) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 5))))
    ;; list of buffers: the last address
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const -1) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 6))))
    ;; result: the last place that fits
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 65532)) (i32.const 0))
      (then (call $proc_exit (i32.const 7))))
    ;; result: one byte across the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 65533)) (i32.const 21))
      (then (call $proc_exit (i32.const 8))))
    ;; result: the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 65536)) (i32.const 21))
      (then (call $proc_exit (i32.const 9))))
    ;; result: 2^31
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 2147483648)) (i32.const 21))
      (then (call $proc_exit (i32.const 10))))
    ;; result: wraps around to 0
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const -4)) (i32.const 21))
      (then (call $proc_exit (i32.const 11))))
    ;; result: the last address
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const -1)) (i32.const 21))
      (then (call $proc_exit (i32.const 12))))
    ;; 2^32-1 buffers
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 32)) (i32.const 28))
      (then (call $proc_exit (i32.const 13))))
    ;; 2^31 buffers
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 0) (i32.const 2147483648) (i32.const 32)) (i32.const 28))
      (then (call $proc_exit (i32.const 14))))
    ;; 2^32-1 buffers at 2^32-1
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const -1) (i32.const -1) (i32.const 32)) (i32.const 28))
      (then (call $proc_exit (i32.const 15))))
    ;; no buffers, at the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 65536) (i32.const 0) (i32.const 32)) (i32.const 0))
      (then (call $proc_exit (i32.const 16))))
    ;; no buffers, beyond the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 65537) (i32.const 0) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 17))))
    ;; a buffer across the end
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 18))))
    ;; a buffer that wraps around
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 72) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 19))))
    ;; a buffer of 2^32-1 bytes
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 80) (i32.const 1) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 20))))
    ;; a good buffer and a bad one
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 88) (i32.const 2) (i32.const 32)) (i32.const 21))
      (then (call $proc_exit (i32.const 21))))
    ;; buffers that overlap
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 104) (i32.const 3) (i32.const 32)) (i32.const 0))
      (then (call $proc_exit (i32.const 22))))
    ;; a buffer over its own list of buffers
    (if (i32.ne (call $fd_read (i32.const 0) (i32.const 128) (i32.const 2) (i32.const 32)) (i32.const 0))
      (then (call $proc_exit (i32.const 23))))
    ;; a descriptor that is not open
    (if (i32.ne (call $fd_read (i32.const 9) (i32.const 16) (i32.const 1) (i32.const 32)) (i32.const 8))
      (then (call $proc_exit (i32.const 24))))
    ;; descriptor 2^32-1
    (if (i32.ne (call $fd_read (i32.const -1) (i32.const 16) (i32.const 1) (i32.const 32)) (i32.const 8))
      (then (call $proc_exit (i32.const 25))))
    ;; the wrong direction
    (if (i32.ne (call $fd_read (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 32)) (i32.const 8))
      (then (call $proc_exit (i32.const 26))))))
