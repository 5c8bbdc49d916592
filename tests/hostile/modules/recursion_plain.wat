(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (call $main)
    (call $main)))
