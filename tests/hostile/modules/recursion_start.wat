(module
  (memory (export "memory") 1)
  (start $first)
  (func $first
    (call $first)
    (call $first))
  (func $main (export "_start")))
