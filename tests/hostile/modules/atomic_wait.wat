(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))))
