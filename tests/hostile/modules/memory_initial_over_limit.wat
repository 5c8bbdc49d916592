(module
  (memory (export "memory") 257)
  (func $main (export "_start")))
