(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (memory.fill (i32.const 0) (i32.const 7) (i32.const -1))))
