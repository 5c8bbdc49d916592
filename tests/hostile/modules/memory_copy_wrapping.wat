(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (memory.copy (i32.const 0) (i32.const -8) (i32.const 16))))
