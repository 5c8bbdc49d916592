(module
  (memory (export "memory") 1)
  (table 100001 funcref)
  (func $main (export "_start")))
