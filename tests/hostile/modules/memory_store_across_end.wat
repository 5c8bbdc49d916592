(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (i64.store (i32.const 65529) (i64.const 0))))
