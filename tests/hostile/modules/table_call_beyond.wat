(module
  (memory (export "memory") 1)
  (type $plain (func))
  (table 4 funcref)
  (func $main (export "_start")
    (call_indirect (type $plain) (i32.const -1))))
